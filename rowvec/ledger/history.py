"""The last runs of a pipeline next to each other, as figures that any page of Markdown can show."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from psycopg.rows import class_row

from rowvec.ledger.pipelines import find
from rowvec.ledger.rejects import Reject, list_rejects
from rowvec.pipeline import Pipeline
from rowvec.pipeline.references import resolve
from rowvec.postgres.connection import open_target
from rowvec.postgres.queries import query
from rowvec.runtime.display import plain

_NEEDED = frozenset({"target"})
_RUNS = 20
_REJECTS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class PastRun:
    """A run that is over; a figure is None if the run ended before it was known."""

    run_id: int
    started_at: datetime
    cause: str
    state: str
    error: str | None
    rows: int | None
    embedded: int | None
    reused: int | None
    cost_usd: float | None
    recall_at_k: float | None
    seconds: float | None

    @property
    def outcome(self) -> str:
        """One word or two: ``ok``, ``FAILED``, ``awaits jobs``, or the run's state."""
        return {"succeeded": "ok", "failed": "FAILED", "waiting": "awaits jobs"}.get(self.state, self.state)


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """The last runs and the rejected rows of a pipeline."""

    runs: tuple[PastRun, ...]
    """Newest first."""
    rejects: tuple[Reject, ...]
    """Up to 100 rejected rows, newest first."""

    def as_markdown(self) -> str:
        """The least, the greatest and the last value of each figure, and then one line per run."""
        shown = list(reversed(self.runs))
        figures: list[tuple[str, list[float | None], str]] = [
            ("rows", [run.rows for run in shown], ",.0f"),
            ("embedded", [run.embedded for run in shown], ",.0f"),
            ("cost, $", [run.cost_usd for run in shown], ",.4f"),
            ("seconds", [run.seconds for run in shown], ",.1f"),
            ("recall@k", [run.recall_at_k for run in shown], ".3f"),
        ]
        lines = [f"## The last {len(shown)} runs", "", "| | least | most | last |", "|:--|--:|--:|--:|"]
        for name, values, form in figures:
            known = [value for value in values if value is not None]
            cells = (f"{value:{form}}" for value in (min(known), max(known), known[-1])) if known else "---"
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines += ["", "| run | started (UTC) | cause | outcome | rows | embedded | reused | $ | s | recall |"]
        lines += ["|--:|:--|:--|:--|--:|--:|--:|--:|--:|--:|", *(_row(run) for run in self.runs)]
        failed = next((run for run in self.runs if run.error and run.state != "waiting"), None)
        if failed is not None:
            lines += ["", f"Last failure, run {failed.run_id}: {plain(failed.error or '')}"]
        return "\n".join(lines)


def look_back(pipeline: Pipeline) -> History:
    """The pipeline's last runs and its rejected rows. Raises ``UsageError`` if the pipeline has never run."""
    resolved = resolve(pipeline, _NEEDED)
    with (
        open_target(resolved, "rowvec history") as connection,
        connection.cursor(row_factory=class_row(PastRun)) as runs,
    ):
        pipeline_id = find(connection, pipeline)
        values = {"pipeline_id": pipeline_id, "limit": _RUNS}
        past = tuple(runs.execute(query("history", "last_runs"), values))
        rejects = list_rejects(connection, pipeline_id, _REJECTS)
    return History(runs=past, rejects=tuple(rejects))


def _row(run: PastRun) -> str:
    def shown(value: float | None, form: str) -> str:
        return "-" if value is None else f"{value:{form}}"

    cells = (
        str(run.run_id),
        f"{run.started_at:%Y-%m-%d %H:%M}",
        plain(run.cause),
        run.outcome,
        shown(run.rows, ",.0f"),
        shown(run.embedded, ",.0f"),
        shown(run.reused, ",.0f"),
        shown(run.cost_usd, ",.4f"),
        shown(run.seconds, ",.1f"),
        shown(run.recall_at_k, ".3f"),
    )
    return f"| {' | '.join(cells)} |"
