"""A source outside the target's database, read again: before a merge, after it, and for an audit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from psycopg import sql

from rowvec.ledger.pipelines import PipelineId
from rowvec.ledger.plans import Plan, within_scope
from rowvec.ledger.rejects import escaped_key
from rowvec.pipeline import Pipeline
from rowvec.postgres.connection import Connection, expect_few_keys, use_one_snapshot
from rowvec.postgres.fragments import key_digest, key_json, same_key
from rowvec.postgres.isolation import Refusal
from rowvec.postgres.queries import query
from rowvec.postgres.vector_table import VectorTable, count_rows
from rowvec.sources.diff import Block, Words, diff
from rowvec.sources.hash_stream import (
    checksum,
    copied_pairs,
    digest_of_key,
    pack_digests,
    pack_hashes,
    unpack_digests,
    without,
)
from rowvec.stages.extract.hashed_source import copy_changes, key_of, mark_changes, open_hashed_source, stored_pairs
from rowvec.stages.extract.queue_apart import QueueApart
from rowvec.stages.extract.request import check_loss
from rowvec.stages.totals import totals
from rowvec.vectors.fingerprint import Identity


@dataclass(frozen=True, slots=True, kw_only=True)
class HashComparison:
    """Source and vector table, read again and compared key by key."""

    planned: frozenset[tuple[str | None, ...]]
    """Keys of the differences that the plan, if one was given, has exactly as the source has them now."""
    differences: tuple[tuple[str, tuple[str | None, ...], str], ...]
    """For each row that is not right: missing, stale, orphaned or corrupt; its key; the reason."""
    source: tuple[int, str]
    """Number of rows that must have a vector, without the rejects, and their checksum.

    docs/explanation/consistency.md has its formula.
    """
    table: tuple[int, str]
    """The same of the vector table."""


def compare_by_hash(
    connection: Connection,
    pipeline: Pipeline,
    identity: Identity,
    pipeline_id: PipelineId,
    table: VectorTable,
    plan: Plan | None = None,
    queue: QueueApart | None = None,
) -> HashComparison:
    """Read source and vector table again and compare them: after a merge, with its plan, and for an audit.

    If the plan has compared only what is in ``queue``, so does this; rows that were queued since count as
    rows of the source that have no vector.
    """
    part = within_scope(table, plan and plan.scope)
    with open_hashed_source(connection, pipeline, identity, plan and plan.run_id) as source, connection.transaction():
        connection.pause_for_long()
        use_one_snapshot(connection)
        if queue is not None and plan is not None:
            queue.narrow(source, plan)
        if plan is not None and plan.scope is not None:
            expect_few_keys(connection)
        rejected = _rejected(connection, pipeline_id)
        source_totals = _Totals(rejected)
        stored = stored_pairs(connection, pipeline, identity, table, plan and plan.scope)
        gone = mark_changes(source, source_totals.counted(source.pairs()), stored)
        unstored: list[tuple[str, tuple[str | None, ...], str]] = []

        def refuse(row: pa.RecordBatch, refusal: Refusal) -> None:
            key, fingerprint = key_of(row, table.key), row.column("fingerprint")[0].as_py()
            digest, known_as = digest_of_key(key), escaped_key(key)
            if (digest, fingerprint) in rejected:
                return
            if (digest_of_key(known_as), fingerprint) in rejected:
                source_totals.leave_out(digest, fingerprint)
            else:
                unstored.append(("missing", tuple(known_as), f"the database cannot store this row: {refusal}"))

        copy_changes(connection, source, table.key, table.metadata, gone, refuse)
        parts = {"pipeline_id": sql.Literal(pipeline_id), "key_json": key_json(table.key, "d")}
        holds = query("rejects", "holds", row=sql.SQL("d"))
        connection.execute(query("hashed_source", "leave_out_rejects", holds=holds, **parts))
        found = connection.execute(
            query(
                "recheck",
                "differences",
                table=part,
                same_key=same_key(table.key, "t", "d", cast_right=True),
                key_json=key_json(table.key, "d"),
                stored_key_json=key_json(table.key, "t"),
                digest=key_digest(table.key),
                **_planned(table, plan),
            )
        ).fetchall()
        table_totals = totals(connection, table, part)
    return HashComparison(
        differences=(*((kind, tuple(key), reason) for kind, reason, key, _ in found), *unstored),
        planned=frozenset(tuple(key) for _, _, key, planned in found if planned),
        source=(source_totals.rows, str(source_totals.checksum)),
        table=table_totals,
    )


def _planned(table: VectorTable, plan: Plan | None) -> dict[str, sql.Composable]:
    if plan is None:
        return {"planned": sql.SQL("false"), "planned_gone": sql.SQL("false")}
    as_stored = same_key(table.key, "p", "t")
    as_taken = same_key(table.key, "p", "d", cast_right=True)
    return {
        "planned": query("recheck", "is_planned", plan=plan.rows, same_key=as_taken),
        "planned_gone": query("recheck", "is_planned_gone", plan=plan.rows, same_key=as_stored),
    }


def moved_since(connection: Connection, pipeline: Pipeline, plan: Plan, queue: QueueApart | None = None) -> list[bytes]:
    """Key digests of rows that are no longer as the plan saw them: changed, gone, or back.

    Reads the source's hashes again. The merge must write none of these rows and leave no vector of them. A row that was
    not planned and whose metadata alone has changed is not among them: its vector is right. Memory: 16 bytes per moved
    row, and 8 bytes per planned row. Raises ``DeleteLimitExceeded`` if the source has lost more rows than the pipeline
    allows.
    """
    table, stored = plan.table, 0
    parts = {"digest": key_digest(table.key), "plan": plan.rows}
    left_alone: sql.Composable = sql.SQL("")
    if not plan.direct:
        same = same_key(table.key, "p", "t")
        left_alone = query("recheck", "left_alone", table=plan.stored, same_key=same, **parts)
        stored = plan.queued.rows if plan.queued and plan.scope else count_rows(connection, table)
    pairs = query("recheck", "planned_pairs", left_alone=left_alone, **parts)
    found: list[Words] = []
    gone = 0
    with open_hashed_source(connection, pipeline, plan.identity, plan.run_id) as source, connection.transaction():
        if queue is not None:
            queue.narrow(source, plan)
        connection.pause_for_long()
        if plan.scope is not None:
            expect_few_keys(connection)
        deleted = _digests(connection, query("recheck", "planned_deletes", **parts))
        planned = _digests(connection, query("recheck", "planned_digests", **parts))
        for changes in diff(source.pairs(), copied_pairs(connection, pairs)):
            back = np.isin(changes.new.digest[:, 0], deleted)
            ours = np.isin(changes.metadata_only.digest[:, 0], planned)
            gone += int((~np.isin(changes.deleted[:, 0], planned)).sum())
            found += [
                changes.changed.digest,
                changes.metadata_only.digest[ours],
                changes.deleted,
                changes.new.digest[back],
            ]
    check_loss(gone + len(deleted), stored, pipeline)
    return [digest for words in found for digest in unpack_digests(words)]


class _Totals:
    """Counts and sums up a stream of pairs as it passes, without the rows that are known to have no vector."""

    def __init__(self, rejected: set[tuple[bytes, bytes]]) -> None:
        self._rejected = rejected
        self.rows = self.checksum = 0

    def counted(self, blocks: Iterator[Block]) -> Iterator[Block]:
        for block in blocks:
            for left in without([block], self._rejected):
                self.rows += len(left)
                self.checksum += checksum(left)
            yield block

    def leave_out(self, digest: bytes, fingerprint: bytes) -> None:
        """Take back a row that was counted: its reject has another key, because the database cannot store this one."""
        self.rows -= 1
        hashes = pack_hashes([fingerprint])
        self.checksum -= checksum(Block(digest=pack_digests([digest]), fingerprint=hashes, metadata_hash=hashes))


def _digests(connection: Connection, statement: sql.Composed) -> Words:
    """The first halves of key digests: enough to tell rows apart."""
    return pack_digests(row[0] for row in connection.execute(statement))[:, 0]


def _rejected(connection: Connection, pipeline_id: PipelineId) -> set[tuple[bytes, bytes]]:
    rows = connection.execute(query("recheck", "rejected", pipeline_id=sql.Literal(pipeline_id)))
    return {(digest_of_key(key), fingerprint) for key, fingerprint in rows if None not in key}
