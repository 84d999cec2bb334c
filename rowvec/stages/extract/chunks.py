"""The chunks of a source's contents, in a table of the target's database that the source's rows are joined to.

Python splits and SQL compares. So the table ``rowvec.chunks_<pipeline>`` keeps the chunks of each content by the
content's hash, and only new contents pass through Python. A source in the target's own database is joined to the table
in each snapshot: a row whose content has changed since then has no chunks, and is counted as pending. For any other
source the table holds the metadata too and stands for the source; ``mirrored_chunks`` brings it up to date before every
extract, merge and audit.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from psycopg import sql

from rowvec.errors import RowError
from rowvec.ledger.pipelines import PipelineId
from rowvec.ledger.plans import Plan
from rowvec.ledger.rejects import add_rejects
from rowvec.pipeline import Pipeline
from rowvec.pipeline.sources import CHUNK, PostgresSource
from rowvec.postgres.columns import PgColumn
from rowvec.postgres.connection import Connection, use_one_snapshot, without_blocking
from rowvec.postgres.fragments import key_json, names, same_key
from rowvec.postgres.isolation import Isolation, Refusal
from rowvec.postgres.queries import query
from rowvec.postgres.vector_table import opened_table, stored_columns
from rowvec.sources.postgres import SourceQuery, describe, fingerprint_of_content
from rowvec.stages.extract.joined import JoinedSource, reject_rows_without_content
from rowvec.stages.extract.protocol import Rows
from rowvec.stages.extract.request import Request
from rowvec.stages.extract.splitting import Splitting, splitting
from rowvec.vectors.fingerprint import Identity

CHUNK_COLUMN = PgColumn(CHUNK, "integer")

# Contents in memory at once, and chunks in one statement. The contents are long, or they would not be split.
FETCH_ROWS = 64
_ADD_CHUNKS = 4096

_Chunks = list[tuple[Any, ...]]
"""Chunks of rows: the row's columns as texts, its hash, the chunk's number, and the chunk."""

_SCHEMA = "rowvec"
_OWN_COLUMNS = {"rowvec_row": "bytea", CHUNK: "integer", "content": "text"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkedQuery:
    """A source in the target's database, joined to the chunks of its contents."""

    whole: SourceQuery
    """The rows before they are split; their ``fingerprint`` covers the content and how it is split."""
    chunks: sql.Identifier
    pipeline_id: PipelineId
    identity: bytes

    @property
    def key(self) -> tuple[PgColumn, ...]:
        """The row's key and the chunk's number."""
        return (*self.whole.key, CHUNK_COLUMN)

    @property
    def metadata(self) -> tuple[PgColumn, ...]:
        """The metadata columns of the row."""
        return self.whole.metadata

    def within(self, keys: sql.Composable) -> ChunkedQuery:
        """The chunks of the rows whose keys are in ``keys``."""
        return replace(self, whole=self.whole.within(keys))

    @property
    def rows(self) -> sql.Composed:
        """Like ``SourceQuery.rows``, one row per chunk."""
        return self._rows(sql.SQL("true"))

    @property
    def changed_rows(self) -> sql.Composed:
        """See ``Rows``: hashes no content whose chunks are all unchanged."""
        return self._rows(query("chunks", "among", columns=names(self.whole.key)))

    @property
    def unsplit(self) -> sql.Composed:
        """``SELECT`` the keys of rows whose present content is not split yet, without those that have no room."""
        key, pipeline_id = self.whole.key, sql.Literal(self.pipeline_id)
        parts = {"columns": names(key), "key_json": key_json(key, "r"), "pipeline_id": pipeline_id}
        return query("chunks", "unsplit_with_room", unsplit=self._unsplit, **parts)

    @property
    def unsplit_contents(self) -> sql.Composed:
        """``SELECT`` these rows with their contents, as ``add_chunks`` takes them."""
        key, whole = self.whole.key, self.whole.rows
        parts = {"texts": _as_texts(key), "columns": names(key), "whole": whole, "unsplit": self._unsplit}
        return query("chunks", "unsplit_contents", **parts)

    def forget(self, connection: Connection) -> None:
        """Delete the chunks whose content no row has any more."""
        connection.execute(query("chunks", "forget", **self._parts, **self._hashed()))

    @property
    def _unsplit(self) -> sql.Composed:
        return query("chunks", "unsplit", columns=names(self.whole.key), **self._parts, **self._hashed())

    @property
    def _parts(self) -> dict[str, sql.Composable]:
        return {"chunks": self.chunks, "same_row": same_key(self.whole.key, "c", "r")}

    def _rows(self, among: sql.Composable) -> sql.Composed:
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
            **self._hashed(among, whole.metadata),
        )

    def _hashed(
        self, among: sql.Composable | None = None, metadata: tuple[PgColumn, ...] = ()
    ) -> dict[str, sql.Composable]:
        whole = self.whole
        parts = {"columns": names(whole.key), "metadata": _each(metadata), "whole": whole.rows}
        return {"hashed": query("chunks", "hashed", among=among or sql.SQL("true"), **parts)}


class ChunkedSource(JoinedSource):
    """A table, or a query, in the target's own database, joined to the chunks of its contents.

    The join shows which contents have no chunks yet, so the merge need not split them first: their rows are pending.
    """

    def __init__(
        self,
        connection: Connection,
        pipeline: Pipeline,
        identity: Identity,
        pipeline_id: PipelineId,
        source: PostgresSource,
    ) -> None:
        super().__init__(connection, pipeline, identity, pipeline_id)
        self._source = source
        self._chunks = chunk_table(pipeline_id)

    def describe(self) -> ChunkedQuery:
        """See ``JoinedSource``."""
        whole = describe(self.connection, self.pipeline, self._source, splitting_of(self.pipeline).digest())
        return ChunkedQuery(
            whole=whole, chunks=self._chunks, pipeline_id=self.pipeline_id, identity=self.identity.digest()
        )

    def refresh(self, request: Request | None = None) -> None:
        """Split the contents that are new.

        No transaction is open while contents are split, and a run that is killed keeps what it has split. Raises as
        ``describe``, and ``TargetError`` if the vector table has no chunks.
        """
        if request is not None:
            request.begin_ledger()
        rows = self.describe()
        # Look at the vector table first: one of another layout is refused before contents are split for it.
        opened_table(self.connection, self.pipeline, rows.key, rows.metadata)
        make_table(self.connection, self.pipeline_id, rows.whole.key, (), versions=True)

        def look() -> None:
            with self.connection.transaction():
                use_one_snapshot(self.connection)
                rows.forget(self.connection)
                self.connection.keep_rows("unsplit", rows.unsplit_contents)

        without_blocking(look)
        contents = self.connection.kept_rows("unsplit", FETCH_ROWS)
        for row, refusal in add_chunks(
            self.connection, self._chunks, rows.whole.key, contents, splitting_of(self.pipeline)
        ):
            reject_unsplit(self.connection, request, row[: len(rows.whole.key)], refusal)

    def refresh_for_merge(self) -> None:
        """Nothing: the merge's snapshot shows the source itself."""

    def reject_unusable(self, request: Request, rows: Rows) -> None:
        """See ``JoinedSource``."""
        reject_rows_without_content(self.connection, request, rows.whole)

    def count_lost(self, plan: Plan) -> int:
        """See ``SourceStrategy``."""
        return count_lost(self.connection, plan, self.describe) if plan.counts.deleted else 0


def chunk_table(pipeline_id: PipelineId) -> sql.Identifier:
    """The table with a pipeline's chunks."""
    return sql.Identifier(_SCHEMA, _table_name(pipeline_id))


def make_table(
    connection: Connection,
    pipeline_id: PipelineId,
    key: tuple[PgColumn, ...],
    metadata: tuple[PgColumn, ...],
    *,
    versions: bool,
) -> None:
    """Make the table of chunks if it is missing, or if its columns are not those of the source any more.

    ``versions``: whether it may hold chunks of several contents of one row.
    """
    columns = (*key, *metadata)
    wanted = {c.name: c.pg_type for c in columns} | _OWN_COLUMNS
    chunks, there = chunk_table(pipeline_id), column_types(connection, pipeline_id)
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
    pages: Iterable[list[tuple[Any, ...]]],
    how: Splitting,
) -> list[tuple[tuple[Any, ...], Refusal]]:
    """Split contents, a page of rows at a time, and store the chunks; all chunks of a row are stored at once.

    The rows: ``columns`` as texts, the content, and its hash. Returns the rows that the table has no room for,
    such as those with a key that is too long for its index.
    """
    isolation = Isolation(connection, "the chunks", may_refuse_all=True)
    refused: list[tuple[tuple[Any, ...], Refusal]] = []

    def add(block: _Chunks) -> int:
        _add(connection, chunks, columns, block)
        return len(block)

    for fetched in pages:
        for block in _blocks(fetched, how):
            refused += [(part[0], refusal) for part, refusal in isolation.isolate(block, add, _halves)]
    if isolation.taken:
        connection.execute(query("chunks", "analyze", chunks=chunks))
    return refused


def reject_unsplit(connection: Connection, request: Request | None, key: tuple[str, ...], refusal: Refusal) -> None:
    """List a row whose chunks have no room, if this is an extract."""
    if request is not None:
        error = RowError("unreadable", str(refusal))
        add_rejects(
            connection, request.pipeline_id, request.run_id, [(json.dumps(key, ensure_ascii=False), None, error)]
        )


def _halves(block: _Chunks) -> tuple[_Chunks, _Chunks] | None:
    """Two parts of a block, each with all chunks of its rows; None if it is a single row."""
    firsts = [at for at, (*_, number, _) in enumerate(block) if number == 0 and at]
    if not firsts:
        return None
    middle = min(firsts, key=lambda at: abs(2 * at - len(block)))
    return block[:middle], block[middle:]


def count_lost(connection: Connection, plan: Plan, describe_rows: Callable[[], Rows]) -> int:
    """How many vectors a plan deletes because their row is gone; the other deleted ones are of shortened texts."""
    every = describe_rows().whole.rows
    key = plan.table.row_key
    parts = {"plan": plan.rows, "rows": every, "columns": names(key), "same_row": same_key(key, "p", "r")}
    found = connection.execute(query("chunks", "count_lost", **parts)).fetchone()
    return found[0] if found else 0


def splitting_of(pipeline: Pipeline) -> Splitting:
    """How a pipeline with ``source.chunks`` splits its contents."""
    if pipeline.source.chunks is None:
        raise TypeError("source.chunks")
    return splitting(pipeline.source.chunks, pipeline.embedder)


def column_types(connection: Connection, pipeline_id: PipelineId) -> dict[str, str]:
    """The columns of a pipeline's chunks with their types; none if there is no such table."""
    return {name: pg_type for name, pg_type, _ in stored_columns(connection, _SCHEMA, _table_name(pipeline_id))}


def _blocks(fetched: list[tuple[Any, ...]], how: Splitting) -> Iterator[_Chunks]:
    """The chunks of some rows: the row's columns, its hash, the chunk's number, and the chunk's text."""
    block: _Chunks = []
    for *row, content, row_hash in fetched:
        block += [(*row, row_hash, number, chunk) for number, chunk in enumerate(how.split(content))]
        if len(block) >= _ADD_CHUNKS:
            yield block
            block = []
    if block:
        yield block


def _add(connection: Connection, chunks: sql.Identifier, columns: tuple[PgColumn, ...], block: _Chunks) -> None:
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
    """``r."a", r."b", `` with a comma at the end, or nothing if there are no columns."""
    return sql.SQL("").join(sql.SQL("{}, ").format(names((c,), alias)) for c in columns)
