"""The pieces of SQL that many statements share: lists of columns, "key equals key", keys as JSON and as digests."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from psycopg import sql

from rowvec.postgres.columns import PgColumn
from rowvec.postgres.names import Operator

_LONGEST_NAME = 63


def names(columns: Iterable[PgColumn], alias: str | None = None) -> sql.Composed:
    """``"a", "b"``, or with an alias ``t."a", t."b"``."""
    return sql.SQL(", ").join(_name(column, alias) for column in columns)


def definitions(columns: Iterable[PgColumn]) -> sql.Composed:
    """``"a" integer, "b" text``: the columns with their types, as a CREATE TABLE lists them."""
    return sql.SQL(", ").join(sql.SQL("{} {}").format(_name(column), column.type_sql) for column in columns)


def as_sent(columns: Iterable[PgColumn], alias: str | None = None) -> sql.Composed:
    """``"a"::integer, "b"::text``: each column cast to the type in which its values travel (``travels_as``)."""
    return sql.SQL(", ").join(
        sql.SQL("{}::{}").format(_name(column, alias), sql.SQL(column.travels_as)) for column in columns
    )


def same_key(key: Iterable[PgColumn], left: str, right: str, *, cast_right: bool = False) -> sql.Composed:
    """``l."a" = r."a" AND l."b" = r."b"``.

    ``cast_right``: the columns of ``right`` are cast to their own types first, because there they are held as they
    travel, and types without a binary form travel as text.
    """
    return sql.SQL(" AND ").join(
        sql.SQL("{} {} {}").format(
            _name(column, left),
            Operator("=", column.pg_type),
            as_own_type(column, right) if cast_right else _name(column, right),
        )
        for column in key
    )


def as_own_type(column: PgColumn, alias: str) -> sql.Composed:
    """``t."a"::integer``: a column that may be held as text, cast to its own type."""
    return sql.SQL("{}::{}").format(_name(column, alias), column.type_sql)


def key_text(key: Iterable[PgColumn], alias: str | None = None) -> sql.Composed:
    """The key as one text: each column's text after its length in bytes and a colon.

    The lengths keep ('a', 'bc') and ('ab', 'c') apart.
    """
    return sql.SQL(" || ").join(
        sql.SQL("octet_length(convert_to({0}::text, 'UTF8')) || ':' || {0}::text").format(_name(column, alias))
        for column in key
    )


def key_digest(key: Iterable[PgColumn], alias: str | None = None) -> sql.Composed:
    """The key as 16 bytes: the first half of the sha256 over its ``key_text``.

    Two databases, or a file and a database, compare and sort rows by it: collations differ between servers, bytes do
    not.
    """
    return sql.SQL("substring(sha256(convert_to({}, 'UTF8')) FROM 1 FOR 16)").format(key_text(key, alias))


def key_json(key: Iterable[PgColumn], alias: str | None = None) -> sql.Composed:
    """The key as the table of rejects holds it: a JSON array of texts."""
    texts = sql.SQL(", ").join(sql.SQL("{}::text").format(_name(column, alias)) for column in key)
    return sql.SQL("jsonb_build_array({})").format(texts)


def compared_as(column: PgColumn) -> sql.SQL:
    """What follows a column's name where two values should be equal only if they print alike.

    Postgres' own equality is too lenient for citext, numeric and -0, and does not exist for json.
    """
    return sql.SQL("" if is_exact(column) else '::text COLLATE "C"')


def is_exact(column: PgColumn) -> bool:
    """Whether equal values print alike: the database takes 1.0 and 1.00 for one key, and readers see two."""
    return column.pg_type in ("smallint", "integer", "bigint", "boolean", "uuid", "date")


def cut_name(table: str, suffix: str) -> str:
    """``table`` and ``suffix`` as one name of at most 63 bytes; a name that was cut ends in a digest of the whole.

    Postgres itself cuts a name without saying so, and two long names can then become one.
    """
    if len((table + suffix).encode()) <= _LONGEST_NAME:
        return table + suffix
    digest = "_" + hashlib.sha256(table.encode()).hexdigest()[:8]
    room = _LONGEST_NAME - len((digest + suffix).encode())
    return table.encode()[:room].decode(errors="ignore") + digest + suffix


def _name(column: PgColumn, alias: str | None = None) -> sql.Identifier:
    return sql.Identifier(alias, column.name) if alias else sql.Identifier(column.name)
