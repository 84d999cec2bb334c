"""What the ledger knows of a pipeline's queue of changes: what the last run found, and what was last proved."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg import sql
from psycopg.types.json import Jsonb

from rowvec.ledger.pipelines import PipelineId
from rowvec.ledger.plans import Plan
from rowvec.postgres.connection import Connection
from rowvec.postgres.queries import query


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """What a look has found in a queue of changes."""

    queue: str
    """The name of its table."""
    is_here: bool
    """Whether it is in the ledger's database."""
    entries: int
    """A row that changed twice has two."""
    oldest_at: datetime | None
    """When the oldest of them was written, by the clock of the queue's database; None if there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What the last run that merged has left for the next one."""

    facts: dict[str, Any]
    rows: int
    checksum: str
    verified_at: str
    verified_run: int
    doubt: str | None
    """Why the next run must compare everything all the same."""
    seconds: float
    """Since the whole source was last compared, by the database's clock."""


def known(connection: Connection, pipeline_id: PipelineId) -> Known | None:
    """What the next run may rely on; None if it must compare everything."""
    row = connection.execute(query("changes", "known", pipeline_id=sql.Literal(pipeline_id))).fetchone()
    if row is None:
        return None
    facts, rows, checksum, verified_at, verified_run, seconds, same_table, only_these_runs = row
    doubt = facts.get("doubt") if only_these_runs else "another command has written the vector table since"
    return Known(
        facts=facts,
        rows=rows,
        checksum=checksum,
        verified_at=verified_at.isoformat(timespec="seconds"),
        verified_run=verified_run,
        doubt=doubt if same_table else "the vector table is another one",
        seconds=seconds,
    )


def note_look(connection: Connection, pipeline_id: PipelineId, found: Waiting) -> None:
    """Keep what a look has found for ``rowvec.freshness``, which cannot read a queue in another database."""
    values = {"queue": found.queue, "is_here": found.is_here, "waiting": found.entries, "oldest_at": found.oldest_at}
    connection.execute(query("changes", "note_look"), {"pipeline_id": pipeline_id, **values})


def what_waits(connection: Connection, pipeline_id: PipelineId) -> tuple[int | None, float | None] | None:
    """Entries of a pipeline's queue, and for how many seconds the oldest of them has waited.

    None for a generation that is not live.
    """
    return connection.execute(query("changes", "what_waits"), {"pipeline_id": pipeline_id}).fetchone()


def settle(connection: Connection, plan: Plan, table: tuple[int, str], *, agrees: bool) -> None:
    """In the merge's transaction: keep what the next run may rely on, or that it must compare everything.

    ``table``: rows and checksum of the vector table. ``agrees``: whether what was compared agrees.
    """
    queued = plan.queued
    if queued is None:
        forget(connection, plan.pipeline_id)
        return
    rows, checksum = table
    parts = {"pipeline_id": sql.Literal(plan.pipeline_id), "run_id": sql.Literal(plan.run_id)}
    parts |= {"rows": sql.Literal(rows), "checksum": sql.Literal(checksum)}
    if not agrees:
        doubt(connection, plan.pipeline_id, "the run before has found rows that do not agree")
    elif queued.whole:
        facts = sql.Literal(Jsonb(queued.facts))
        connection.execute(query("changes", "record", facts=facts, **parts))
    else:
        connection.execute(query("changes", "carry", **parts))


def doubt(connection: Connection, pipeline_id: PipelineId, why: str) -> None:
    """Let the next run compare everything; ``why`` is for people."""
    parts = {"pipeline_id": sql.Literal(pipeline_id), "why": sql.Literal(why)}
    connection.execute(query("changes", "doubt", **parts))


def forget(connection: Connection, pipeline_id: PipelineId) -> None:
    """Forget what is known of the pipeline's queue of changes: the next run compares everything."""
    connection.execute(query("changes", "forget", pipeline_id=sql.Literal(pipeline_id)))
