"""A column's Postgres type, and how its values travel: as Arrow in artifacts, as text or binary in COPY."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import LiteralString, cast

import pyarrow as pa
from psycopg import sql

# The types whose values travel as themselves. Everything else (timestamps past Python's calendar, numeric, arrays,
# ranges, enums, types of other extensions) travels as the text Postgres gives for it, and is cast back on arrival.
_NATIVE: dict[str, pa.DataType] = {
    "smallint": pa.int16(),
    "integer": pa.int32(),
    "bigint": pa.int64(),
    "real": pa.float32(),
    "double precision": pa.float64(),
    "boolean": pa.bool_(),
    "text": pa.string(),
    # As text, its hex digits would be taken for the bytes themselves where a first load writes the column's own type.
    "bytea": pa.binary(),
}

PG_TYPE = b"pg_type"
"""Key of an Arrow field's metadata that holds the column's Postgres type."""

_LISTED = 20


def listed(names: Sequence[str]) -> str:
    """Names of columns for a message: those that would mislead the eye in quotes, and not thousands of them."""
    shown = [name if name.isprintable() and name.strip() == name and name else repr(name) for name in names[:_LISTED]]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more:,} more" if more else "")


@dataclass(frozen=True, slots=True)
class PgColumn:
    """A column of the source, or of the vector table, with its type as ``format_type`` writes it."""

    name: str
    pg_type: str

    @property
    def travels_as(self) -> LiteralString:
        """The Postgres type this column has on its way through files and staging: its own if native, else text."""
        return cast("LiteralString", self.pg_type) if self.pg_type in _NATIVE else "text"

    @property
    def type_sql(self) -> sql.SQL:
        """The type as it stands in DDL and casts: written, and quoted where need be, by the database itself."""
        return sql.SQL(cast("LiteralString", self.pg_type))

    @property
    def arrow_field(self) -> pa.Field:
        """The field of this column in an artifact."""
        return pa.field(self.name, _NATIVE.get(self.pg_type, pa.string()), metadata={PG_TYPE: self.pg_type.encode()})

    @staticmethod
    def from_arrow_field(field: pa.Field) -> PgColumn:
        """The column an artifact's field was written from."""
        metadata = field.metadata or {}
        return PgColumn(field.name, metadata.get(PG_TYPE, b"text").decode())
