"""What a name in SQL stands for in one database: the schema of pgvector, of other extensions' types, and the path.

A session's path holds ``pg_catalog`` and those schemas of the role's own path in which nobody else may create
anything. Otherwise somebody could put a function or an operator there that fits a call better than the server's own,
and it would run with our rights. So what lies elsewhere is written with its schema: pgvector, and types and operators
of other extensions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import LiteralString, Protocol, cast

from psycopg import sql
from psycopg.abc import AdaptContext

from rowvec.errors import TargetError

# The first name of a type as format_type writes it, and what follows it: a dot and the type's own name, or its length.
_FIRST = re.compile(r'("(?:[^"]|"")+"|[^\s".(\[]+)(.*)', re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """The names of one database, as one role sees them. All schemas and types are quoted where they need it."""

    pgvector: str | None = None
    """The schema of pgvector; None if the database has no pgvector."""
    types: Mapping[str, str] = field(default_factory=dict[str, str])
    """The schema of each type that belongs to an extension and whose name no other extension's type has."""
    path: str | None = None
    """The path of each transaction; None: the role's own, until we have read it."""
    scratch: str = ""
    """What the names of this connection's scratch tables have in common."""
    creation: str | None = None
    """The schema in which the role creates what has no schema; None if its own path has none."""

    def without_schema(self, pg_type: str) -> str:
        """A type that ``format_type`` wrote with its schema; the schema of an extension's type is left out.

        An extension may lie in one schema here and in another one in the next database; its types are the same.
        """
        found = _FIRST.fullmatch(pg_type)
        if found and found[2].startswith("."):
            inner = _FIRST.fullmatch(found[2][1:])
            if inner and self.types.get(inner[1]) == found[1]:
                return found[2][1:]
        return pg_type

    def schema_of(self, pg_type: str) -> str | None:
        """The schema of a type without one; None for the server's own types, and if the type has its schema."""
        found = _FIRST.fullmatch(pg_type)
        return self.types.get(found[1]) if found and not found[2].startswith(".") else None


class Named(Protocol):
    """A connection that knows the names of its database."""

    names: Names
    names_scratch: bool
    """Whether a statement of this transaction has named a scratch table of the connection."""


class PgvectorSchema(sql.Composable):
    """The schema of pgvector in the database that the statement goes to. Raises ``TargetError`` if it has none."""

    def __init__(self) -> None:
        super().__init__("pgvector")

    def as_bytes(self, context: AdaptContext | None = None) -> bytes:
        """The schema, quoted if it must be."""
        schema = _names(context).pgvector
        if schema is None:
            raise TargetError("the target database has no pgvector: let a sync install it")
        return schema.encode()


class ScratchTable(sql.Composable):
    """A table of one connection's own, for data of several transactions; it is dropped when the connection is closed.

    Not a temporary table, because those belong to a session, and a pooler gives each transaction another one. It is not
    logged: a server that crashed, and a standby that was promoted, have it, but empty. ``Connection`` notices.
    """

    def as_bytes(self, context: AdaptContext | None = None) -> bytes:
        """The table with its schema."""
        names = _names(context)
        if context:
            cast("Named", context.connection).names_scratch = True
        return sql.Identifier("rowvec", f"scratch_{names.scratch}_{self._obj}").as_bytes(context)


class TypeName(sql.Composable):
    """A type as ``Names.without_schema`` writes it, with the schema that it has in the statement's database."""

    def as_bytes(self, context: AdaptContext | None = None) -> bytes:
        """The type; pgvector's types and those of other extensions have their schema."""
        written = cast("str", self._obj)
        schema = _names(context).schema_of(written)
        return (f"{schema}.{written}" if schema else written).encode()


class Operator(sql.Composable):
    """An operator of a type: an extension's type has its own, in the schema of the extension."""

    def __init__(self, symbol: LiteralString, pg_type: str) -> None:
        super().__init__((symbol, pg_type))

    def as_bytes(self, context: AdaptContext | None = None) -> bytes:
        """The symbol, or ``OPERATOR(schema.symbol)``."""
        symbol, pg_type = cast("tuple[str, str]", self._obj)
        schema = _names(context).schema_of(pg_type)
        return (f"OPERATOR({schema}.{symbol})" if schema else symbol).encode()


class PercentSignsDoubled(sql.Composable):
    """A part of a statement with parameters, in which psycopg would take a percent sign for a placeholder."""

    def as_bytes(self, context: AdaptContext | None = None) -> bytes:
        """The part, with each percent sign twice."""
        return bytes(cast("sql.Composable", self._obj).as_bytes(context)).replace(b"%", b"%%")


PGVECTOR = PgvectorSchema()


def _names(context: AdaptContext | None) -> Names:
    if context is None:
        # To look at a statement that no database is asked.
        return Names()
    # To ask whether the connection is ``Named`` would take a twentieth of the time of a sync with nothing to do.
    names = getattr(context.connection, "names", None)
    if not isinstance(names, Names):
        raise TypeError("this statement names things of a database; write it for a connection of rowvec's")
    return names
