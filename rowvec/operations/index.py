"""What ``rowvec index`` does: maintain the index, or measure which index suits the vectors."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rowvec.index.build import index_state
from rowvec.index.tuning.results import Tuning, store_tuning
from rowvec.index.tuning.tuner import Budget
from rowvec.index.tuning.tuner import tune as tune_table
from rowvec.ledger import pipelines
from rowvec.ledger.held_lease import exclusively_on
from rowvec.pipeline import Pipeline
from rowvec.pipeline.references import resolve
from rowvec.postgres.connection import open_target, target_url
from rowvec.postgres.migrations import install
from rowvec.postgres.vector_table import stored_table
from rowvec.stages.index import serve

_NEEDED = frozenset({"target"})


def maintain(pipeline: Pipeline, *, rebuild: bool = False) -> dict[str, Any]:
    """Build the index if it is missing, worn or wrong, as a sync does, and return its state.

    With ``rebuild`` the index is built again even if nothing is wrong with it. Raises ``PipelineBusy`` if a run is at
    work on the table, and ``UsageError`` if there is no vector table yet.
    """
    resolved = resolve(pipeline, _NEEDED)
    with open_target(resolved, "rowvec index") as connection:
        install(connection)
        pipeline_id = pipelines.find(connection, pipeline)
        table = stored_table(connection, resolved)
        with exclusively_on(connection, target_url(resolved.target.url), pipeline.name, pipeline_id):
            indexed = serve(connection, table, resolved, rebuild=rebuild, measure=True)
        valid = [state for state in index_state(connection, table) if state.valid and not state.partial]
        if table.partition_by is None:
            valid = valid[-1:]
    recall = indexed.recall
    return {
        "index": max(valid, key=lambda state: state.bytes).name if valid else None,
        "kind": indexed.choice.kind,
        "on": indexed.choice.on if valid else None,
        "bytes": sum(state.bytes for state in valid),
        "rows": indexed.rows,
        "k": pipeline.validation.recall.k,
        "recall_at_k": recall.recall if recall else None,
        "built": indexed.reason is not None,
        "built_because": asdict(indexed.reason) if indexed.reason else None,
        "reason": indexed.choice.reason,
        "said": list(indexed.notes),
        "seconds": round(indexed.seconds, 3),
    }


def tune(pipeline: Pipeline, budget: Budget) -> Tuning:
    """Measure which index suits the table's own vectors, and store the choice, so that the next sync builds that index.

    Raises ``UsageError`` if there is no vector table yet.
    """
    resolved = resolve(pipeline, _NEEDED)
    with open_target(resolved, "rowvec tune") as connection:
        install(connection)
        table = stored_table(connection, resolved)
        tuning = tune_table(connection, table, pipeline.validation.recall, budget)
        return store_tuning(connection, table, tuning)
