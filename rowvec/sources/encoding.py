"""Texts of a database without an encoding (SQL_ASCII): those that are not UTF-8 make a row unreadable, and no other."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from psycopg import sql

from rowvec.postgres.columns import PgColumn
from rowvec.postgres.connection import Connection
from rowvec.postgres.fragments import is_exact
from rowvec.postgres.queries import query

# Well-formed UTF-8 (RFC 3629) as hexadecimal digits.
_MORE = "[89ab][0-9a-f]"
_UTF8 = (
    "^([0-7][0-9a-f]"
    f"|(c[2-9a-f]|d[0-9a-f]){_MORE}"
    f"|e0[ab][0-9a-f]{_MORE}|e[1-9a-cef]({_MORE}){{2}}|ed[89][0-9a-f]{_MORE}"
    f"|f0[9ab][0-9a-f]({_MORE}){{2}}|f[1-3]({_MORE}){{3}}|f48[0-9a-f]({_MORE}){{2}})*$"
)


@dataclass(frozen=True, slots=True)
class Readable:
    """The rows of a relation that can be read, and the others."""

    relation: sql.Composable
    unreadable: sql.Composed | None = None
    """``SELECT`` the key of each other row as JSON, and why it cannot be read; None if all rows can be read."""


def readable_rows(
    connection: Connection, relation: sql.Composable, key: tuple[PgColumn, ...], columns: Iterable[PgColumn]
) -> Readable:
    """A relation without the rows that have bytes in these columns that are not UTF-8; a NULL is readable.

    Every other encoding is checked by its own server, and each of its texts has a form in UTF-8.
    """
    if connection.info.parameter_status("server_encoding") != "SQL_ASCII":
        return Readable(relation)
    tests = {column: _is_utf8(column) for column in dict.fromkeys((*key, *columns)) if not is_exact(column)}
    if not tests:
        return Readable(relation)
    readable = sql.SQL(" AND ").join(tests.values())
    broken = (
        sql.SQL("CASE WHEN NOT {} THEN {}::text END").format(test, sql.Literal(column.name))
        for column, test in tests.items()
    )
    texts = (
        query("encoding", "escaped", is_utf8=_is_utf8(column), text=_text(column), bytes=_bytes(column))
        for column in key
    )
    unreadable = query(
        "encoding",
        "unreadable",
        key_json=sql.SQL("jsonb_build_array({})").format(sql.SQL(", ").join(texts)),
        broken=sql.SQL(", ").join(broken),
        relation=relation,
        readable=readable,
    )
    return Readable(query("encoding", "readable", relation=relation, readable=readable), unreadable)


def _is_utf8(column: PgColumn) -> sql.Composed:
    return query("encoding", "is_utf8", text=_text(column), bytes=_bytes(column), utf8=sql.Literal(_UTF8))


def _text(column: PgColumn) -> sql.Composed:
    return sql.SQL("source.{}::text").format(sql.Identifier(column.name))


def _bytes(column: PgColumn) -> sql.Composed:
    return query("encoding", "bytes", text=_text(column))
