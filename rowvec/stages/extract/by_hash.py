"""A source outside the target's database (files, images, another database), compared by hashes of its rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pyarrow as pa
from psycopg import sql

from rowvec.ledger.changes import Known, Waiting
from rowvec.ledger.pipelines import PipelineId
from rowvec.ledger.plans import Plan, count_batches, plan_rows, scope_rows, within_scope
from rowvec.ledger.rejects import add_refused_row
from rowvec.pipeline import Pipeline
from rowvec.postgres.connection import Connection, expect_few_keys, use_one_snapshot, without_blocking
from rowvec.postgres.fragments import as_own_type, key_digest, key_json, names
from rowvec.postgres.isolation import Refusal
from rowvec.postgres.queries import query
from rowvec.postgres.vector_table import VectorTable, opened_table
from rowvec.sources.change_queue import ChangeQueue
from rowvec.sources.hash_stream import digest_of_key, pack_digests
from rowvec.stages.extract.hashed_source import (
    key_of,
    mark_changes,
    open_hashed_source,
    read_out,
    reject_unusable,
    stored_pairs,
)
from rowvec.stages.extract.limits import refuse_beyond_limits
from rowvec.stages.extract.live import LivePlan
from rowvec.stages.extract.protocol import Evidence
from rowvec.stages.extract.queue_apart import QueueApart
from rowvec.stages.extract.recheck import compare_by_hash, moved_since
from rowvec.stages.extract.request import Request, among, check_empty, store_plan
from rowvec.stages.extract.scope import NotInstalled, leave_queue, with_missed
from rowvec.stages.images.upload import note_images
from rowvec.vectors.fingerprint import Identity


class HashComparedSource:
    """See ``SourceStrategy``: hashes of all rows are compared, and only rows that changed travel."""

    def __init__(
        self, connection: Connection, pipeline: Pipeline, identity: Identity, pipeline_id: PipelineId, *, moves: bool
    ) -> None:
        """``moves``: whether rows may change while a run is at work, without an error."""
        self._connection, self._pipeline = connection, pipeline
        self._identity, self._pipeline_id = identity, pipeline_id
        self._moves = moves
        self._changes: QueueApart | None = None
        source = pipeline.source
        self._former: QueueApart | None = None
        if source.kind == "postgres":
            queue = QueueApart(target=connection, pipeline=pipeline, pipeline_id=pipeline_id, source=source)
            self._changes, self._former = (queue, None) if source.is_queued else (None, queue)

    def at_rest(self, request: Request, before: Known) -> Waiting | None:
        """See ``SourceStrategy``."""
        return None if self._changes is None else self._changes.at_rest(request, before)

    def extract(self, request: Request) -> Plan:
        """See ``SourceStrategy``."""
        if self._former is not None and request.begin is None:
            leave_queue(self._connection, request, self._former.remove)
        try:
            return without_blocking(lambda: _extract(self._connection, request, self._changes))
        except NotInstalled as missing:
            if self._changes is not None:
                # Before the snapshot that relies on the triggers.
                self._changes.install(missing.queue)
            return without_blocking(lambda: _extract(self._connection, request, self._changes))

    def count_lost(self, plan: Plan) -> int:
        """See ``SourceStrategy``: a row has one vector."""
        return plan.counts.deleted

    def read_again(self, plan: Plan) -> LivePlan:
        """See ``SourceStrategy``. The hashes are read again only if rows may have moved."""
        moved = moved_since(self._connection, self._pipeline, plan, self._changes) if self._moves else []
        if self._changes is not None:
            self._changes.set_mark(plan)
        return LivePlan(connection=self._connection, plan=plan, moved=moved)

    def compare_merged(self, plan: Plan) -> Evidence | None:
        """See ``SourceStrategy``. The plan's rows and keys are dropped, as nothing reads them any more.

        If rows may move, only rows that the plan has as the source has them now are missing; the others are pending.
        """
        compared = compare_by_hash(
            self._connection, self._pipeline, self._identity, self._pipeline_id, plan.table, plan, self._changes
        )
        for table in (plan.rows, *([scope_rows(plan.run_id)] if plan.queued else [])):
            self._connection.execute(query("by_hash", "drop_plan", plan=table))
        wrong = [key for _, key, _ in compared.differences if not self._moves or key in compared.planned]
        missing = tuple("(" + ", ".join(map(str, key)) + ")" for key in wrong)
        if len(wrong) < len(compared.differences):
            return Evidence(pending=len(compared.differences) - len(wrong), missing=missing)
        return Evidence(missing=missing, source=compared.source, table=compared.table)

    def release(self, plan: Plan, table: tuple[int, str], *, agrees: bool) -> None:
        """See ``SourceStrategy``."""
        if self._changes is not None:
            self._changes.release(plan, table, agrees=agrees)

    def compare_for_audit(self, table: VectorTable) -> Callable[[], None]:
        """See ``SourceStrategy``."""
        found = compare_by_hash(self._connection, self._pipeline, self._identity, self._pipeline_id, table).differences
        values = {
            "keys": [json.dumps(key, ensure_ascii=False) for _, key, _ in found],
            "kinds": [kind for kind, _, _ in found],
            "reasons": [reason for _, _, reason in found],
        }

        def add() -> None:
            self._connection.execute(query("by_hash", "add_findings"), values)

        return add


def _extract(connection: Connection, request: Request, changes: QueueApart | None) -> Plan:
    """Compare source and vector table by hashes, read what changed, and store the plan.

    Memory does not grow with the rows, except for one byte per row of a file, or 16 bytes per changed row of a
    database.
    """
    pipeline, identity = request.pipeline, request.identity
    with open_hashed_source(connection, pipeline, identity, request.run_id) as source, connection.transaction():
        use_one_snapshot(connection)
        table, exists = opened_table(connection, pipeline, source.key, source.metadata)
        if changes is not None:
            request = changes.look(source, request, exists=exists)
            if request.scope is not None:
                expect_few_keys(connection)
        stored = stored_pairs(connection, pipeline, identity, table, request.scope) if exists else iter(())
        gone = mark_changes(source, source.pairs(), stored)
        check_empty(pipeline, source)

        def refuse(row: pa.RecordBatch, refusal: Refusal) -> None:
            texts = key_of(row, table.key)
            hashes = (row.column("fingerprint")[0].as_py(), row.column("metadata_hash")[0].as_py())
            whose = (sql.Literal(request.pipeline_id), request.run_id, table.key)
            add_refused_row(connection, whose, texts, hashes, refusal)
            if row.column("rowvec_action")[0].as_py() != "new":
                gone.append(pack_digests([digest_of_key(texts)]))  # its old version is outdated

        empty = source.blank if pipeline.source.empty == "skip" else 0
        read = read_out(connection, source, (table.key, table.metadata), gone, request, refuse)
        note_images(connection, pipeline.name, read.images)
        reject_unusable(connection, request, read.rejects, table.key)
        queue = changes and changes.of(table.key)
        return _store(connection, request, (table, queue), exists=exists, empty=empty)


def _store(
    connection: Connection, request: Request, to: tuple[VectorTable, ChangeQueue | None], *, exists: bool, empty: int
) -> Plan:
    """``to``: the vector table, and the source's queue of changes, if it has one."""
    table, queue = to
    parts = {"pipeline_id": sql.Literal(request.pipeline_id), "key_json": key_json(table.key, "d")}
    gone = query(
        "by_hash", "forget_gone_rejects", run_id=sql.Literal(request.run_id), **among(request, table.key), **parts
    )
    connection.execute(gone)
    holds = query("rejects", "holds_until_changed", row=sql.SQL("d"))
    connection.execute(query("hashed_source", "leave_out_rejects", holds=holds, **parts))
    counted = connection.execute(query("by_hash", "count_taken")).fetchone()
    new, changed, metadata_only, deleted = counted or (0, 0, 0, 0)
    batches = count_batches(new + changed, request.batch_weight)
    rows = plan_rows(request.run_id)
    typed = (
        sql.SQL("{} AS {}, ").format(as_own_type(c, "d"), sql.Identifier(c.name)) for c in (*table.key, *table.metadata)
    )
    connection.execute(
        query(
            "by_hash",
            "plan_rows",
            plan=rows,
            batch=query("request", "batch", batches=sql.Literal(batches)),
            typed=sql.SQL("").join(typed),
        )
    )
    if deleted:
        digest = key_digest(table.key)
        stored = within_scope(table, request.scope)
        deletes = query("by_hash", "plan_deletes", plan=rows, key=names(table.key), table=stored, digest=digest)
        connection.execute(deletes)
    if queue is not None:
        request = replace(request, queued=with_missed(connection, request, queue, rows))
    refuse_beyond_limits(connection, request, table)
    changes = (new, changed, metadata_only, deleted)
    return store_plan(connection, request, table, changes, batches, exists=exists, empty=empty)
