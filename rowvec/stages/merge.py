"""Merge: one transaction after which the vector table agrees with the source, as of that transaction's snapshot."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace

from psycopg import errors as pg
from psycopg import sql

from rowvec.errors import MergeConflict, TargetError, UsageError
from rowvec.index.build import drop_indexes
from rowvec.index.choice import Sparsity
from rowvec.index.sparsity import widest
from rowvec.ledger.changes import known, settle
from rowvec.ledger.journal import restart_journal, unrecorded
from rowvec.ledger.plans import Plan
from rowvec.ledger.runs import Run
from rowvec.pipeline import Pipeline
from rowvec.pipeline.indexes import AnyIndex
from rowvec.postgres.connection import Connection, expect_few_keys, use_one_snapshot, without_blocking
from rowvec.postgres.fragments import key_json, names
from rowvec.postgres.locks import LockSpace
from rowvec.postgres.queries import query
from rowvec.postgres.tables.partitions import tables_of
from rowvec.runtime.telemetry import traced
from rowvec.searches.hybrid import Hybrid, has_text_index
from rowvec.searches.index_kinds.hnsw import LIMIT_NONZEROS
from rowvec.stages.batch import Batch
from rowvec.stages.extract.open import open_source
from rowvec.stages.extract.protocol import LiveRows, SourceStrategy
from rowvec.stages.totals import exchanged, totals
from rowvec.stages.work import open_stage
from rowvec.stages.writes import Written, publish_rows, refuse_many_words, write

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """What the merge wrote, and what it proves."""

    upserted: int
    updated: int
    """Rows whose metadata alone was written."""
    deleted: int
    pending: int
    """Rows of the source that changed after they were read; the next sync embeds them."""
    missing: tuple[str, ...]
    """Keys of rows that were planned and have no vector. There should be none."""
    source_rows: int | None
    """Rows that must have a vector; None if the source changed while it was compared after the merge."""
    table_rows: int
    source_checksum: str | None
    table_checksum: str
    seconds: float = 0.0


def merge(connection: Connection, source: SourceStrategy, plan: Plan, hybrid: Hybrid | None = None) -> Merged:
    """Bring the plan's rows into the vector table.

    A source in the same database is read again in the merge's own snapshot: a staged row is written only if its
    fingerprint is still valid, and every vector whose row is gone or has other content is deleted. For any other source
    the merge writes what the plan says, without the rows that have moved since; ``compare_with_source`` must follow.
    ``hybrid``: how the words of the table are searched, if they are.
    Raises ``MergeConflict`` if another process wrote the vector table during the merge.
    """
    plan = _unmerged_part(connection, plan)
    live = source.read_again(plan)
    try:
        return without_blocking(lambda: _merge_at_once(connection, plan, live, hybrid))
    except (pg.SerializationFailure, pg.DeadlockDetected) as error:
        raise MergeConflict(
            "another process wrote the vector table during the merge; nothing was changed, and the merge is tried again"
        ) from error


def _merge_at_once(connection: Connection, plan: Plan, live: LiveRows, hybrid: Hybrid | None) -> Merged:
    with connection.transaction():
        _begin(connection, plan)
        _check_staging(connection, plan)
        _remember_keys(connection, plan)
        live.make()
        connection.execute(query("merge", "analyze_live"))
        return _merge(connection, plan, live, hybrid)


def compare_with_source(source: SourceStrategy, plan: Plan, merged: Merged) -> Merged:
    """What the merge proves, after the source was read again if the merge's own transaction could not read it."""
    evidence = source.compare_merged(plan)
    if evidence is None:
        return merged
    merged = replace(merged, pending=evidence.pending, missing=evidence.missing)
    if evidence.source is None or evidence.table is None:
        return merged
    table = evidence.table
    if plan.scope is not None:
        table = merged.table_rows, merged.table_checksum
    source_rows, source_checksum = exchanged(table, evidence.table, evidence.source)
    return replace(
        merged,
        source_rows=source_rows,
        source_checksum=source_checksum,
        table_rows=table[0],
        table_checksum=table[1],
    )


def _unmerged_part(connection: Connection, plan: Plan) -> Plan:
    """The plan, or what is left of it if it is merged already and only the answer of the commit was lost.

    The merge's own transaction drops staging. Only the comparison is left to do then: nothing is loaded again.
    """
    tables = {"staging": plan.staging.as_string(connection), "plan": plan.rows.as_string(connection)}
    row = connection.execute(query("merge", "what_is_there"), tables).fetchone()
    staging_there, plan_there = row or (True, True)
    if not plan_there:
        key = names((*plan.table.key, *plan.table.metadata))
        connection.execute(query("merge", "empty_plan", plan=plan.rows, columns=key, table=plan.table.identifier))
        if plan.scope is not None:
            _nothing_more(connection, plan, plan.scope)
    if staging_there or not (plan.batches or plan.direct):
        return plan
    return replace(plan, batches=0, direct=False)


def _nothing_more(connection: Connection, plan: Plan, scope: sql.Identifier) -> None:
    """A merged plan of a part, of which no key is left to compare.

    Raises ``TargetError`` if what was merged did not agree: the answer that said which rows is lost.
    """
    connection.execute(
        query("merge", "empty_scope", scope=scope, key=names(plan.table.key), table=plan.table.identifier)
    )
    after = known(connection, plan.pipeline_id, plan.run_id)
    if after is None or after.doubt is not None:
        raise TargetError(
            "the merge was made, its answer was lost, and what it compared did not agree: run again, which compares "
            "everything"
        )


def _check_staging(connection: Connection, plan: Plan) -> None:
    """Raise ``TargetError`` if staging lost rows: it is not logged, so a database that crashed has it, but empty."""
    if not plan.batches:
        return
    statement = query("merge", "staged", staging=plan.staging, run_id=sql.Literal(plan.run_id))
    staged, loaded = connection.execute(statement).fetchone() or (0, 0)
    if staged != loaded:
        raise TargetError(
            f"staging has {staged:,} of {loaded:,} rows: the database was restarted during the run; nothing was "
            "changed. Run again: what was embedded is kept, and nothing is paid for twice"
        )


def _begin(connection: Connection, plan: Plan) -> None:
    use_one_snapshot(connection)
    if plan.scope is not None:
        expect_few_keys(connection)
    # Take the locks before the snapshot, because every index build in the database waits for old snapshots to end.
    tables = [plan.rows, plan.staging] if plan.batches or plan.direct else [plan.rows]
    connection.execute(query("merge", "keep", tables=sql.SQL(", ").join(tables)))
    connection.execute(query("merge", "lock"), {"space": LockSpace.MERGE, "pipeline_id": plan.pipeline_id})


def _remember_keys(connection: Connection, plan: Plan) -> None:
    """Write down for the journal which keys the merge may change; this commits or rolls back with the merge."""
    if plan.direct:
        restart_journal(connection, plan.pipeline_id)
        return
    parts = {"unrecorded": unrecorded(plan.pipeline_id), "key": names(plan.table.key), "plan": plan.rows}
    connection.execute(query("journal", "remember_table", **parts))
    connection.execute(query("journal", "remember_planned", **parts))
    if plan.scope is not None:
        # Without statistics, joins of the few keys with the vector table read all of it.
        connection.execute(query("merge", "analyze_table", table=unrecorded(plan.pipeline_id)))


def _merge(connection: Connection, plan: Plan, live: LiveRows, hybrid: Hybrid | None) -> Merged:
    written = Written()
    before = None if plan.scope is None else totals(connection, plan.table, plan.stored)
    settled = live.agrees()
    if plan.direct:
        live.drop_moved()
        written = Written(upserted=publish_rows(connection, plan))
    elif not settled:
        live.check_deletes()
        if plan.batches:
            live.drop_moved()
        written = write(connection, plan, live)
    # The extract has looked at the words of the rows that it planned, and a valid index looks at each row.
    if hybrid and not plan.direct and not _has_text_indexes(connection, plan, hybrid):
        settled = not refuse_many_words(connection, plan, hybrid.language) and settled
    _forget_fixed_rejects(connection, plan)
    evidence = live.account(settled=settled)
    table = totals(connection, plan.table, plan.stored)
    agrees = None if evidence.source is None else evidence.source == table and not evidence.missing
    connection.execute(query("merge", "merged"), {"run_id": plan.run_id})
    live.release()
    whole = settle(connection, plan, before, table, agrees=agrees)
    source_rows, source_checksum = exchanged(whole, table, evidence.source) if evidence.source else (None, None)
    for leftover in live.leftovers:
        connection.execute(query("merge", "drop", table=leftover))
    return Merged(
        upserted=written.upserted,
        updated=written.updated,
        deleted=written.deleted,
        pending=evidence.pending,
        missing=evidence.missing,
        source_rows=source_rows,
        table_rows=whole[0],
        source_checksum=source_checksum,
        table_checksum=whole[1],
    )


def _has_text_indexes(connection: Connection, plan: Plan, hybrid: Hybrid) -> bool:
    return all(has_text_index(connection, one, hybrid) for one in tables_of(connection, plan.table))


def _forget_fixed_rejects(connection: Connection, plan: Plan) -> None:
    connection.execute(
        query(
            "merge",
            "forget_fixed_rejects",
            table=plan.stored,
            pipeline_id=sql.Literal(plan.pipeline_id),
            key_json=key_json(plan.table.key, "t"),
        )
    )
    connection.execute(query("merge", "forget_removed", pipeline_id=sql.Literal(plan.pipeline_id)))


def make_room(connection: Connection, plan: Plan, wanted: AnyIndex) -> str | None:
    """Before a merge: drop an index that cannot hold the staged vectors, or the merge would fail; what was dropped.

    Searches are exact from then on. Raises ``UsageError`` if the pipeline requires the index.
    """
    table = plan.table
    if not plan.batches or not table.layout.is_sparse:
        return None
    most, key = widest(connection, table, plan.staging)
    if most <= LIMIT_NONZEROS:
        return None
    found = Sparsity(mean=0, most=most, key=key)
    if wanted.kind not in ("auto", "none"):
        raise UsageError(found.refused(wanted.kind))
    dropped = drop_indexes(connection, table)
    return f"dropped {', '.join(dropped)}: {found.written()}" if dropped else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One plan, its batches, and the merge that ended it."""

    plan: Plan
    batches: tuple[Batch, ...]
    merged: Merged
    images_again: int = 0
    """Images that the store had lost, and that were uploaded again."""

    @property
    def seconds(self) -> tuple[tuple[str, float], ...]:
        """Seconds spent in the stages that do not belong to a batch."""
        return (("extract", self.plan.seconds), ("merge", self.merged.seconds))


@traced("merge")
def run(pipeline: Pipeline, run: Run) -> Merged:
    """One transaction, after which the vector table agrees with the source."""
    started = time.monotonic()
    with open_stage(pipeline, run, "merge") as work:
        connection, plan = work.connection, work.plan
        if notes := make_room(connection, plan, work.pipeline.index):
            logger.warning("%s.%s: %s", plan.table.schema, plan.table.name, notes)
        source = open_source(connection, work.pipeline, plan.identity, plan.pipeline_id)
        hybrid = Hybrid(language=work.pipeline.search.language) if work.pipeline.search.hybrid else None
        merged = merge(connection, source, plan, hybrid)
        merged = compare_with_source(source, plan, merged)
        agrees = not merged.missing and merged.source_rows in (None, merged.table_rows)
        agrees &= merged.source_checksum in (None, merged.table_checksum)
        source.release(plan, (merged.table_rows, merged.table_checksum), agrees=agrees)
    return replace(merged, seconds=time.monotonic() - started)
