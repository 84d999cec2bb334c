"""Who may use a search function or view: it is given to the one that takes its place, which Postgres makes for all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, LiteralString, cast

from psycopg import sql

from rowvec.postgres.connection import Connection
from rowvec.postgres.queries import query


@dataclass(frozen=True, slots=True)
class Privilege:
    """One privilege of one role."""

    name: str
    """As in GRANT: EXECUTE, SELECT."""
    role: str | None
    """None: PUBLIC, every role."""
    grantable: bool


Kind = Literal["function", "view"]
_READ: dict[Kind, str] = {"function": "of_function", "view": "of_view"}


def privileges_of(connection: Connection, kind: Kind, written: str) -> list[Privilege]:
    """The privileges on a function or view, given as the database writes its name; the owner's are among them."""
    found = connection.execute(query("privileges", _READ[kind], object=sql.Literal(written))).fetchall()
    return [Privilege(*row) for row in found]


def give(connection: Connection, kind: Kind, written: str, wanted: Sequence[Privilege]) -> None:
    """Give the privileges on a new function or view to exactly the roles that had them on the one it replaces."""
    present = privileges_of(connection, kind, written)
    # The text is a regprocedure's or regclass's, which the database itself wrote and quoted.
    named = sql.SQL("FUNCTION {}" if kind == "function" else "{}").format(sql.SQL(cast("LiteralString", written)))
    for role in dict.fromkeys(held.role for held in present if held not in wanted):
        connection.execute(query("privileges", "revoke", object=named, role=_role(role)))
    for held in wanted:
        if held not in present:
            parts = {
                "privilege": sql.SQL(cast("LiteralString", held.name)),
                "role": _role(held.role),
                "option": sql.SQL("WITH GRANT OPTION" if held.grantable and held.role else ""),
            }
            connection.execute(query("privileges", "grant", object=named, **parts))


def _role(role: str | None) -> sql.Composable:
    return sql.SQL("PUBLIC") if role is None else sql.Identifier(role)
