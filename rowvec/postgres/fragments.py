"""A key as 16 bytes that sort the same everywhere: what two databases, or a file and a database, are compared by."""

from __future__ import annotations

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
