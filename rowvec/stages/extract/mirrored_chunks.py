"""The chunks of a source outside the target's database: contents that changed are read, split and kept in a table."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pyarrow as pa
from psycopg import sql

from rowvec.errors import RowError
from rowvec.ledger.pipelines import PipelineId
from rowvec.ledger.plans import Plan
from rowvec.ledger.rejects import add_rejects
from rowvec.pipeline import Pipeline
from rowvec.postgres.columns import PgColumn
from rowvec.postgres.connection import Connection, use_one_snapshot, without_blocking
from rowvec.postgres.fragments import key_digest, same_key
from rowvec.postgres.isolation import Refusal
from rowvec.postgres.queries import query
from rowvec.postgres.vector_table import opened_table
from rowvec.sources.diff import Block
from rowvec.sources.encoding import Readable
from rowvec.sources.files.pg_text import pg_text
from rowvec.sources.hash_stream import copied_pairs, digest_of_key, pack_digests
from rowvec.sources.postgres import SourceQuery, metadata_hash
from rowvec.sources.protocol import HashedSource
from rowvec.stages.extract.chunks import (
    CHUNK_COLUMN,
    FETCH_ROWS,
    add_chunks,
    chunk_table,
    column_types,
    count_lost,
    make_table,
    reject_unsplit,
    splitting_of,
)
from rowvec.stages.extract.hashed_source import mark_changes, open_hashed_source, read_out, reject_unusable
from rowvec.stages.extract.joined import JoinedSource
from rowvec.stages.extract.protocol import Rows
from rowvec.stages.extract.request import Request, check_empty
from rowvec.stages.extract.splitting import Splitting


class MirroredSource(JoinedSource):
    """A source outside the target's database, of which the table of chunks holds all that the join needs.

    The table stands for the source, so it is brought up to date before every extract, merge and audit.
    """

    _empty = 0

    def describe(self) -> SourceQuery:
        """See ``JoinedSource``: the table of chunks."""
        source, types = self.pipeline.source, column_types(self.connection, self.pipeline_id)
        key, metadata = (tuple(PgColumn(n, types[n]) for n in named) for named in (source.vector_key, source.metadata))
        chunks = chunk_table(self.pipeline_id)
        return SourceQuery(
            all_rows=chunks,
            relation=chunks,
            unreadable=None,
            among=Readable,
            key=key,
            metadata=metadata,
            content=sql.SQL("source.content"),
            something=sql.SQL("true"),
            vector=None,
            identity=self.identity.digest(),
            unique=True,
        )

    def refresh(self, request: Request | None = None) -> None:
        """Read and split what has changed in the source, in one transaction; the rest does not travel.

        With a ``request`` the rows that cannot be split are listed as rejects, as an extract does. Raises
        ``SourceError`` if the source is not there as the pipeline says.
        """
        how = splitting_of(self.pipeline)
        self._empty = without_blocking(lambda: _mirror(self.connection, self.pipeline, self.pipeline_id, how, request))

    def refresh_for_merge(self) -> None:
        """See ``JoinedSource``: the merge's snapshot shows the table of chunks alone."""
        self.refresh()

    def reject_unusable(self, request: Request, rows: Rows) -> None:
        """Nothing: ``refresh`` has listed them."""

    def count_empty(self, rows: Rows) -> int:
        """See ``JoinedSource``: ``refresh`` has counted them, as the table of chunks has none of them."""
        return self._empty

    def count_lost(self, plan: Plan) -> int:
        """See ``SourceStrategy``."""
        return count_lost(self.connection, plan, self.describe) if plan.counts.deleted else 0


def _mirror(
    connection: Connection, pipeline: Pipeline, pipeline_id: PipelineId, how: Splitting, request: Request | None
) -> int:
    """Returns the number of rows of the source without content, for an extract."""
    chunks = chunk_table(pipeline_id)
    with open_hashed_source(connection, pipeline, how) as source:
        opened_table(connection, pipeline, (*source.key, CHUNK_COLUMN), source.metadata)
        begins = request is not None and request.begin is not None
        if not begins:
            make_table(connection, pipeline_id, source.key, source.metadata, versions=False)
        with connection.transaction():
            use_one_snapshot(connection)
            stored: Iterator[Block] = iter(())
            if not begins:
                connection.execute(query("mirrored_chunks", "lock", chunks=chunks))
                stored = _stored_pairs(connection, source, chunks)
            gone = mark_changes(source, source.pairs(), stored)
            if request is not None:
                check_empty(pipeline, source)

            def refuse(row: pa.RecordBatch, refusal: Refusal) -> None:
                texts = [pg_text(row.column(column.name))[0].as_py() for column in source.key]
                if request is not None:
                    named = json.dumps([text.encode("ascii", "backslashreplace").decode() for text in texts])
                    error = RowError("unreadable", str(refusal))
                    add_rejects(connection, pipeline_id, request.run_id, [(named, None, error)])
                gone.append(pack_digests([digest_of_key(texts)]))

            empty = source.blank if request is not None else 0
            read = read_out(connection, source, (source.key, source.metadata), gone, request, refuse)
            if begins:
                make_table(connection, pipeline_id, source.key, source.metadata, versions=False)
            if request is not None:
                reject_unusable(connection, request, read.rejects)
            for row, refusal in _apply(connection, source, chunks, how):
                reject_unsplit(connection, request, row[: len(source.key)], refusal)
        return empty


def _stored_pairs(connection: Connection, source: HashedSource, chunks: sql.Identifier) -> Iterator[Block]:
    pairs = query(
        "mirrored_chunks",
        "stored_pairs",
        digest=key_digest(source.key),
        metadata_hash=metadata_hash(source.metadata),
        chunks=chunks,
    )
    return copied_pairs(connection, pairs)


def _apply(
    connection: Connection, source: HashedSource, chunks: sql.Identifier, how: Splitting
) -> list[tuple[tuple[str, ...], Refusal]]:
    columns = (*source.key, *source.metadata)
    same_row = same_key(source.key, "t", "d", cast_right=True)
    connection.execute(query("mirrored_chunks", "forget_gone", chunks=chunks, digest=key_digest(source.key)))
    connection.execute(query("mirrored_chunks", "forget_changed", chunks=chunks, same_row=same_row))
    if source.metadata:
        assigned = (sql.SQL("{0} = d.{0}::{1}").format(sql.Identifier(c.name), c.type_sql) for c in source.metadata)
        parts = {"assignments": sql.SQL(", ").join(assigned), "same_row": same_row}
        connection.execute(query("mirrored_chunks", "update_metadata", chunks=chunks, **parts))
    with connection.cursor(name="taken", binary=True) as cursor:
        texts = sql.SQL(", ").join(sql.SQL("{}::text").format(sql.Identifier(c.name)) for c in columns)
        cursor.execute(query("mirrored_chunks", "taken", columns=texts))
        return add_chunks(connection, chunks, columns, iter(lambda: cursor.fetchmany(FETCH_ROWS), []), how)
