"""A Postgres source as SQL: the database that holds the rows renders and hashes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import LiteralString, cast

import psycopg
from psycopg import errors as pg
from psycopg import sql

from rowvec.errors import SourceError
from rowvec.pipeline import Pipeline, template
from rowvec.pipeline.embedders import ColumnEmbedder
from rowvec.pipeline.parts import table_identifier
from rowvec.pipeline.sources import PostgresSource
from rowvec.postgres.columns import PgColumn, listed
from rowvec.postgres.connection import Connection, target_url
from rowvec.postgres.fragments import names, same_key
from rowvec.postgres.queries import query
from rowvec.runtime.suggestion import did_you_mean
from rowvec.sources.encoding import Readable, readable_rows

NOT_BLANK = "[^ \t\n\r\f\v]"
"""Content with such a character has a vector. The search stops at the first one; trimming copies the whole text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceQuery:
    """The source's rows as a SELECT, and facts about its columns."""

    all_rows: sql.Composable
    """``"public"."articles"`` or ``(select …)``."""
    relation: sql.Composable
    """Those of its rows that can be read."""
    key: tuple[PgColumn, ...]
    metadata: tuple[PgColumn, ...]
    content: sql.Composable
    """The content as a text expression over the relation, called ``source``."""
    something: sql.Composable
    """Whether a row has anything to embed."""
    vector: sql.Composable | None
    """The text of the source's own vector, if the column embedder takes it."""
    identity: bytes
    unique: bool
    """Whether the database itself forbids two rows of one key, and NULL in it."""
    unreadable: sql.Composed | None
    """``SELECT`` key and reason of the rows that cannot be read, which ``relation`` leaves out; None: all can."""
    among: Callable[[sql.Composable], Readable]
    """The rows of a relation that can be read."""

    def within(self, keys: sql.Composable) -> SourceQuery:
        """The rows whose keys are in ``keys``: a table, or a SELECT in parentheses."""
        same = same_key(self.key, "scope", "source")
        found = self.among(query("source", "within", relation=self.all_rows, scope=keys, same_key=same))
        return replace(self, relation=found.relation, unreadable=found.unreadable)

    @property
    def whole(self) -> SourceQuery:
        """The rows before they are split: these are not split."""
        return self

    @property
    def unsplit(self) -> sql.Composed:
        """``SELECT`` the keys of rows whose present content is not split yet: none."""
        return query("source", "none_unsplit", key=names(self.key), relation=self.relation)

    @property
    def rows(self) -> sql.Composed:
        """``SELECT`` key, metadata, content, fingerprint and metadata_hash of every row that must have a vector."""
        return query(
            "source",
            "rows",
            columns=names((*self.key, *self.metadata)),
            fingerprint=self.fingerprint,
            metadata_hash=metadata_hash(self.metadata),
            **self._parts,
        )

    @property
    def changed_rows(self) -> sql.Composed:
        """``rows``: a join with the changed ones renders no others."""
        return self.rows

    @property
    def blank(self) -> sql.Composed:
        """``SELECT`` the keys of rows that have nothing to embed."""
        return query("source", "blank", key=names(self.key), **self._parts)

    @property
    def fingerprint(self) -> sql.Composed:
        """sha256 over identity and content, as ``rowvec.vectors.fingerprint`` computes it for files."""
        if self.vector is None:
            return fingerprint_of_content(self.identity)
        return sql.SQL(
            "sha256({}::bytea || sha256(convert_to(content, 'UTF8')) || convert_to(rowvec_vector, 'UTF8'))"
        ).format(sql.Literal(self.identity))

    @property
    def _parts(self) -> dict[str, sql.Composable]:
        whole_key = sql.SQL(" AND ").join(sql.SQL("{} IS NOT NULL").format(sql.Identifier(c.name)) for c in self.key)
        single = query("source", "single", key=names(self.key), relation=self.relation, whole_key=whole_key)
        return {
            "content": self.content,
            "vector": self.vector or sql.SQL("NULL::text"),
            "relation": self.relation,
            "whole_key": whole_key,
            "something": self.something,
            "single": sql.SQL("true") if self.unique else single,
        }


def is_in_target_database(pipeline: Pipeline) -> bool:
    """Whether the source is in the target's own database, so that the two can be joined there."""
    source = pipeline.source
    return source.kind == "postgres" and (source.url is None or source.url == target_url(pipeline.target.url))


def describe(connection: Connection, pipeline: Pipeline, source: PostgresSource, identity: bytes) -> SourceQuery:
    """Look up the source's columns and compose its query.

    Raises ``SourceError`` if the table, a column or the query is missing or cannot be read.
    """
    relation = relation_of(source)
    types = _column_types(connection, source, relation)
    vector_column = pipeline.embedder.column if isinstance(pipeline.embedder, ColumnEmbedder) else None
    parsed = template.parse(source.content or "")
    read = (*source.metadata, *columns_of_content(pipeline, source))
    for name in (*source.key, *read):
        if name not in types:
            raise SourceError(
                f"the source has no column {name!r}; it has {listed(sorted(types))}{did_you_mean(name, types)}"
            )
    key = tuple(PgColumn(name, types[name]) for name in source.key)
    columns = tuple(PgColumn(name, types[name]) for name in read)

    def among(rows: sql.Composable) -> Readable:
        return readable_rows(connection, rows, key, columns)

    readable = among(relation)
    return SourceQuery(
        all_rows=relation,
        among=among,
        relation=readable.relation,
        unreadable=readable.unreadable,
        key=key,
        metadata=tuple(PgColumn(name, types[name]) for name in source.metadata),
        content=_content(parsed),
        something=_something(parsed, vector_column),
        vector=sql.SQL("source.{}::text").format(sql.Identifier(vector_column)) if vector_column else None,
        identity=identity,
        unique=source.table is not None and _is_unique(connection, source.table, source.key),
    )


def columns_of_content(pipeline: Pipeline, source: PostgresSource) -> tuple[str, ...]:
    """The columns that a row's vector is made of: those of the template, and the source's own vector."""
    vector = (pipeline.embedder.column,) if isinstance(pipeline.embedder, ColumnEmbedder) else ()
    return (*template.parse(source.content or "").columns, *vector)


def fingerprint_of_content(identity: bytes) -> sql.Composed:
    """The fingerprint of a column ``content``."""
    return sql.SQL("sha256({}::bytea || convert_to(content, 'UTF8'))").format(sql.Literal(identity))


def metadata_hash(metadata: tuple[PgColumn, ...], alias: str | None = None) -> sql.Composed:
    """sha256 over the row's metadata as Postgres writes a record, in which NULL, '' and quotes all differ."""
    return sql.SQL("sha256(convert_to(ROW({})::text, 'UTF8'))").format(names(metadata, alias))


def _content(parsed: template.Template) -> sql.Composable:
    parts = [
        sql.Literal(part)
        if isinstance(part, str)
        else sql.SQL("coalesce(source.{}::text, '')").format(sql.Identifier(part.name))
        for part in parsed.parts
    ]
    return sql.SQL(" || ").join(parts) if parts else sql.SQL("''")


def _something(parsed: template.Template, vector_column: str | None) -> sql.Composable:
    """Whether there is a character that is not blank; looks at the columns one by one, as rendering all costs more."""
    if vector_column is not None:
        return sql.SQL("source.{} IS NOT NULL").format(sql.Identifier(vector_column))
    if any(isinstance(part, str) and part.strip(" \t\n\r\f\v") for part in parsed.parts):
        return sql.SQL("true")
    tests = [
        sql.SQL("source.{}::text ~ {}").format(sql.Identifier(name), sql.Literal(NOT_BLANK)) for name in parsed.columns
    ]
    return sql.SQL("({})").format(sql.SQL(" OR ").join(tests)) if tests else sql.SQL("false")


def relation_of(source: PostgresSource) -> sql.Composable:
    """What follows FROM: the table, or the query in parentheses."""
    if source.table is not None:
        return sql.Identifier(*table_identifier(source.table))
    # The query is the pipeline author's own SQL, as trusted as the author; it runs with the role's rights.
    # The line end closes a comment at the end of the query.
    return sql.SQL("({}\n)").format(sql.SQL(cast("LiteralString", (source.query or "").strip().rstrip("; \n"))))


def table_not_there(connection: Connection, table: tuple[str, str]) -> str:
    """One sentence for a table that a database does not have, with the one that may be meant."""
    name = ".".join(table)
    known = [f"{s}.{t}" for s, t in connection.execute(query("source", "relations")).fetchall()]
    return f"there is no table {name} in this database{did_you_mean(name, known)}"


def _column_types(connection: Connection, source: PostgresSource, relation: sql.Composable) -> dict[str, str]:
    try:
        with connection.transaction():
            result = connection.execute(sql.SQL("SELECT * FROM {} AS source LIMIT 0").format(relation)).pgresult
    except pg.UndefinedTable as error:
        if source.table is None:
            raise SourceError(f"the source's query cannot be read: {error.diag.message_primary}") from None
        raise SourceError(f"source.table: {table_not_there(connection, table_identifier(source.table))}") from None
    except psycopg.ProgrammingError as error:
        what = f"table {source.table}" if source.table else "query"
        raise SourceError(f"the source's {what} cannot be read: {error.diag.message_primary}") from None
    if result is None:
        raise SourceError("the source's query gives no rows; write a SELECT")
    columns = range(result.nfields)
    names = [(result.fname(i) or b"").decode() for i in columns]
    with connection.types_with_schemas():
        described = connection.execute(
            query("source", "column_types"),
            {"oids": [result.ftype(i) for i in columns], "modifiers": [result.fmod(i) for i in columns]},
        )
    types = (connection.names.without_schema(row[0]) for row in described)
    return dict(zip(names, types, strict=True))


def _is_unique(connection: Connection, table: str, key: list[str]) -> bool:
    name = sql.Identifier(*table_identifier(table)).as_string(connection)
    row = connection.execute(query("source", "unique_key"), {"relation": name, "key": key}).fetchone()
    return bool(row and row[0])
