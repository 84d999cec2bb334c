"""A column's Postgres type, and how its values travel: as Arrow in artifacts, as text or binary in COPY."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import LiteralString, cast

import pyarrow as pa

from rowvec.postgres.names import TypeName

# The types whose values travel as they are. Values of all other types (timestamps past Python's calendar, numeric,
# arrays, ranges, enums, types of other extensions) travel as the text that Postgres writes, and are cast back later.
_NATIVE: dict[str, pa.DataType] = {
    "smallint": pa.int16(),
    "integer": pa.int32(),
    "bigint": pa.int64(),
    "real": pa.float32(),
    "double precision": pa.float64(),
    "boolean": pa.bool_(),
    "text": pa.string(),
    # A first load writes the column's own type: from text, it would take the hex digits for the bytes themselves.
    "bytea": pa.binary(),
}

PG_TYPE = b"pg_type"
"""Key of an Arrow field's metadata that holds the column's Postgres type."""

_LISTED = 20


def listed(names: Sequence[str]) -> str:
    """Names of columns for a message, at most twenty; a name that would mislead the eye is quoted."""
    shown = [name if name.isprintable() and name.strip() == name and name else repr(name) for name in names[:_LISTED]]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more:,} more" if more else "")


@dataclass(frozen=True, slots=True)
class PgColumn:
    """A column of the source, or of the vector table, with its type as ``Names.without_schema`` writes it."""

    name: str
    pg_type: str

    @property
    def travels_as(self) -> LiteralString:
        """The Postgres type of this column in files and staging: its own if values travel as they are, else text."""
        return cast("LiteralString", self.pg_type) if self.pg_type in _NATIVE else "text"

    @property
    def type_sql(self) -> TypeName:
        """The type for DDL and casts: the database itself wrote it, and quoted what needs quotes."""
        return TypeName(self.pg_type)

    @property
    def arrow_field(self) -> pa.Field:
        """The field of this column in an artifact."""
        return pa.field(self.name, _NATIVE.get(self.pg_type, pa.string()), metadata={PG_TYPE: self.pg_type.encode()})
