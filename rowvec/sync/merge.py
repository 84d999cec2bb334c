"""Merge: one transaction after which the vector table agrees with the source, as of that transaction's snapshot."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace

from psycopg import errors as pg
from psycopg import sql

from rowvec.errors import MergeConflict, TargetError, UsageError
from rowvec.index.build import drop_indexes
from rowvec.index.choice import LIMIT_NONZEROS, Sparsity
from rowvec.index.sparsity import widest
from rowvec.ledger.journal import begin_anew, unrecorded
from rowvec.ledger.plans import Plan
from rowvec.ledger.runs import RunId
from rowvec.pipeline import Pipeline
from rowvec.pipeline.model import Index
from rowvec.postgres.citus import distribute
from rowvec.postgres.columns import PgColumn
from rowvec.postgres.connection import Connection, use_one_snapshot, without_blocking
from rowvec.postgres.fragments import is_exact, key_digest, key_json, names, same_key
from rowvec.postgres.locks import LockSpace
from rowvec.postgres.queries import query
from rowvec.postgres.vector_table import VectorTable
from rowvec.runtime.telemetry import traced
from rowvec.sources.postgres import is_beside
from rowvec.sync.batch import Batch
from rowvec.sync.extract.chunks import ChunkedQuery, Rows, is_joined, source_rows
from rowvec.sync.extract.request import check_loss
from rowvec.sync.extract.stage import bring_chunks_up_to_date
from rowvec.sync.work import open_stage

# Sources whose rows come and go while a run is at work. A CSV or Parquet file that changes is an error instead.
_MOVING = frozenset({"postgres", "images"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """What the merge wrote, and what it proves."""

    upserted: int
    updated: int
    """Rows whose metadata alone was written."""
    deleted: int
    pending: int
    """Rows of the source that changed after they were read: the next round's work."""
    missing: tuple[str, ...]
    """Keys of rows that were planned and have no vector all the same: there should be none."""
    source_rows: int | None
    """Rows that are to have a vector, in the merge's own snapshot; None where the source cannot be joined."""
    table_rows: int
    source_checksum: str | None
    table_checksum: str
    seconds: float = 0.0


def merge(connection: Connection, pipeline: Pipeline, plan: Plan) -> Merged:
    """Bring the plan's rows into the vector table.

    Where the source is in the same database it is read again, in the merge's own snapshot: a staged row is taken only
    if its fingerprint still holds, and every vector whose row is gone or has other content by now is deleted.
    Otherwise the plan is taken at its word, less the rows of another database, or images, that have moved since;
    ``compare`` must follow. Raises ``MergeConflict`` where somebody else wrote the vector table.
    """
    source = pipeline.source
    joined = is_joined(pipeline)
    plan = _taken_up(connection, plan)
    moved: list[bytes] = []
    if source.chunks is not None and not is_beside(pipeline):
        # The chunks stand for the source: they are to be as it is now, or nearly.
        bring_chunks_up_to_date(connection, pipeline, plan.identity, plan.pipeline_id)
    elif source.kind in _MOVING and not joined:
        from rowvec.sync.extract.recheck import moved as moved_since

        moved = moved_since(connection, pipeline, plan)
    try:
        return without_blocking(lambda: _merge_at_once(connection, pipeline, plan, moved, joined=joined))
    except (pg.SerializationFailure, pg.DeadlockDetected) as error:
        raise MergeConflict(
            "the vector table was written by somebody else during the merge; it is done anew"
        ) from error


def _merge_at_once(
    connection: Connection, pipeline: Pipeline, plan: Plan, moved: list[bytes], *, joined: bool
) -> Merged:
    with connection.transaction():
        _begin(connection, plan)
        _check_staging(connection, plan)
        _remember_keys(connection, plan)
        if joined:
            rows = source_rows(connection, pipeline, plan.identity, plan.pipeline_id)
            _read_source_again(connection, plan, rows)
        else:
            _forget_moved_keys(connection, plan, moved)
            connection.execute(query("merge", "live_planned", key=names(plan.table.key), plan=plan.rows))
        connection.execute(query("merge", "analyze_live"))
        return _merge(connection, pipeline, plan, joined=joined)


def compare(connection: Connection, pipeline: Pipeline, plan: Plan, merged: Merged) -> Merged:
    """Read a source that cannot be joined again, and say how the merged table agrees with it.

    A file does not change under a run (one that does is an error), so what differs is missing. Rows of another
    database, and images, may have changed since they were read: they are the next round's.
    """
    from rowvec.sync.extract.recheck import compare_apart  # late: pyarrow's file readers are needed only here

    found = compare_apart(connection, pipeline, plan.identity, plan.pipeline_id, plan.table, plan)
    connection.execute(query("merge", "drop", table=plan.rows))
    moving = pipeline.source.kind in _MOVING
    wrong = [key for _, key, _ in found.found if not moving or key in found.planned]
    missing = tuple("(" + ", ".join(map(str, key)) + ")" for key in wrong)
    if len(wrong) < len(found.found):
        return replace(merged, pending=len(found.found) - len(wrong), missing=missing)
    return replace(
        merged,
        missing=missing,
        source_rows=found.source_rows,
        source_checksum=found.source_checksum,
        table_rows=found.table_rows,
        table_checksum=found.table_checksum,
    )


def _taken_up(connection: Connection, plan: Plan) -> Plan:
    """The plan, or what is left to do of it where it has been merged and only the answer was lost on its way to us.

    Staging goes with the merge's own transaction. What is left is to look once more: nothing is loaded again.
    """
    names_ = {"staging": plan.staging.as_string(connection), "plan": plan.rows.as_string(connection)}
    row = connection.execute(query("merge", "what_is_there"), names_).fetchone()
    staging_there, plan_there = row or (True, True)
    if not plan_there:
        key = names((*plan.table.key, *plan.table.metadata))
        connection.execute(query("merge", "empty_plan", plan=plan.rows, columns=key, table=plan.table.identifier))
    if staging_there or not (plan.batches or plan.direct):
        return plan
    return replace(plan, batches=0, direct=False)


def _check_staging(connection: Connection, plan: Plan) -> None:
    """Staging is not logged: a database that crashed meanwhile has it, and has it empty."""
    if not plan.batches:
        return
    statement = query("merge", "staged", staging=plan.staging, run_id=sql.Literal(plan.run_id))
    staged, loaded = connection.execute(statement).fetchone() or (0, 0)
    if staged != loaded:
        raise TargetError(
            f"staging has {staged:,} of {loaded:,} rows: the database was restarted meanwhile; nothing was changed. "
            "Run again: what was embedded is kept, and nothing is paid for twice"
        )


def _begin(connection: Connection, plan: Plan) -> None:
    use_one_snapshot(connection)
    # Before the snapshot, for which an index build anywhere in the database would wait.
    tables = [plan.rows, plan.staging] if plan.batches or plan.direct else [plan.rows]
    connection.execute(query("merge", "keep", tables=sql.SQL(", ").join(tables)))
    connection.execute(query("merge", "lock"), {"space": LockSpace.MERGE, "pipeline_id": plan.pipeline_id})


def _remember_keys(connection: Connection, plan: Plan) -> None:
    """What may change now is written down for the journal, and becomes true or void together with the merge."""
    if plan.direct:
        begin_anew(connection, plan.pipeline_id)
        return
    parts = {"unrecorded": unrecorded(plan.pipeline_id), "key": names(plan.table.key), "plan": plan.rows}
    connection.execute(query("journal", "remember_table", **parts))
    connection.execute(query("journal", "remember_planned", **parts))


def _forget_moved_keys(connection: Connection, plan: Plan, moved: list[bytes]) -> None:
    """Rows that changed since they were read are the next round's; their old vectors go: stale is worse than none."""
    if not moved:
        return
    parts = {"digest": key_digest(plan.table.key), "moved": sql.Literal(moved)}
    for table in [plan.rows, plan.staging] if plan.batches else [plan.rows]:
        connection.execute(query("merge", "forget_moved_keys", table=table, **parts))
    if not plan.direct:
        parts |= {"key": names(plan.table.key), "unrecorded": unrecorded(plan.pipeline_id)}
        connection.execute(query("merge", "delete_moved_keys", table=plan.table.identifier, **parts))


def _read_source_again(connection: Connection, plan: Plan, rows: Rows) -> None:
    connection.execute(query("merge", "live", key=names(plan.table.key), rows=rows.rows))
    waiting = (
        rows.waiting if isinstance(rows, ChunkedQuery) else query("merge", "none_waits", key=names(plan.table.row_key))
    )
    connection.execute(query("merge", "live_waiting", waiting=waiting))


def _merge(connection: Connection, pipeline: Pipeline, plan: Plan, *, joined: bool) -> Merged:
    upserted = updated = deleted = 0
    # Nothing was to do, and nothing has come since: the joins that look for what to delete, to wait for and to miss
    # would each find nothing.
    settled = joined and not plan.direct and not plan.counts.anything and _agree(connection, plan)
    if plan.direct:
        upserted = _publish(connection, plan, joined=joined)
    elif not settled:
        if joined:
            _check_deletes_again(connection, pipeline, plan)
        # Replacements first: what is deleted afterwards has none.
        upserted = _upsert(connection, plan, joined=joined) if plan.batches else 0
        updated = _update_metadata(connection, plan)
        deleted = _delete(connection, plan, joined=joined)
    _forget_mended_rejects(connection, plan)
    pending, missing = _without_vector(connection, plan) if joined and not settled else (0, ())
    source = totals(connection, plan.table, sql.Identifier("live")) if joined else (None, None)
    table_rows, table_checksum = totals(connection, plan.table, plan.table.identifier)
    connection.execute(query("merge", "merged"), {"run_id": plan.run_id})
    # A source that cannot be joined is compared with its plan once more.
    for leftover in (plan.staging, plan.rows) if joined else (plan.staging,):
        connection.execute(query("merge", "drop", table=leftover))
    return Merged(
        upserted=upserted,
        updated=updated,
        deleted=deleted,
        pending=pending,
        missing=missing,
        source_rows=source[0],
        table_rows=table_rows,
        source_checksum=source[1],
        table_checksum=table_checksum,
    )


def _agree(connection: Connection, plan: Plan) -> bool:
    """Whether each row of the source has its vector and metadata, and no other row is in the vector table."""
    if connection.execute(query("merge", "any_reject"), {"pipeline_id": plan.pipeline_id}).fetchone() != (False,):
        return False
    statement = query("merge", "agree", table=plan.table.identifier, same_key=_same(plan, "l", "t"))
    return connection.execute(statement).fetchone() == (True,)


def _publish(connection: Connection, plan: Plan, *, joined: bool) -> int:
    """A first load: the staging table, less what has moved, gets its key and becomes the vector table."""
    table = plan.table
    if joined:
        connection.execute(query("merge", "forget_moved", staging=plan.staging, same_key=_same(plan, "l", "s")))
    publish(connection, table, plan.staging)
    return totals(connection, table, table.identifier)[0]


def publish(connection: Connection, table: VectorTable, staging: sql.Identifier) -> None:
    """Give a loaded table (in the schema ``rowvec``) its key and make it the vector table; in a transaction."""
    connection.execute(query("merge", "primary_key", staging=staging, key=names(table.key)))
    # Into its schema first: there no other table has its name, and the ledger's may.
    connection.execute(query("merge", "publish_schema", staging=staging, schema=sql.Identifier(table.schema)))
    moved = sql.Identifier(table.schema, staging.as_string().rpartition(".")[2].strip('"'))
    connection.execute(query("merge", "publish", staging=moved, name=sql.Identifier(table.name)))
    distribute(connection, table)
    connection.execute(query("merge", "analyze_table", table=table.identifier))


def _upsert(connection: Connection, plan: Plan, *, joined: bool) -> int:
    table = plan.table
    if joined:
        same = _same(plan, "l", "s", cast_right=True)
        connection.execute(query("merge", "forget_moved", staging=plan.staging, same_key=same))
    others = [c for c in table.columns if c not in table.key or not is_exact(c)]
    statement = query(
        "merge",
        "upsert",
        table=table.identifier,
        columns=names(table.columns),
        staged_columns=sql.SQL(", ").join(_cast("s", c) for c in table.columns[:-2]),
        run_id=sql.Literal(plan.run_id),
        staging=plan.staging,
        key=names(table.key),
        assignments=sql.SQL(", ").join(sql.SQL("{0} = excluded.{0}").format(sql.Identifier(c.name)) for c in others),
    )
    return connection.execute(statement).rowcount


def _update_metadata(connection: Connection, plan: Plan) -> int:
    table = plan.table
    written = (*(c for c in table.key if not is_exact(c)), *table.metadata)
    assigned = (sql.SQL("{0} = p.{0}, ").format(sql.Identifier(c.name)) for c in written)
    statement = query(
        "merge",
        "update_metadata",
        table=table.identifier,
        assignments=sql.SQL("").join(assigned),
        plan=plan.rows,
        same_key_live=_same(plan, "l", "p"),
        same_key=_same(plan, "t", "p"),
    )
    return connection.execute(statement).rowcount


def _delete(connection: Connection, plan: Plan, *, joined: bool) -> int:
    if joined:
        statement = query(
            "merge",
            "delete_gone",
            table=plan.table.identifier,
            same_key=_same(plan, "l", "t"),
            key=names(plan.table.key),
            unrecorded=unrecorded(plan.pipeline_id),
        )
    else:
        inexact = [sql.Identifier(c.name) for c in plan.table.key if not is_exact(c)]
        statement = query(
            "merge",
            "delete_planned",
            table=plan.table.identifier,
            plan=plan.rows,
            same_key=_same(plan, "p", "t"),
            and_same_text=sql.SQL("").join(sql.SQL(" AND p.{0}::text = t.{0}::text").format(name) for name in inexact),
        )
    return connection.execute(statement).rowcount


def _check_deletes_again(connection: Connection, pipeline: Pipeline, plan: Plan) -> None:
    """The source may have been emptied since the plan was made; rolling back costs nothing that was paid for."""
    row_key = plan.table.row_key
    statement = query(
        "merge",
        "count_gone",
        table=plan.table.identifier,
        same_row=same_key(row_key, "l", "t"),
        same_row_waiting=same_key(row_key, "w", "t"),
    )
    gone, stored = connection.execute(statement).fetchone() or (0, 0)
    check_loss(gone, stored, pipeline)


def _forget_mended_rejects(connection: Connection, plan: Plan) -> None:
    connection.execute(
        query(
            "merge",
            "rejects_mended",
            table=plan.table.identifier,
            pipeline_id=sql.Literal(plan.pipeline_id),
            key_json=key_json(plan.table.key, "t"),
        )
    )


def _without_vector(connection: Connection, plan: Plan) -> tuple[int, tuple[str, ...]]:
    """How many rows of the source came too late for this round, and the keys of those that did not and are missing.

    What is left in ``live`` afterwards is what the vector table must hold, no more and no less.
    """
    parts = {"pipeline_id": sql.Literal(plan.pipeline_id), "key_json": key_json(plan.table.key, "l")}
    connection.execute(query("merge", "rejects_gone", **parts))
    connection.execute(
        query(
            "merge",
            "without_vector",
            table=plan.table.identifier,
            plan=plan.rows,
            live_key=names(plan.table.key, "l"),
            same_key_t=_same(plan, "t", "l"),
            same_key_p=_same(plan, "p", "l"),
            **parts,
        )
    )
    (pending,) = connection.execute(
        query("merge", "pending", table=plan.table.identifier, same_key_t=_same(plan, "t", "l"))
    ).fetchone() or (0,)
    missing = connection.execute(query("merge", "missing", key_json=key_json(plan.table.key, "w"))).fetchall()
    connection.execute(query("merge", "forget_pending", same_key=_same(plan, "w", "l")))
    connection.execute(query("merge", "forget_unembeddable", **parts))
    return pending, tuple(key for (key,) in missing)


def totals(connection: Connection, table: VectorTable, rows: sql.Identifier) -> tuple[int, str]:
    """Number and order-independent checksum of rows that have the table's key and a fingerprint."""
    statement = query("merge", "totals", digest=key_digest(table.key), table=rows)
    count, checksum = connection.execute(statement).fetchone() or (0, 0)
    return count, str(checksum)


def _same(plan: Plan, left: str, right: str, *, cast_right: bool = False) -> sql.Composed:
    if not cast_right:
        return same_key(plan.table.key, left, right)
    return sql.SQL(" AND ").join(
        sql.SQL("{} = {}").format(sql.Identifier(left, c.name), _cast(right, c)) for c in plan.table.key
    )


def _cast(alias: str, column: PgColumn) -> sql.Composed:
    """A staged column in its own type: exotic ones travel as text."""
    return sql.SQL("{}::{}").format(sql.Identifier(alias, column.name), column.type_sql)


def make_room(connection: Connection, plan: Plan, wanted: Index) -> str | None:
    """Before a merge: an index that cannot take what is staged goes, or the merge would fail; what there is to say.

    Searches are exact from then on. Raises ``UsageError`` where the pipeline insists on the index.
    """
    table = plan.table
    if not plan.batches or not table.layout.is_sparse:
        return None
    most, key = widest(connection, table, plan.staging)
    if most <= LIMIT_NONZEROS:
        return None
    found = Sparsity(mean=0, most=most, key=key)
    if wanted.kind == "hnsw":
        raise UsageError(found.refused())
    dropped = drop_indexes(connection, table)
    return f"dropped {', '.join(dropped)}: {found.written()}" if dropped else None


logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One plan, its batches, and the merge that ended it."""

    plan: Plan
    batches: tuple[Batch, ...]
    merged: Merged
    images_again: int = 0
    """Those that were put into the store a second time, for it had lost them."""

    @property
    def seconds(self) -> tuple[tuple[str, float], ...]:
        """Time spent in the stages that are not a batch's."""
        return (("extract", self.plan.seconds), ("merge", self.merged.seconds))


@traced("merge")
def run(pipeline: Pipeline, run_id: RunId) -> Merged:
    """One transaction, after which the vector table agrees with the source."""
    started = time.monotonic()
    with open_stage(pipeline, run_id, "merge") as work:
        connection, plan = work.connection, work.plan
        if notes := make_room(connection, plan, work.pipeline.index):
            logger.warning("%s.%s: %s", plan.table.schema, plan.table.name, notes)
        merged = merge(connection, work.pipeline, plan)
        if not is_joined(work.pipeline):
            merged = compare(connection, work.pipeline, plan, merged)
    return replace(merged, seconds=time.monotonic() - started)
