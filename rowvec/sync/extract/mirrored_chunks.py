"""The chunks of a source that is not in the target's database: what changed there is read, split, and kept here."""

from __future__ import annotations

from collections.abc import Iterator

from psycopg import sql

from rowvec.ledger.pipelines import PipelineId
from rowvec.pipeline import Pipeline
from rowvec.postgres.connection import Connection, without_blocking
from rowvec.postgres.fragments import key_digest
from rowvec.postgres.queries import query
from rowvec.postgres.vector_table import VectorTable, find_table
from rowvec.sources.diff import Block
from rowvec.sources.hash_stream import copied_pairs
from rowvec.sources.postgres import metadata_hash
from rowvec.sources.protocol import ApartSource
from rowvec.sync.extract.chunks import CHUNK_COLUMN, add_chunks, chunk_table, make_table
from rowvec.sync.extract.hashed_source import mark, opened, set_aside_rejects, take
from rowvec.sync.extract.request import Request, check_empty
from rowvec.sync.extract.splitting import Splitting, splitting


def mirror_source(
    connection: Connection, pipeline: Pipeline, pipeline_id: PipelineId, request: Request | None = None
) -> None:
    """Bring the chunks up to date with a source elsewhere, in one transaction; what has not changed does not travel.

    With a ``request`` the rows that cannot be split are set aside, as an extract does. Raises ``SourceError`` where the
    source is not there as the pipeline says.
    """
    if pipeline.source.chunks is None:
        raise TypeError("source.chunks")
    how = splitting(pipeline.source.chunks, pipeline.embedder)
    without_blocking(lambda: _mirror(connection, pipeline, pipeline_id, how, request))


def _mirror(
    connection: Connection, pipeline: Pipeline, pipeline_id: PipelineId, how: Splitting, request: Request | None
) -> None:
    chunks = chunk_table(pipeline_id)
    with opened(connection, pipeline, how) as source:
        find_table(connection, VectorTable.of(pipeline, (*source.key, CHUNK_COLUMN), source.metadata))
        make_table(connection, pipeline_id, source.key, source.metadata, versions=False)
        with connection.transaction():
            connection.execute(query("extract", "begin"))
            connection.execute(query("chunks", "lock", chunks=chunks))
            gone = mark(source, source.pairs(), _stored_pairs(connection, source, chunks))
            if request is not None:
                check_empty(pipeline, source)
            take(connection, source, source.key, source.metadata, gone)
            if request is not None:
                set_aside_rejects(connection, request, source.rejects())
            _apply(connection, source, chunks, how)


def _stored_pairs(connection: Connection, source: ApartSource, chunks: sql.Identifier) -> Iterator[Block]:
    pairs = query(
        "chunks",
        "stored_pairs",
        digest=key_digest(source.key),
        metadata_hash=metadata_hash(source.metadata),
        chunks=chunks,
    )
    return copied_pairs(connection, pairs)


def _apply(connection: Connection, source: ApartSource, chunks: sql.Identifier, how: Splitting) -> None:
    columns = (*source.key, *source.metadata)
    same_row = sql.SQL(" AND ").join(
        sql.SQL("t.{0} = d.{0}::{1}").format(sql.Identifier(c.name), c.type_sql) for c in source.key
    )
    connection.execute(query("chunks", "forget_gone", chunks=chunks, digest=key_digest(source.key)))
    connection.execute(query("chunks", "forget_changed", chunks=chunks, same_row=same_row))
    if source.metadata:
        assigned = (sql.SQL("{0} = d.{0}::{1}").format(sql.Identifier(c.name), c.type_sql) for c in source.metadata)
        parts = {"assignments": sql.SQL(", ").join(assigned), "same_row": same_row}
        connection.execute(query("chunks", "update_metadata", chunks=chunks, **parts))
    with connection.cursor(name="taken", binary=True) as cursor:
        texts = sql.SQL(", ").join(sql.SQL("{}::text").format(sql.Identifier(c.name)) for c in columns)
        cursor.execute(query("chunks", "taken", columns=texts))
        add_chunks(connection, chunks, columns, cursor, how)
