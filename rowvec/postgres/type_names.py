"""Names of Postgres types that others wrote: parsed, and looked up in the catalog, before SQL is built from them.

A name is what ``format_type`` writes: a type of the SQL standard in its own words, or a plain or quoted name with or
without a schema, then modifiers in parentheses, then ``[]`` for an array.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from psycopg import sql

from rowvec.errors import TargetError
from rowvec.postgres.columns import PgColumn
from rowvec.postgres.connection import Connection
from rowvec.postgres.queries import query

_LONGEST = 400
_WORD = r'(?:[a-z_][a-z0-9_]*|"(?:[^"\x00]|"")+")'
_MODIFIERS = r"\((?:-?[0-9]{1,9}|[A-Za-z]{1,30})(?:,(?:-?[0-9]{1,9}|[A-Za-z]{1,30})){0,3}\)"
# Types whose name is several words, and those whose modifiers stand within the name. They are always pg_catalog's.
_WORDS = re.compile(
    r"(?:smallint|integer|bigint|real|double precision|boolean|(?:character|bit) varying(?:\([0-9]{1,9}\))?"
    r"|time(?:stamp)?(?:\([0-9]\))? with(?:out)? time zone"
    r"|interval(?: (?:year|month|day|hour|minute|second)(?: to (?:month|hour|minute|second))?)?(?:\([0-9]\))?"
    r"|(?:character|bit|numeric)(?:\([0-9]{1,9}(?:,-?[0-9]{1,9})?\))?)(?P<array>\[\])?"
)
_NAMED = re.compile(rf"(?P<name>(?:{_WORD}\.)?{_WORD})(?P<modifiers>{_MODIFIERS})?(?P<array>\[\])?")


def known_columns(connection: Connection, columns: Iterable[PgColumn], where: str) -> tuple[PgColumn, ...]:
    """The columns with their types as ``Names.without_schema`` writes them here, fit for SQL.

    ``where``: who named the types, for the message. Raises ``TargetError`` if a type is none, is unknown here, or runs
    functions of a role that is neither a superuser nor this session's.
    """
    return tuple(PgColumn(column.name, _known_type(connection, column, where)) for column in columns)


def _known_type(connection: Connection, column: PgColumn, where: str) -> str:
    text = column.pg_type
    if len(text) <= _LONGEST and _WORDS.fullmatch(text):
        return text
    named = _NAMED.fullmatch(text) if len(text) <= _LONGEST else None
    if named is None:
        raise TargetError(
            f"{where} gives the column {column.name!r} a type that is none: {text[:60]!r}; nothing was changed"
        )
    with connection.types_with_schemas():
        found = connection.execute(query("type_names", "known", name=sql.Literal(named["name"]))).fetchall()
    if len(found) != 1:
        what = "is not in this database" if not found else "is in several schemas of this database"
        raise TargetError(
            f"{where} gives the column {column.name!r} the type {text[:60]!r}, which {what}; create the type, or the "
            "extension that has it, and run again"
        )
    name, trusted = found[0]
    if not trusted:
        raise TargetError(
            f"{where} gives the column {column.name!r} the type {text[:60]!r}, whose owner could run functions as this "
            "role; give the type to this role or to a superuser, and run again"
        )
    return connection.names.without_schema(f"{name}{named['modifiers'] or ''}{named['array'] or ''}")
