"""What the ledger knows of a pipeline's queue of changes: what the last run found, and what was last proved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from psycopg import sql
from psycopg.types.json import Jsonb

from rowvec.ledger.pipelines import PipelineId
from rowvec.ledger.plans import Plan
from rowvec.postgres.connection import Connection
from rowvec.postgres.queries import query


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
    doubt = None if only_these_runs else "another command has written the vector table since"
    return Known(
        facts=facts,
        rows=rows,
        checksum=checksum,
        verified_at=verified_at.isoformat(timespec="seconds"),
        verified_run=verified_run,
        doubt=doubt if same_table else "the vector table is another one",
        seconds=seconds,
    )


def settle(connection: Connection, plan: Plan, table: tuple[int, str], *, agrees: bool) -> None:
    """In the merge's transaction: keep what the next run may rely on, or that it must compare everything.

    ``table``: rows and checksum of the vector table. ``agrees``: whether what was compared agrees.
    """
    queued = plan.queued
    if queued is None:
        return
    rows, checksum = table
    parts = {"pipeline_id": sql.Literal(plan.pipeline_id), "run_id": sql.Literal(plan.run_id)}
    parts |= {"rows": sql.Literal(rows), "checksum": sql.Literal(checksum)}
    if not agrees:
        connection.execute(query("changes", "doubt", pipeline_id=sql.Literal(plan.pipeline_id)))
    elif queued.whole:
        facts = sql.Literal(Jsonb(queued.facts))
        connection.execute(query("changes", "record", facts=facts, **parts))
    else:
        connection.execute(query("changes", "carry", **parts))
