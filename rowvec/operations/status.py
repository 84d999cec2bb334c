"""The status command: the last run, the verdict and the figures of each pipeline, read from the ledger."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Literal

from psycopg.rows import DictRow, dict_row

from rowvec.ledger.generations import url_of_target
from rowvec.ledger.pipelines import check_table
from rowvec.pipeline import Pipeline
from rowvec.postgres.connection import connect, lost_connections_are_retriable, target_url
from rowvec.postgres.migrations import has_ledger, install
from rowvec.postgres.queries import query

Verdict = Literal["never run", "running", "consistent", "inconsistent", "waiting", "failed", "abandoned", "cancelled"]
"""What the last run says of a pipeline.

``never run``: the ledger has no run of it. ``running``: a run is at work. ``consistent`` and ``inconsistent``: the
run's checks hold, or one does not. ``waiting``: a later run reads the answers of unfinished Batch API jobs.
``failed``: an error ended the run before its verdict. ``abandoned``: the process was killed.
``cancelled``: a person has cancelled the run in Prefect. The view ``rowvec.freshness`` decides which one it is.
"""
_FRESHNESS = ("waiting", "oldest_seconds", "looked_at", "verified_run", "verified_at")
"""The columns of ``rowvec.freshness`` that a status has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LastRun:
    """The newest run of a pipeline: a sync, or another job that failed."""

    run_id: int
    cause: str
    """Why it was started, in one word: ``schedule``, ``command``, ``manual``, ``repair``, ``restore`` …"""
    started_at: datetime
    finished_at: datetime | None
    """None while the run is at work, and if its process was killed."""
    error: str | None
    """The sentence that it failed with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineStatus:
    """How a pipeline stands, by its ledger; ``as_json`` is what ``rowvec status --json`` prints for it."""

    pipeline: str
    table: str
    """The vector table, as the pipeline file names it."""
    verdict: Verdict
    last_run: LastRun | None
    """None if the pipeline has never run."""
    consistent_at: datetime | None
    """When a run last proved that the vectors agree with the source; None if none has."""
    rows: int | None
    """Rows of the vector table after the last run that reached its verdict; None before the first."""
    pending: int | None
    """Rows that were written to the source while that run worked; None if it read no source."""
    rejected: int
    """Rows that have no vector because they cannot be embedded or stored."""
    awaiting: int
    """Texts in unfinished jobs at the provider's Batch API."""
    cost_this_month_usd: float
    """US dollars spent, or reserved for requests under way, since the month began (UTC)."""
    waiting: int | None
    """Entries in the queue of changes; a row that changed twice has two. None: the pipeline has no queue."""
    oldest_seconds: float | None
    """How long the oldest of them has waited; None if none waits."""
    looked_at: datetime | None
    """When that was so: now, or if the queue is in another database when a run or a watcher last looked."""
    verified_run: int | None
    """The last run that compared the whole source, and it agreed; the runs since then compared what had changed."""
    verified_at: datetime | None
    """When it did."""

    def as_json(self) -> dict[str, Any]:
        """The status as one JSON object; times are ``datetime``."""
        return asdict(self)


def status(pipelines: Iterable[Pipeline]) -> tuple[PipelineStatus, ...]:
    """How each of the pipelines stands, in the order given: one query per database, which reads the ledger alone.

    Neither the source nor the vector table is read, so it is as cheap for a million rows as for ten. A database without
    a ledger stays as it is; a ledger of an older version is migrated first.

    Raises ``UsageError`` if a pipeline's name belongs to another table or a variable is missing, ``TargetError`` and
    ``DatabaseUnavailable`` if a database cannot be read.
    """
    asked = list(pipelines)
    by_url: dict[str, list[Pipeline]] = {}
    for pipeline in asked:
        by_url.setdefault(url_of_target(pipeline), []).append(pipeline)
    found = {(url, row["name"]): row for url, of_url in by_url.items() for row in _read(url, of_url)}
    urls = {id(pipeline): url for url, of_url in by_url.items() for pipeline in of_url}
    rows = [(pipeline, found.get((urls[id(pipeline)], pipeline.name))) for pipeline in asked]
    for pipeline, row in rows:
        if row is not None:
            check_table(pipeline, row["table_schema"], row["table_name"])
    return tuple(_status(pipeline.name, pipeline.target.table, row) for pipeline, row in rows)


def status_of_ledger(url: str | None = None) -> tuple[PipelineStatus, ...]:
    """How each pipeline in the ledger of a database stands, in the order of their names.

    ``url``: of the database; left out, the one that pipelines without a ``target.url`` use. Raises like ``status``.
    """
    rows = _read(target_url(url), None)
    named = [(row, f"{row['table_schema']}.{row['table_name']}") for row in rows]
    return tuple(_status(row["name"], table, row) for row, table in named)


def _read(url: str, pipelines: list[Pipeline] | None) -> list[DictRow]:
    """The rows of these pipelines, or of all that are live."""
    with lost_connections_are_retriable(), connect(url, application="rowvec status") as connection:
        if not has_ledger(connection):
            return []
        install(connection)
        names = [pipeline.name for pipeline in pipelines or ()]
        if pipelines is None:
            names = [name for (name,) in connection.execute(query("status", "live")).fetchall()]
        with connection.cursor(row_factory=dict_row) as cursor:
            return cursor.execute(query("status", "of"), {"names": names}).fetchall()


def _status(name: str, table: str, row: DictRow | None) -> PipelineStatus:
    if row is None:
        return PipelineStatus(
            pipeline=name,
            table=table,
            verdict="never run",
            last_run=None,
            consistent_at=None,
            rows=None,
            pending=None,
            rejected=0,
            awaiting=0,
            cost_this_month_usd=0.0,
            **dict.fromkeys(_FRESHNESS),
        )
    return PipelineStatus(
        pipeline=name,
        table=table,
        verdict=row["verdict"],
        last_run=_last_run(row),
        consistent_at=row["good_at"],
        rows=row["rows"],
        pending=row["pending"],
        rejected=row["rejected"],
        awaiting=row["awaiting"],
        cost_this_month_usd=row["month_usd"],
        **{name: row[name] for name in _FRESHNESS},
    )


def _last_run(row: DictRow) -> LastRun | None:
    if row["run_id"] is None:
        return None
    names = ("run_id", "cause", "started_at", "finished_at", "error")
    return LastRun(**{name: row[name] for name in names})
