"""Extract for a source that is not in the target's database: files, and other databases. Only hashes are compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

import numpy as np
import pyarrow as pa
from psycopg import sql

from rowvec.errors import SourceError
from rowvec.ledger.pipelines import PipelineId, RunId
from rowvec.ledger.plans import Plan, count_batches, key_json, plan_rows
from rowvec.ledger.rejects import set_aside
from rowvec.pipeline import Pipeline
from rowvec.postgres.columns import PgColumn
from rowvec.postgres.connection import Connection
from rowvec.postgres.copy_encoder import HEADER, TRAILER, Encoder
from rowvec.postgres.fragments import key_digest
from rowvec.postgres.queries import query
from rowvec.postgres.vector_table import VectorTable, count_rows, find_table
from rowvec.runtime.home import home
from rowvec.sources.diff import Block, Words, diff
from rowvec.sources.files.source import open_files
from rowvec.sources.hash_stream import checksum, copied_pairs, pack_digests, unpack_digests, without
from rowvec.sources.hash_stream import key_digest as digest_of
from rowvec.sources.images.seen import run_name
from rowvec.sources.other_database import open_remote
from rowvec.sources.postgres import fingerprint_of_content, metadata_hash, names
from rowvec.sources.protocol import ApartSource, Reject
from rowvec.sync.extract.stage import Request, check_loss, store_plan
from rowvec.sync.images.upload import note_images
from rowvec.vectors.fingerprint import Digested, Identity

_SET_ASIDE_AT_ONCE = 1000
_DIGESTS_AT_ONCE = 65_536


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


def extract_apart(connection: Connection, request: Request) -> Plan:
    """Compare source and vector table by hashes, read what changed, and store the plan.

    Raises ``SourceError`` or ``TargetError`` where one of them is not as the pipeline says. Memory does not grow with
    the rows, but for a byte a row of a file, or 16 bytes a changed row of a database.
    """
    with opened(connection, request.pipeline, request.identity, request.run_id) as source, connection.transaction():
        connection.execute(query("extract", "begin"))
        table = VectorTable.of(request.pipeline, source.key, source.metadata)
        exists = find_table(connection, table)
        stored = _stored_pairs(connection, request.pipeline, request.identity, table) if exists else iter(())
        gone = mark(source, source.pairs(), stored)
        check_empty(request.pipeline, source)
        take(connection, source, table.key, table.metadata, gone)
        note_images(connection, request.pipeline.name, source.images(everything=request.note_all_images))
        set_aside_rejects(connection, request, source.rejects())
        return _store(connection, request, table, exists=exists)


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
        stored = _stored_pairs(connection, pipeline, identity, table)
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


def check_empty(pipeline: Pipeline, source: ApartSource) -> None:
    """Raise ``SourceError`` where there are rows without content and the pipeline says that there must be none."""
    if pipeline.source.empty == "fail" and source.blank:
        raise SourceError(
            f"{source.blank:,} row(s) have empty content and source.empty is fail; mend them, or set it to skip "
            "or reject"
        )


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


@contextmanager
def opened(
    connection: Connection, pipeline: Pipeline, identity: Digested, run_id: RunId | None = None
) -> Generator[ApartSource]:
    """The pipeline's source, described and ready to be read; by a run it may have been read before."""
    source = pipeline.source
    if source.kind == "postgres":
        with open_remote(pipeline, source, identity, connection) as remote:
            yield remote
    else:
        from rowvec.sources.files.download import fetcher  # late: Azure's client takes half a second to import

        run = None if run_id is None else run_name(run_id)
        folder = home() / "spool"
        folder.mkdir(exist_ok=True)
        with open_files(pipeline, source, identity, folder, fetcher(source.credential), run) as files:
            yield files


def _stored_pairs(
    connection: Connection, pipeline: Pipeline, identity: Identity, table: VectorTable
) -> Iterator[Block]:
    # With the source's own vectors, the fingerprint covers a text that the table does not keep.
    own = pipeline.embedder.kind == "column"
    pairs = query(
        "extract_apart",
        "stored_pairs",
        digest=key_digest(table.key),
        fingerprint=sql.SQL("fingerprint") if own else fingerprint_of_content(identity.digest()),
        metadata_hash=metadata_hash(table.metadata),
        table=table.identifier,
    )
    return copied_pairs(connection, pairs)


def mark(source: ApartSource, wanted: Iterator[Block], stored: Iterator[Block]) -> list[Words]:
    """Let the source know what the diff found; returns the digests of vectors whose row is gone."""
    gone: list[Words] = []
    for changes in diff(wanted, stored):
        source.mark(changes)
        if len(changes.deleted):
            gone.append(changes.deleted)
    return gone


def take(
    connection: Connection,
    source: ApartSource,
    key: tuple[PgColumn, ...],
    metadata: tuple[PgColumn, ...],
    gone: list[Words],
) -> None:
    """Copy what changed into temporary tables, ``taken`` and ``gone``."""
    columns = (
        PgColumn("rowvec_action", "text"),
        *(PgColumn(c.name, c.travels_as) for c in (*key, *metadata)),
        *(PgColumn(name, "text") for name in ("content", "rowvec_vector")),
        *(PgColumn(name, "bytea") for name in ("fingerprint", "metadata_hash")),
    )
    typed = sql.SQL(", ").join(sql.SQL("{} {}").format(sql.Identifier(c.name), c.type_sql) for c in columns)
    connection.execute(query("extract_apart", "taken", columns=typed))
    connection.execute(query("extract_apart", "gone"))
    _copy(connection, "copy_taken", columns, source.rows())
    _copy(connection, "copy_gone", (PgColumn("digest", "bytea"),), _digest_batches(gone))
    connection.execute(query("extract_apart", "analyze"))


def _copy(
    connection: Connection, statement: str, columns: tuple[PgColumn, ...], batches: Iterable[pa.RecordBatch]
) -> None:
    encoder = Encoder(columns)
    with (
        connection.cursor() as cursor,
        cursor.copy(query("extract_apart", statement, columns=names(encoder.columns))) as copy,
    ):
        copy.write(HEADER)
        for batch in batches:
            for block in encoder.encode(batch):
                copy.write(block)
        copy.write(TRAILER)


def _digest_batches(digests: list[Words]) -> Iterator[pa.RecordBatch]:
    for words in digests:
        for start in range(0, len(words), _DIGESTS_AT_ONCE):
            part = unpack_digests(words[start : start + _DIGESTS_AT_ONCE])
            yield pa.record_batch([pa.array(part, pa.binary())], names=["digest"])


def set_aside_rejects(connection: Connection, request: Request, rejects: Iterator[Reject]) -> None:
    """List the rows that cannot have a vector of their own; forget those that can by now."""
    while chunk := list(islice(rejects, _SET_ASIDE_AT_ONCE)):
        # Many rows may share a key that is NULL: one line in the rejects stands for them.
        rows = [(key, None, error) for key, error in dict(chunk).items()]
        set_aside(connection, request.pipeline_id, request.run_id, rows)
    parts = {"pipeline_id": sql.Literal(request.pipeline_id), "run_id": sql.Literal(request.run_id)}
    connection.execute(query("extract", "forget_mended", **parts))


def _store(connection: Connection, request: Request, table: VectorTable, *, exists: bool) -> Plan:
    parts = {"pipeline_id": sql.Literal(request.pipeline_id), "key_json": key_json(table.key, "d")}
    connection.execute(query("extract_apart", "forget_gone_rejects", **parts))
    connection.execute(query("extract_apart", "leave_out_rejects", **parts))
    counted = connection.execute(query("extract_apart", "count_taken")).fetchone()
    new, changed, metadata_only, deleted = counted or (0, 0, 0, 0)
    batches = count_batches(new + changed, request.batch_weight)
    rows = plan_rows(request.run_id)
    typed = (sql.SQL("{}::{} AS {}, ").format(*_typed(c)) for c in (*table.key, *table.metadata))
    connection.execute(
        query(
            "extract_apart",
            "plan_rows",
            plan=rows,
            batch=query("extract", "batch", batches=sql.Literal(batches)),
            typed=sql.SQL("").join(typed),
        )
    )
    if deleted:
        digest = key_digest(table.key)
        deletes = query(
            "extract_apart", "plan_deletes", plan=rows, key=names(table.key), table=table.identifier, digest=digest
        )
        connection.execute(deletes)
    return store_plan(connection, request, table, (new, changed, metadata_only, deleted), batches, exists=exists)


def _typed(column: PgColumn) -> tuple[sql.Composable, sql.Composable, sql.Composable]:
    return sql.Identifier("d", column.name), column.type_sql, sql.Identifier(column.name)


def _same_key(table: VectorTable) -> sql.Composed:
    """Rows of ``taken``, whose exotic columns are text, and of the vector table."""
    return sql.SQL(" AND ").join(
        sql.SQL("t.{0} = d.{0}::{1}").format(sql.Identifier(c.name), c.type_sql) for c in table.key
    )


def _rejected(connection: Connection, pipeline_id: PipelineId) -> set[tuple[bytes, bytes]]:
    rows = connection.execute(query("extract_apart", "rejected", pipeline_id=sql.Literal(pipeline_id)))
    return {(digest_of(key), fingerprint) for key, fingerprint in rows if None not in key}
