"""The chunks of a source's contents, kept in a table of the target's database that the source's rows are joined to.

Splitting is not for SQL, and comparing is: so the chunks of each content are kept, by the content's hash, in
``rowvec.chunks_<pipeline>``, and only what is new there passes through Python. A source in the target's own database is
joined to them in each snapshot, so that a row whose content has changed since has no chunks, and is seen to wait for
them. Of a source elsewhere the table holds the metadata too, and stands for it: it is brought up to date before each
extract, merge and audit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from rowvec.ledger.pipelines import PipelineId
from rowvec.ledger.plans import Plan
from rowvec.pipeline import Pipeline
from rowvec.pipeline.sources import CHUNK, PostgresSource
from rowvec.postgres.columns import PgColumn
from rowvec.postgres.connection import Connection, without_blocking
from rowvec.postgres.fragments import names
from rowvec.postgres.queries import query
from rowvec.postgres.vector_table import VectorTable, find_table
from rowvec.sources.postgres import SourceQuery, describe, fingerprint_of_content, is_beside
from rowvec.sync.extract.splitting import Splitting, splitting
from rowvec.vectors.fingerprint import Identity

CHUNK_COLUMN = PgColumn(CHUNK, "integer")

# Contents in memory at once, and chunks in one statement; contents are long, or they would not be split.
_FETCH_ROWS = 64
_ADD_CHUNKS = 4096

_SCHEMA = "rowvec"
_OF_ITS_OWN = {"rowvec_row": "bytea", CHUNK: "integer", "content": "text"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkedQuery:
    """A source in the target's database, joined to the chunks of its contents."""

    whole: SourceQuery
    """The rows as they are; their ``fingerprint`` is of the content and of how it is split."""
    chunks: sql.Identifier
    identity: bytes

    @property
    def key(self) -> tuple[PgColumn, ...]:
        """The row's key and the chunk's number."""
        return (*self.whole.key, CHUNK_COLUMN)

    @property
    def metadata(self) -> tuple[PgColumn, ...]:
        """The row's."""
        return self.whole.metadata

    @property
    def rows(self) -> sql.Composed:
        """As ``SourceQuery.rows``, for each chunk."""
        whole = self.whole
        return query(
            "chunks",
            "rows",
            columns=names(whole.key),
            row_columns=names(whole.key, "r"),
            metadata=_each(whole.metadata),
            row_metadata=_each(whole.metadata, "r"),
            fingerprint=fingerprint_of_content(self.identity),
            **self._parts,
        )

    @property
    def waiting(self) -> sql.Composed:
        """``SELECT`` the keys of rows whose present content is not split yet."""
        return query("chunks", "waiting", columns=names(self.whole.key), **self._parts)

    @property
    def unsplit(self) -> sql.Composed:
        """``SELECT`` these rows, as ``_add`` takes them."""
        return query("chunks", "waiting", columns=_as_texts(self.whole.key), **self._parts)

    def forget(self, connection: Connection) -> None:
        """Drop the chunks that no row has any more."""
        connection.execute(query("chunks", "forget", **self._parts))

    @property
    def _parts(self) -> dict[str, sql.Composable]:
        return {"whole": self.whole.rows, "chunks": self.chunks, "same_row": same(self.whole.key, "c", "r")}


Rows = SourceQuery | ChunkedQuery


def is_joined(pipeline: Pipeline) -> bool:
    """Whether source and vector table can be joined: the source itself, or the chunks that stand for it."""
    return is_beside(pipeline) or pipeline.source.chunks is not None


def chunk_table(pipeline_id: PipelineId) -> sql.Identifier:
    """The table with a pipeline's chunks."""
    return sql.Identifier(_SCHEMA, _table_name(pipeline_id))


def source_rows(connection: Connection, pipeline: Pipeline, identity: Identity, pipeline_id: PipelineId) -> Rows:
    """What the vector table is compared with where the two can be joined.

    Raises ``SourceError`` where the source is not there as the pipeline says.
    """
    source, chunks = pipeline.source, chunk_table(pipeline_id)
    if source.chunks is None or (source.kind == "postgres" and is_beside(pipeline)):
        if source.kind != "postgres":
            raise TypeError(source.kind)  # files are beside nothing
        if source.chunks is None:
            return describe(connection, pipeline, source, identity.digest())
        return _chunked(connection, pipeline, source, identity, chunks)
    types = _columns(connection, pipeline_id)
    key, metadata = (tuple(PgColumn(n, types[n]) for n in named) for named in (source.vector_key, source.metadata))
    return SourceQuery(
        relation=chunks,
        key=key,
        metadata=metadata,
        content=sql.SQL("source.content"),
        something=sql.SQL("true"),
        vector=None,
        identity=identity.digest(),
        unique=True,
    )


def split_contents(connection: Connection, pipeline: Pipeline, identity: Identity, pipeline_id: PipelineId) -> None:
    """Bring the chunks of a source in the target's database up to date.

    No transaction is open while contents are split, and what a run that was killed has split is kept. Raises as
    ``source_rows``, and ``TargetError`` where the vector table has no chunks.
    """
    source, chunks = pipeline.source, chunk_table(pipeline_id)
    if source.kind != "postgres" or source.chunks is None:
        raise TypeError(source.kind)
    rows = _chunked(connection, pipeline, source, identity, chunks)
    # A vector table of another layout is refused before its contents are split.
    find_table(connection, VectorTable.of(pipeline, rows.key, rows.metadata))
    make_table(connection, pipeline_id, rows.whole.key, (), versions=True)
    how = splitting(source.chunks, pipeline.embedder)

    def look(cursor: psycopg.ServerCursor[tuple[Any, ...]]) -> None:
        with connection.transaction():
            connection.execute(query("extract", "begin"))
            rows.forget(connection)
            cursor.execute(rows.unsplit)

    # The cursor outlives its transaction: the contents wait on the server's disk.
    with connection.cursor(name="unsplit", binary=True, withhold=True) as cursor:
        without_blocking(lambda: look(cursor))
        add_chunks(connection, chunks, rows.whole.key, cursor, how)


def make_table(
    connection: Connection,
    pipeline_id: PipelineId,
    key: tuple[PgColumn, ...],
    metadata: tuple[PgColumn, ...],
    *,
    versions: bool,
) -> None:
    """Make the table where it is missing, or has other columns than the source has by now.

    ``versions``: whether it may have chunks of several contents of one row.
    """
    columns = (*key, *metadata)
    wanted = {c.name: c.pg_type for c in columns} | _OF_ITS_OWN
    chunks, there = chunk_table(pipeline_id), _columns(connection, pipeline_id)
    if there and there != wanted:
        connection.execute(query("chunks", "drop", chunks=chunks))
    elif there:
        return
    not_null = {c.name for c in key}
    typed = (
        sql.SQL("{} {}{}").format(
            sql.Identifier(c.name), c.type_sql, sql.SQL(" NOT NULL" if c.name in not_null else "")
        )
        for c in columns
    )
    unique = (*(c.name for c in key), *(("rowvec_row",) if versions else ()), CHUNK)
    parts = {"columns": sql.SQL(", ").join(typed), "key": sql.SQL(", ").join(map(sql.Identifier, unique))}
    connection.execute(query("chunks", "make", chunks=chunks, **parts))
    connection.execute(query("chunks", "comment", chunks=chunks))


def add_chunks(
    connection: Connection,
    chunks: sql.Identifier,
    columns: tuple[PgColumn, ...],
    cursor: psycopg.ServerCursor[tuple[Any, ...]],
    how: Splitting,
) -> None:
    """Split what a cursor gives: ``columns`` as texts, the content, its hash. No row is half written."""
    added = 0
    while fetched := cursor.fetchmany(_FETCH_ROWS):
        for block in _blocks(fetched, how):
            _add(connection, chunks, columns, block)
            added += len(block)
    if added:
        connection.execute(query("chunks", "analyze", chunks=chunks))


def count_lost(connection: Connection, pipeline: Pipeline, plan: Plan) -> int:
    """How many vectors a plan deletes whose row is gone; the others are of texts that became shorter."""
    rows = source_rows(connection, pipeline, plan.identity, plan.pipeline_id)
    every = rows.whole.rows if isinstance(rows, ChunkedQuery) else rows.rows
    parts = {"plan": plan.rows, "rows": every, "same_row": same(plan.table.row_key, "p", "r")}
    found = connection.execute(query("chunks", "count_lost", **parts)).fetchone()
    return found[0] if found else 0


def same(key: tuple[PgColumn, ...], left: str, right: str) -> sql.Composed:
    """``l.a = r.a AND l.b = r.b``."""
    return sql.SQL(" AND ").join(
        sql.SQL("{} = {}").format(sql.Identifier(left, c.name), sql.Identifier(right, c.name)) for c in key
    )


def _chunked(
    connection: Connection, pipeline: Pipeline, source: PostgresSource, identity: Identity, chunks: sql.Identifier
) -> ChunkedQuery:
    if source.chunks is None:
        raise TypeError("source.chunks")
    how = splitting(source.chunks, pipeline.embedder)
    whole = describe(connection, pipeline, source, how.digest())
    return ChunkedQuery(whole=whole, chunks=chunks, identity=identity.digest())


def _columns(connection: Connection, pipeline_id: PipelineId) -> dict[str, str]:
    values = {"schema": _SCHEMA, "table": _table_name(pipeline_id)}
    return {name: pg_type for name, pg_type, _ in connection.execute(query("vector_table", "columns"), values)}


def _blocks(fetched: list[tuple[Any, ...]], how: Splitting) -> Iterator[list[tuple[Any, ...]]]:
    """The chunks of some rows: the row's columns, its hash, the chunk's number, and the chunk."""
    block: list[tuple[Any, ...]] = []
    for *row, content, row_hash in fetched:
        block += [(*row, row_hash, number, chunk) for number, chunk in enumerate(how.split(content))]
        if len(block) >= _ADD_CHUNKS:
            yield block
            block = []
    if block:
        yield block


def _add(
    connection: Connection, chunks: sql.Identifier, columns: tuple[PgColumn, ...], block: list[tuple[Any, ...]]
) -> None:
    *values, hashes, numbers, contents = (sql.Literal(list(each)) for each in zip(*block, strict=True))
    statement = query(
        "chunks",
        "add",
        chunks=chunks,
        columns=names(columns),
        typed=sql.SQL(", ").join(sql.SQL("{}::{}").format(sql.Identifier(c.name), c.type_sql) for c in columns),
        arrays=sql.SQL(", ").join(sql.SQL("{}::text[]").format(each) for each in values),
        hashes=hashes,
        numbers=numbers,
        contents=contents,
    )
    connection.execute(statement)


def _as_texts(columns: tuple[PgColumn, ...]) -> sql.Composed:
    texts = [sql.SQL("r.{}::text").format(sql.Identifier(c.name)) for c in columns]
    return sql.SQL(", ").join([*texts, sql.SQL("r.content"), sql.SQL("r.fingerprint")])


def _table_name(pipeline_id: PipelineId) -> str:
    return f"chunks_{pipeline_id}"


def _each(columns: tuple[PgColumn, ...], alias: str | None = None) -> sql.Composed:
    """``r."a", r."b", `` with a comma at the end, or nothing."""
    return sql.SQL("").join(sql.SQL("{}, ").format(names((c,), alias)) for c in columns)
