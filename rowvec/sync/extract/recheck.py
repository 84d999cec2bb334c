"""A source in another database, compared once more after the merge."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from psycopg import sql

from rowvec.ledger.pipelines import PipelineId
from rowvec.ledger.plans import Plan
from rowvec.pipeline import Pipeline
from rowvec.postgres.connection import Connection
from rowvec.postgres.fragments import key_digest, key_json
from rowvec.postgres.queries import query
from rowvec.postgres.vector_table import VectorTable, count_rows
from rowvec.sources.diff import Block, Words, diff
from rowvec.sources.hash_stream import checksum, copied_pairs, pack_digests, unpack_digests, without
from rowvec.sources.hash_stream import key_digest as digest_of
from rowvec.sync.extract.hashed_source import mark, opened, stored_pairs, take
from rowvec.sync.extract.request import check_loss
from rowvec.vectors.fingerprint import Identity


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Source and vector table, read again and compared key by key."""

    planned: frozenset[tuple[str | None, ...]]
    """Keys of those that a plan, where one was given, has as the source has them now."""
    found: tuple[tuple[str, tuple[str | None, ...], str], ...]
    """What is not right: missing, stale, orphaned or corrupt; the key; the reason."""
    source_rows: int
    """Rows that are to have a vector, less those in the rejects."""
    source_checksum: str
    """See docs/consistency.md; ``totals`` in sql/merge.sql gives the vector table's."""
    table_rows: int
    table_checksum: str

    @property
    def counts(self) -> Counter[str]:
        """How many of each kind."""
        return Counter(kind for kind, _, _ in self.found)


def compare_apart(
    connection: Connection,
    pipeline: Pipeline,
    identity: Identity,
    pipeline_id: PipelineId,
    table: VectorTable,
    plan: Plan | None = None,
) -> Comparison:
    """Read source and vector table again and compare them; for the end of a run, and for an audit."""
    with opened(connection, pipeline, identity, plan and plan.run_id) as source, connection.transaction():
        connection.execute(query("extract", "begin"))
        totals = _Totals(_rejected(connection, pipeline_id))
        stored = stored_pairs(connection, pipeline, identity, table)
        gone = mark(source, totals.counted(source.pairs()), stored)
        take(connection, source, table.key, table.metadata, gone)
        parts = {"pipeline_id": sql.Literal(pipeline_id), "key_json": key_json(table.key, "d")}
        connection.execute(query("extract_apart", "leave_out_rejects", **parts))
        found = connection.execute(
            query(
                "extract_apart",
                "differences",
                table=table.identifier,
                same_key=_same_key(table),
                key_json=key_json(table.key, "d"),
                stored_key_json=key_json(table.key, "t"),
                digest=key_digest(table.key),
                **_planned(table, plan),
            )
        ).fetchall()
        digest = key_digest(table.key)
        rows, summed = connection.execute(
            query("merge", "totals", digest=digest, table=table.identifier)
        ).fetchone() or (0, 0)
    return Comparison(
        found=tuple((kind, tuple(key), reason) for kind, reason, key, _ in found),
        planned=frozenset(tuple(key) for _, _, key, planned in found if planned),
        source_rows=totals.rows,
        source_checksum=str(totals.checksum),
        table_rows=rows,
        table_checksum=str(summed),
    )


def _planned(table: VectorTable, plan: Plan | None) -> dict[str, sql.Composable]:
    if plan is None:
        return {"planned": sql.SQL("false"), "planned_gone": sql.SQL("false")}
    as_stored = sql.SQL(" AND ").join(sql.SQL("p.{0} = t.{0}").format(sql.Identifier(c.name)) for c in table.key)
    as_taken = sql.SQL(" AND ").join(
        sql.SQL("p.{0} = d.{0}::{1}").format(sql.Identifier(c.name), c.type_sql) for c in table.key
    )
    return {
        "planned": query("extract_apart", "is_planned", plan=plan.rows, same_key=as_taken),
        "planned_gone": query("extract_apart", "is_planned_gone", plan=plan.rows, same_key=as_stored),
    }


def moved(connection: Connection, pipeline: Pipeline, plan: Plan) -> list[bytes]:
    """Key digests of rows that are no longer as the plan saw them: changed, gone, or back.

    Reads the source's hashes once more; for the merge, which must take none of these rows and leave no vector of them.
    Rows that were not planned and whose metadata alone has changed are not among them: their vector is right. Memory:
    16 bytes for each, and 8 for each that is planned. Raises ``DeleteLimitExceeded`` where the source has lost more
    rows than the pipeline allows.
    """
    table, stored = plan.table, 0
    parts = {"digest": key_digest(table.key), "plan": plan.rows}
    left_alone: sql.Composable = sql.SQL("")
    if not plan.direct:
        same = sql.SQL(" AND ").join(sql.SQL("p.{0} = t.{0}").format(sql.Identifier(c.name)) for c in table.key)
        left_alone = query("extract_apart", "left_alone", table=table.identifier, same_key=same, **parts)
        stored = count_rows(connection, table)
    pairs = query("extract_apart", "planned_pairs", left_alone=left_alone, **parts)
    found: list[Words] = []
    gone = 0
    with opened(connection, pipeline, plan.identity, plan.run_id) as source, connection.transaction():
        deleted = _digests(connection, query("extract_apart", "planned_deletes", **parts))
        planned = _digests(connection, query("extract_apart", "planned_digests", **parts))
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
    """Counts and sums up a stream of pairs on its way, less the rows that are known to have no vector."""

    def __init__(self, rejected: set[tuple[bytes, bytes]]) -> None:
        self._rejected = rejected
        self.rows = self.checksum = 0

    def counted(self, blocks: Iterator[Block]) -> Iterator[Block]:
        for block in blocks:
            for left in without([block], self._rejected):
                self.rows += len(left)
                self.checksum += checksum(left)
            yield block


def _digests(connection: Connection, statement: sql.Composed) -> Words:
    """The first halves of key digests: enough to tell rows apart."""
    return pack_digests(row[0] for row in connection.execute(statement))[:, 0]


def _same_key(table: VectorTable) -> sql.Composed:
    """Rows of ``taken``, whose exotic columns are text, and of the vector table."""
    return sql.SQL(" AND ").join(
        sql.SQL("t.{0} = d.{0}::{1}").format(sql.Identifier(c.name), c.type_sql) for c in table.key
    )


def _rejected(connection: Connection, pipeline_id: PipelineId) -> set[tuple[bytes, bytes]]:
    rows = connection.execute(query("extract_apart", "rejected", pipeline_id=sql.Literal(pipeline_id)))
    return {(digest_of(key), fingerprint) for key, fingerprint in rows if None not in key}
