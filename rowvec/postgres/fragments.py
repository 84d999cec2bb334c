"""A key as 16 bytes that sort the same everywhere: what two databases, or a file and a database, are compared by."""

from __future__ import annotations

import hashlib

from psycopg import sql

from rowvec.postgres.columns import PgColumn


def key_digest(key: tuple[PgColumn, ...]) -> sql.Composed:
    """The digest as SQL: the first 16 bytes of sha256 over each column's text, preceded by its length in bytes.

    The lengths keep ('a', 'bc') and ('ab', 'c') apart. Collations differ between servers; bytes do not.
    """
    text = sql.SQL(" || ").join(
        sql.SQL("octet_length(convert_to({0}::text, 'UTF8')) || ':' || {0}::text").format(sql.Identifier(column.name))
        for column in key
    )
    return sql.SQL("substring(sha256(convert_to({}, 'UTF8')) FROM 1 FOR 16)").format(text)


def names(columns: tuple[PgColumn, ...], alias: str | None = None) -> sql.Composed:
    """``"a", "b"``, or with an alias ``t."a", t."b"``."""
    return sql.SQL(", ").join(
        sql.Identifier(alias, column.name) if alias else sql.Identifier(column.name) for column in columns
    )


def key_json(key: tuple[PgColumn, ...], alias: str | None = None) -> sql.Composed:
    """The key as the rejects hold it: a JSON array of texts."""
    parts = (sql.Identifier(alias, c.name) if alias else sql.Identifier(c.name) for c in key)
    return sql.SQL("jsonb_build_array({})").format(sql.SQL(", ").join(sql.SQL("{}::text").format(p) for p in parts))


_LONGEST_NAME = 63


def cut_name(table: str, suffix: str) -> str:
    """``table`` and ``suffix`` as one name of at most 63 bytes; a name that had to be cut keeps a digest of the whole.

    Postgres itself cuts without a word, and two long names can then be one.
    """
    if len((table + suffix).encode()) <= _LONGEST_NAME:
        return table + suffix
    digest = "_" + hashlib.sha256(table.encode()).hexdigest()[:8]
    room = _LONGEST_NAME - len((digest + suffix).encode())
    return table.encode()[:room].decode(errors="ignore") + digest + suffix


def same_key(key: tuple[PgColumn, ...], left: str, right: str) -> sql.Composed:
    """``l.a = r.a AND l.b = r.b``."""
    return sql.SQL(" AND ").join(
        sql.SQL("{} = {}").format(sql.Identifier(left, c.name), sql.Identifier(right, c.name)) for c in key
    )


def compared_as(column: PgColumn) -> sql.SQL:
    """Values that print alike are alike: equality is too lenient for citext, numeric and -0, and missing for json."""
    return sql.SQL("" if is_exact(column) else '::text COLLATE "C"')


def is_exact(column: PgColumn) -> bool:
    """Whether equal values print alike: 1.0 and 1.00 are one key to the database, and two to those who read it."""
    return column.pg_type in ("smallint", "integer", "bigint", "boolean", "uuid", "date")
