"""What ``rowvec index`` does: see to the index, or find out which one suits."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from rowvec.errors import UsageError
from rowvec.index.build import index_state
from rowvec.index.tuning.results import Tuning, store_tuning
from rowvec.index.tuning.tuner import Budget
from rowvec.index.tuning.tuner import tune as tune_table
from rowvec.ledger import pipelines
from rowvec.ledger.runs import open_target
from rowvec.pipeline import Pipeline
from rowvec.pipeline.references import resolve
from rowvec.postgres.connection import target_url
from rowvec.postgres.migrations import install
from rowvec.postgres.vector_table import stored_table
from rowvec.sync.index import serve

_NEEDED = frozenset({"target"})
_PICTURES = (".png", ".svg", ".pdf")


def see_to_index(pipeline: Pipeline, *, rebuild: bool = False) -> dict[str, Any]:
    """Build what is missing, worn or wrong, as a sync does, and tell how the index is.

    Raises ``PipelineBusy`` where a run is at work on the table.
    """
    resolved = resolve(pipeline, _NEEDED)
    with open_target(resolved, "rowvec index") as connection:
        install(connection)
        pipeline_id = pipelines.find(connection, pipeline)
        table = stored_table(connection, resolved)
        with pipelines.exclusively(target_url(resolved.target.url), pipeline.name, pipeline_id):
            indexed = serve(connection, table, resolved, rebuild=rebuild, measure=True)
        serving = next((s for s in reversed(index_state(connection, table)) if s.valid and not s.partial), None)
    recall = indexed.recall
    return {
        "index": serving.name if serving else None,
        "kind": indexed.choice.kind,
        "on": indexed.choice.on if serving else None,
        "bytes": serving.bytes if serving else 0,
        "rows": indexed.rows,
        "k": pipeline.validation.recall.k,
        "recall_at_k": recall.recall if recall else None,
        "built": indexed.reason is not None,
        "built_because": asdict(indexed.reason) if indexed.reason else None,
        "reason": indexed.choice.reason,
        "said": list(indexed.said),
        "seconds": round(indexed.seconds, 3),
    }


def tune(pipeline: Pipeline, budget: Budget) -> Tuning:
    """Measure which index suits the table's own vectors, and keep the choice where a sync finds it."""
    resolved = resolve(pipeline, _NEEDED)
    with open_target(resolved, "rowvec tune") as connection:
        install(connection)
        table = stored_table(connection, resolved)
        tuning = tune_table(connection, table, pipeline.validation.recall, budget)
        return store_tuning(connection, table, tuning)


def check_options(*, tune: bool, rebuild: bool, given: list[str]) -> None:
    """Raise ``UsageError`` for options that would be without effect."""
    if given and not tune:
        raise UsageError(f"{given[0]} is for --tune: give both, or neither")
    if tune and rebuild:
        raise UsageError("--tune measures and --rebuild builds: tune first, then run rowvec index --rebuild")


def budget(seconds: float | None, mebibytes: int | None, rows: int | None) -> Budget:
    """What a tuner may spend, by what was given of it."""
    usual = Budget()
    return Budget(
        seconds=seconds or usual.seconds,
        memory=mebibytes * 2**20 if mebibytes else usual.memory,
        rows=rows or usual.rows,
    )


def check_plot(into: Path) -> None:
    """Raise ``UsageError`` where no picture could be written: before the tuner works for minutes, not after."""
    if into.suffix not in _PICTURES or not into.parent.is_dir():
        raise UsageError(
            f"--plot {into} cannot be written; name a file that ends in {', '.join(_PICTURES)}, in a folder there is"
        )


def draw(tuning: Tuning, into: Path) -> None:
    """Recall against latency and size as a picture. Raises ``UsageError`` where it cannot be written."""
    from rowvec.cli.tuning_plot import plot  # late: matplotlib takes a second

    plot(tuning, into)
