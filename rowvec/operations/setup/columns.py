"""The columns of a table or a file, their lengths and their key: what a draft of a pipeline file is made of."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from psycopg import sql

from rowvec.errors import SourceError, UsageError
from rowvec.pipeline.parts import table_identifier
from rowvec.postgres.connection import Connection
from rowvec.postgres.queries import query
from rowvec.sources.postgres import table_not_there

Kind = Literal["text", "scalar", "other"]
"""``scalar``: a number, a date, a boolean, an enumeration, an identifier."""

_SAMPLE = 1_000
_NUMBER = r"-?(?:0|[1-9][0-9]{0,17})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column of a source."""

    name: str
    kind: Kind
    written: str
    """The type, as the database or the file calls it."""
    width: float | None = None
    """Bytes or characters of a value, on the average; None if that is not known."""
    number: bool = False
    """CSV: whether all values that were looked at are whole numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A source's columns, and what is known to be its key."""

    columns: tuple[Column, ...]
    key: tuple[str, ...] = ()
    """Empty if nothing guarantees one."""
    key_from: str = ""
    """What makes it the key: ``the primary key``."""


def of_table(connection: Connection, table: str) -> Found:
    """The columns of a table or view. Raises ``UsageError`` if there is none of this name, or it has no column."""
    schema, name = table_identifier(table)
    parts = {"schema": sql.Literal(schema), "table": sql.Literal(name)}
    rows = connection.execute(query("setup", "columns", **parts)).fetchall()
    if not rows:
        raise UsageError(table_not_there(connection, (schema, name)))
    columns = tuple(
        Column(name=column, kind=kind, written=written, width=width) for column, kind, written, width in rows
    )
    if any(column.kind == "text" and column.width is None for column in columns):
        columns = _sampled(connection, sql.Identifier(schema, name), columns)
    keys = connection.execute(query("setup", "keys", **parts)).fetchone()
    primary, key = keys or (False, ())
    words = ("the primary key" if primary else "unique and not NULL") if key else ""
    return Found(columns=columns, key=tuple(key), key_from=words)


def _sampled(connection: Connection, table: sql.Identifier, columns: Sequence[Column]) -> tuple[Column, ...]:
    """The columns with the mean length of texts in some rows, for a table that was never analyzed."""
    texts = [column for column in columns if column.kind == "text"]
    lengths = sql.SQL(", ").join(
        sql.SQL("avg(length({}::text))::float8").format(sql.Identifier(column.name)) for column in texts
    )
    row = connection.execute(query("setup", "lengths", lengths=lengths, table=table, rows=sql.Literal(_SAMPLE)))
    widths = dict(zip((column.name for column in texts), row.fetchone() or (), strict=True))
    return tuple(
        Column(name=c.name, kind=c.kind, written=c.written, width=widths.get(c.name, c.width)) for c in columns
    )


def of_file(path: Path, kind: Literal["csv", "parquet"]) -> Found:
    """The columns of a file, by its first rows. Raises ``SourceError`` if it cannot be read."""
    # Late: pyarrow's readers.
    from rowvec.sources.formats.csv import CsvFormat
    from rowvec.sources.formats.parquet import ParquetFormat

    read = CsvFormat(",", {}) if kind == "csv" else ParquetFormat()
    try:
        schema = read.schema(path)
        first = next(iter(read.batches(path, schema.names)), None)
    except pa.ArrowException as error:
        raise SourceError(f"the file {path} cannot be read: {str(error).splitlines()[0]}") from None
    rows: dict[str, list[Any]] = {name: [] for name in schema.names}
    if first is not None:
        rows = first.slice(0, _SAMPLE).to_pydict()
    columns = tuple(_of_field(field, rows[field.name]) for field in schema)
    unique = [
        column.name
        for column in columns
        if column.kind != "other" and rows[column.name] and _is_unique(rows[column.name])
    ]
    # A name says more than a sample does: a title may be unique by chance.
    key = next((name for name in unique if name.lower() in ("id", "key", "uuid")), next(iter(unique), None))
    words = f"unique in the first {len(rows[key]):,} rows" if key else ""
    return Found(columns=columns, key=(key,) if key else (), key_from=words)


def _is_unique(values: list[Any]) -> bool:
    return None not in values and len(set(values)) == len(values)


def _of_field(field: Any, values: list[Any]) -> Column:
    kind: Kind = "other"
    if pa.types.is_string(field.type) or pa.types.is_large_string(field.type):
        kind = "text"
    elif not pa.types.is_nested(field.type) and not pa.types.is_binary(field.type):
        kind = "scalar"
    texts = [value for value in values if isinstance(value, str)]
    number = bool(texts) and all(re.fullmatch(_NUMBER, text) for text in texts)
    width = sum(map(len, texts)) / len(texts) if texts else None
    return Column(
        name=field.name, kind="scalar" if number else kind, written=str(field.type), width=width, number=number
    )
