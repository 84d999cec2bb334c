"""What the ledger knows of a pipeline's queue of changes: what the last run found, and what was last proved."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from typing import Any

from psycopg import sql
from psycopg.types.json import Jsonb

from rowvec.errors import TargetError
from rowvec.ledger.pipelines import PipelineId
from rowvec.ledger.plans import Plan
from rowvec.ledger.runs import RunId
from rowvec.pipeline import Pipeline
from rowvec.pipeline.parts import table_identifier
from rowvec.postgres.connection import Connection
from rowvec.postgres.fragments import cut_name
from rowvec.postgres.queries import query

# Of the functions and the view that a run makes for a vector table.
_FUNCTIONS = ("_search", "_hybrid_search", "_provenance")


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


def known(connection: Connection, pipeline_id: PipelineId, run_id: int | None = None) -> Known | None:
    """What the next run may rely on; None if it must compare everything.

    ``run_id``: the run that asks, which may have merged in an earlier round. If another run has merged and has no
    verdict, because it was killed or failed after that, nothing has checked its vectors, nor the index for them.
    """
    parts = {"pipeline_id": sql.Literal(pipeline_id), "run_id": sql.Literal(run_id)}
    row = connection.execute(query("changes", "known", **parts)).fetchone()
    if row is None:
        return None
    facts, rows, checksum, verified_at, verified_run, seconds, same_table, only_these_runs, has_verdict = row
    doubt = facts.get("doubt") or (
        None if has_verdict else "the run before has merged, and did not come to its verdict"
    )
    doubt = doubt if only_these_runs else "another command has written the vector table since"
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


Totals = tuple[int, str]
"""Rows of a table, and their checksum."""


def settle(connection: Connection, plan: Plan, before: Totals | None, after: Totals, *, agrees: bool | None) -> Totals:
    """In the merge's transaction: keep what the next run may rely on; returns the totals of the whole vector table.

    ``before``, ``after``: the totals of what the plan has compared of the table, before and after the merge; if it has
    compared everything, ``before`` is None. ``agrees``: whether source and table agree; None if a comparison follows
    the merge, and then ``prove``.
    """
    queued = plan.queued
    if queued is None:
        forget(connection, plan.pipeline_id)
        return after
    if agrees is False:
        doubt(connection, plan.pipeline_id, "the run before has found rows that do not agree")
    if before is None:
        if agrees:
            prove(connection, plan, after)
        elif agrees is None:
            doubt(connection, plan.pipeline_id, "the run before has not compared source and vector table to its end")
        return after
    parts = {"pipeline_id": sql.Literal(plan.pipeline_id), "run_id": sql.Literal(plan.run_id)}
    parts |= {"rows": sql.Literal(after[0] - before[0]), "checksum": sql.Literal(int(after[1]) - int(before[1]))}
    # The ledger's totals, and not those of the plan: a merge whose answer was lost has carried them on already.
    mark = sql.Literal(Jsonb({"mark": queued.facts.get("mark")}))
    row = connection.execute(query("changes", "carry", facts=mark, **parts)).fetchone()
    if row is None:
        raise TargetError("the ledger does not know the queue of changes any more; run again")
    return row


def prove(connection: Connection, plan: Plan, table: Totals) -> None:
    """Record that the whole source was compared with the whole vector table, which has these totals, and agreed."""
    if plan.queued is not None:
        parts = {"pipeline_id": sql.Literal(plan.pipeline_id), "run_id": sql.Literal(plan.run_id)}
        parts |= {"rows": sql.Literal(table[0]), "checksum": sql.Literal(table[1])}
        connection.execute(query("changes", "record", facts=sql.Literal(Jsonb(plan.queued.facts)), **parts))


def doubt(connection: Connection, pipeline_id: PipelineId, why: str) -> None:
    """Let the next run compare everything; ``why`` is for people."""
    parts = {"pipeline_id": sql.Literal(pipeline_id), "why": sql.Literal(why)}
    connection.execute(query("changes", "doubt", **parts))


def note_served(connection: Connection, pipeline_id: PipelineId, resolved: Pipeline) -> None:
    """At the end of a good run: keep how it leaves what serves searches, for ``last_report``."""
    parts = {"pipeline_id": sql.Literal(pipeline_id), "served": _served(resolved)}
    connection.execute(query("changes", "note_served", **parts))


def last_report(
    connection: Connection, run: tuple[PipelineId, RunId], pipeline: Pipeline, resolved: Pipeline
) -> tuple[RunId, dict[str, Any]] | None:
    """The run before ``run`` and its report, if that was a good sync, and everything but rows is as it left it.

    None also if there is something else to do: rejected rows that each run tries again, jobs at a provider, or settings
    in the pipeline file that no run has used yet.
    """
    pipeline_id, run_id = run
    parts: dict[str, sql.Composable] = {"pipeline_id": sql.Literal(pipeline_id), "run_id": sql.Literal(run_id)}
    statement = query(
        "changes",
        "last_report",
        settings=sql.Literal(Jsonb(pipeline.model_dump(mode="json", exclude_none=True))),
        served=_served(resolved),
        retried=query("changes", "retried", **parts),
        **parts,
    )
    return connection.execute(statement).fetchone()


def _served(resolved: Pipeline) -> sql.Composed:
    schema, name = table_identifier(resolved.target.table)
    return query(
        "changes",
        "served",
        version=sql.Literal(version("rowvec")),
        store=sql.Literal(hashlib.sha256(resolved.artifacts.url.encode()).hexdigest()),
        schema=sql.Literal(schema),
        name=sql.Literal(name),
        functions=sql.Literal([cut_name(name, suffix) for suffix in _FUNCTIONS]),
    )


def forget(connection: Connection, pipeline_id: PipelineId) -> None:
    """Forget what is known of the pipeline's queue of changes: the next run compares everything."""
    connection.execute(query("changes", "forget", pipeline_id=sql.Literal(pipeline_id)))
