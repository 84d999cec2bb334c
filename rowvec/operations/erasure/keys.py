"""The keys of an erasure: as a person writes them, and as a table that the erasure's statements join."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import cast

import psycopg
from psycopg import sql

from rowvec.errors import UsageError
from rowvec.postgres.columns import PgColumn
from rowvec.postgres.connection import Connection
from rowvec.postgres.fragments import as_own_type, definitions, key_digest, key_json, names, same_key
from rowvec.postgres.queries import query

Key = tuple[str, ...]
"""The texts of the key's columns."""


def parse_keys(written: Iterable[str], columns: Sequence[str]) -> list[Key]:
    """Keys as a person writes them: a JSON array of the columns' values, or the value itself if there is one column.

    Raises ``UsageError`` if one has another number of columns.
    """
    return [_parsed(text, columns) for text in written if text.strip()]


def make_erased(connection: Connection, key: tuple[PgColumn, ...], keys: Sequence[Key]) -> None:
    """Make the scratch table ``erased``: the keys in the types of the vector table's columns.

    Raises ``UsageError`` if a value is not one of its column's type.
    """
    connection.execute(query("erasure", "make_erased", columns=definitions(key)))
    if not keys:
        return
    arrays = (sql.SQL("{}::text[]").format(sql.Literal(list(values))) for values in zip(*keys, strict=True))
    typed = sql.SQL(", ").join(as_own_type(column, "k") for column in key)
    statement = query("erasure", "add_keys", columns=names(key), typed=typed, arrays=sql.SQL(", ").join(arrays))
    try:
        connection.execute(statement)
    except psycopg.DataError as error:
        wanted = ", ".join(f"{column.name} {column.pg_type}" for column in key)
        raise UsageError(
            f"a key does not fit the key of the vector table, {wanted}: {error.diag.message_primary}"
        ) from None


def erased_keys(connection: Connection, key: tuple[PgColumn, ...]) -> list[list[str]]:
    """The keys in the scratch table, as the database writes them."""
    return [row[0] for row in connection.execute(query("erasure", "listed_keys", key_json=key_json(key)))]


def erased_digests(connection: Connection, key: tuple[PgColumn, ...]) -> set[bytes]:
    """The digests of the keys in the scratch table; see ``fragments.key_digest``."""
    return {row[0] for row in connection.execute(query("erasure", "digests", digest=key_digest(key)))}


def has_key(key: tuple[PgColumn, ...], types: dict[str, str] | None = None) -> sql.Composed:
    """A condition on a row ``s``: it has one of the keys. ``types``: its columns' types, if they are known."""
    same = types is not None and all(types.get(column.name) == column.pg_type for column in key)
    return query("erasure", "has_key", same_key=same_key(key, "e", "s", cast_right=not same))


def is_reject(key: tuple[PgColumn, ...]) -> sql.Composed:
    """A condition on a reject ``r``: its row, or a chunk of it, has one of the keys."""
    return query("erasure", "is_reject", key_json=key_json(key, "e"), path=path_of(key))


def path_of(key: tuple[PgColumn, ...]) -> sql.Literal:
    """The part of a reject's key that is the key of its row: without the number of a chunk."""
    return sql.Literal(f"$[0 to {len(key) - 1}]")


def _parsed(text: str, columns: Sequence[str]) -> Key:
    values: object = None
    if text.lstrip().startswith("["):
        try:
            values = json.loads(text)
        except ValueError:
            values = None
    if isinstance(values, list) and len(cast("list[object]", values)) == len(columns):
        return tuple(value if isinstance(value, str) else json.dumps(value) for value in cast("list[object]", values))
    if len(columns) == 1:
        return (text,)
    raise UsageError(
        f"{text[:100]!r} is no key of ({', '.join(columns)}); write a JSON array with a text for each column, as "
        "rowvec audit --json does"
    )
