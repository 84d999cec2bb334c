"""What people added to a vector table (row level security, privileges, indexes, comments): carried over, or refused.

A switch of generations replaces a table by another one. The whole catalog entry of the two is compared, so that
nothing that somebody added to the old table is lost without a word. What rowvec knows to carry over is carried over by
DDL from the database's own catalog functions; all other differences are refused by name, before anything is built.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, LiteralString, cast

import psycopg
from psycopg import sql

from rowvec.errors import TargetError
from rowvec.ledger.generations import Generation
from rowvec.pipeline import Pipeline
from rowvec.pipeline.sources import CHUNK
from rowvec.postgres.columns import PgColumn
from rowvec.postgres.connection import Connection
from rowvec.postgres.fragments import cut_name, definitions, names
from rowvec.postgres.queries import query
from rowvec.postgres.tables.create import split_clause
from rowvec.postgres.vector_table import VectorTable, stored_columns
from rowvec.runtime.figures import counted
from rowvec.searches.index_kinds import access_methods

_LISTED = 5
_PROBE = "__rowvec_probe"


@dataclass(frozen=True, slots=True)
class _Fact:
    """One fact of a table's catalog entry."""

    kind: str
    name: str
    value: str | None
    head: str | None
    """The DDL that gives it to the other table; None if rowvec knows none."""
    tail: str | None
    """What follows the name in the DDL, if the fact is about an object that needs a name of its own in the schema."""
    unmake: str | None
    """The DDL that takes it from its own table; None if rowvec knows none."""

    @property
    def identity(self) -> tuple[str, str, str | None]:
        """Equal for equal facts of two tables. Objects that need other names are compared by their definitions."""
        return self.kind, self.name if self.tail is None else "", self.value

    @property
    def title(self) -> str:
        """What a message calls it."""
        return f"{self.kind} {self.name}".strip()

    @property
    def object(self) -> tuple[bool, str]:
        """What it is about, if that needs a name of its own: names of statistics are not among those of indexes."""
        return "statistics" in self.kind and "index" not in self.kind, self.name

    def ddl(self, named: str) -> sql.Composed:
        """The statement that gives it to the other table. The text comes from the catalog, which quoted it.

        ``named``: the name of the object on the other table.
        """
        head = sql.SQL(cast("LiteralString", self.head or ""))
        if self.tail is None:
            return sql.Composed([head])
        return sql.Composed([head, sql.Identifier(named), sql.SQL(cast("LiteralString", self.tail))])


@dataclass(frozen=True, slots=True)
class _Place:
    """A table, and the columns of it that are compared."""

    schema: str
    table: str
    suffix: str
    """Of the names of its objects, as far as they need other names than those of the live table's objects."""

    @property
    def written(self) -> str:
        return _quoted(self.schema, self.table)


def check_additions(connection: Connection, live: Generation, pipeline: Pipeline, following: Pipeline) -> None:
    """Try on an empty table whether a generation with the settings ``following`` can take what ``live`` has.

    ``pipeline``: the settings of the live table. Nothing is left behind. Raises ``TargetError`` that names each object
    of the user that cannot be carried over.
    """
    types = _columns(connection, live)
    ours = _named(pipeline)
    refuse_columns(live, [name for name in types if name not in ours])
    place = _Place(live.schema, cut_name(live.table, _PROBE), _PROBE)
    layout = _layout(following, types)
    wanted = {column.name: column.pg_type for column in layout.columns}
    altered = [name for name in ours if name in types and wanted.get(name) != types[name]]

    if found := _bound(connection, _place(live)) + _on_columns(connection, live, altered, wanted):
        raise _refused(live, found)
    with connection.transaction(force_rollback=True):
        parts = {"columns": definitions(layout.columns), "key": names(layout.key), "split": split_clause(layout)}
        connection.execute(query("additions", "probe", table=sql.Identifier(place.schema, place.table), **parts))
        _carry(connection, _place(live), place, _shared(types, wanted), _keys(pipeline, following))


def carry_additions(
    connection: Connection, live: Generation, following: Generation, settings: tuple[Pipeline, Pipeline]
) -> None:
    """Give the next table all that was added to the live one, in one transaction.

    ``settings``: those of the two tables. Raises ``TargetError`` that names what cannot be carried over.
    """
    with connection.transaction():
        check_bound(connection, live)
        columns, key = _both(connection, live, following), _keys(*settings)
        _carry(connection, _place(live), _place(following), columns, key)


def check_equal(
    connection: Connection, live: Generation, following: Generation, settings: tuple[Pipeline, Pipeline]
) -> None:
    """Raise ``TargetError`` if the two tables differ, because somebody changed one since ``carry_additions``.

    For the transaction of the switch, with both tables locked.
    """
    check_bound(connection, live)
    columns, key = _both(connection, live, following), _keys(*settings)
    one, other = _place(live), _place(following)
    found = _differences(_facts(connection, one, other, columns, key), _facts(connection, other, one, columns, key))
    if found:
        raise TargetError(
            f"{found[0]} of {live.schema}.{live.table} was changed while rowvec was about to switch; nothing was "
            "switched, run again"
        )


def exchange_names(connection: Connection, live: Generation, following: Generation) -> None:
    """Give indexes, constraints and statistics of the next table the names that their equals have on the live one.

    For the transaction of the switch, before the tables are renamed. The equals get the number of their generation.
    """
    one, other = _place(live), _place(following)
    theirs = _facts(connection, other, one, [], [])
    wanted = [fact for fact in _facts(connection, one, other, [], []) if fact.kind in _RENAMED]
    named = _names_of_equals(wanted, theirs)
    for fact in wanted:
        equal = named.get(fact.object)
        if fact.tail is not None and equal not in (None, fact.name):
            _rename(connection, fact, one, fact.name, _free_name(connection, one, fact.name))
            _rename(connection, fact, other, equal or "", fact.name)


def check_bound(connection: Connection, live: Generation) -> None:
    """Raise ``TargetError`` if an object of the user is bound to the live table, and would stay with the old one."""
    found = _bound(connection, _place(live))
    if found:
        raise _refused(live, found)


def check_free(connection: Connection, schema: str, table: str) -> None:
    """Raise ``TargetError`` if the name of a table that rowvec will make is taken."""
    taken = connection.execute(query("additions", "taken"), {"schema": _quoted(schema), "name": table}).fetchone()
    if taken:
        raise TargetError(
            f"{taken[0]} has the name that a rebuild needs, and rowvec did not make it: rename it, and run again"
        )


def check_no_data(connection: Connection, generation: Generation, pipeline: Pipeline) -> None:
    """Raise ``TargetError`` if a table that will be dropped has columns of the user's own."""
    ours = _named(generation.settings or pipeline)
    refuse_columns(generation, [name for name in _columns(connection, generation) if name not in ours])


def refuse_columns(generation: Generation, own: Sequence[str]) -> None:
    """Raise ``TargetError`` for columns that are not rowvec's: their data would stay with the old table."""
    if own:
        table, columns = f"{generation.schema}.{generation.table}", counted(len(own), "columns")
        raise TargetError(
            f"{table} has {columns} that rowvec did not make: {', '.join(own[:_LISTED])}. That data belongs to this "
            f"table alone, and would be lost with it: copy it with the key to a table of your own, or add it to the "
            f"source and to source.metadata; then ALTER TABLE {table} DROP COLUMN, and run again"
        )


_RENAMED = frozenset({"the index", "the constraint", "the extended statistics"})


def _carry(connection: Connection, one: _Place, other: _Place, columns: Sequence[str], key: Sequence[str]) -> None:
    """Run the DDL for all differences, and compare again: what is then different cannot be carried over."""
    wanted, present = (_facts(connection, *pair, columns, key) for pair in ((one, other), (other, one)))
    missing, surplus = _without(wanted, present), _without(present, wanted)
    remade = {(fact.kind, fact.name) for fact in missing}
    for fact in surplus:
        if fact.unmake is not None and (fact.kind, fact.name) not in remade:
            _do(connection, fact, sql.Composed([sql.SQL(cast("LiteralString", fact.unmake))]), one)
    named = _names_of_equals(wanted, present)
    for fact in missing:
        if fact.head is not None:
            if fact.tail is not None and fact.object not in named:
                named[fact.object] = _free_name(connection, other, fact.name)
            _do(connection, fact, fact.ddl(named.get(fact.object, "")), one)
    wanted, present = (_facts(connection, *pair, columns, key) for pair in ((one, other), (other, one)))
    if found := _differences(wanted, present):
        raise TargetError(
            f"a rebuild cannot carry over {', '.join(found[:_LISTED])} of {one.schema}.{one.table}: the next table "
            "would be without it, or have it although the live one has not; make the tables equal, and run again"
        )


def _names_of_equals(wanted: list[_Fact], present: list[_Fact]) -> dict[tuple[bool, str], str]:
    """The names that indexes, constraints and statistics of one table have on the other one."""
    left = [fact for fact in present if fact.kind in _RENAMED and fact.tail is not None]
    named: dict[tuple[bool, str], str] = {}
    for fact in wanted:
        equal = next((f for f in left if f.identity == fact.identity), None)
        if equal is not None and fact.tail is not None:
            left.remove(equal)
            named[fact.object] = equal.name
    return named


def _free_name(connection: Connection, place: _Place, name: str) -> str:
    """A name that is free in the schema: the name with the place's suffix, and with a number if that is taken."""
    for number in itertools.count():
        free = cut_name(name, place.suffix + (f"_{number}" if number else ""))
        if not _read(connection, "name_taken", {"table": place.written, "name": free})[0][0]:
            return free
    raise AssertionError("there is always a free name")


def _do(connection: Connection, fact: _Fact, statement: sql.Composed, live: _Place) -> None:
    try:
        connection.execute(statement)
    except (psycopg.OperationalError, psycopg.InterfaceError):
        raise
    except psycopg.Error as error:
        raise TargetError(
            f"a rebuild cannot carry over {fact.title} of {live.schema}.{live.table}: "
            f"{error.diag.message_primary or type(error).__name__}; drop it first, and make it again afterwards"
        ) from error


def _differences(wanted: list[_Fact], present: list[_Fact]) -> list[str]:
    different = [*_without(wanted, present), *_without(present, wanted)]
    return list(dict.fromkeys(fact.title for fact in different))


def _without(facts: list[_Fact], others: list[_Fact]) -> list[_Fact]:
    """The facts that have no equal among the others."""
    there = Counter(fact.identity for fact in others)
    left: list[_Fact] = []
    for fact in facts:
        if there[fact.identity]:
            there[fact.identity] -= 1
        else:
            left.append(fact)
    return left


def _facts(
    connection: Connection, place: _Place, into: _Place, columns: Sequence[str], key: Sequence[str]
) -> list[_Fact]:
    values = {"table": place.written, "into": into.written, "columns": list(columns), "key": list(key)}
    values["methods"] = access_methods()
    return [_Fact(*row) for row in _read(connection, "catalog", values)]


def _bound(connection: Connection, place: _Place) -> list[str]:
    return [row[0] for row in _read(connection, "bound", {"table": place.written})]


def _read(connection: Connection, block: str, values: dict[str, Any]) -> list[tuple[Any, ...]]:
    """The rows of a block, in which all names have their schemas; the session's own path is as before afterwards."""
    with connection.transaction(force_rollback=True):
        connection.execute(query("additions", "pin_names"))
        return connection.execute(query("additions", block), values).fetchall()


def _on_columns(connection: Connection, live: Generation, altered: Sequence[str], wanted: dict[str, str]) -> list[str]:
    gone = [name for name in altered if name not in wanted]
    values = {
        "table": _place(live).written,
        "columns": list(altered),
        "gone": gone,
        "methods": access_methods(),
    }
    rows = _read(connection, "on_columns", values)
    return [f"{found} (its column {column} is not in the next table, or has another type)" for found, column in rows]


def _refused(live: Generation, found: Sequence[str]) -> TargetError:
    return TargetError(
        f"these objects depend on {live.schema}.{live.table} and would stay with the old table after a switch: "
        f"{', '.join(found[:_LISTED])}; drop them before rowvec rebuild and create them again after, or let them read "
        f"{live.table}_search"
    )


def _rename(connection: Connection, fact: _Fact, place: _Place, old: str, new: str) -> None:
    if fact.kind == "the extended statistics":
        schema = _read(connection, "statistics_schema", {"table": place.written, "name": old})[0][0]
        statistics = sql.Identifier(schema, old)
        connection.execute(query("additions", "rename_statistics", statistics=statistics, name=sql.Identifier(new)))
        return
    # An index of a constraint takes the constraint with it.
    index = sql.Identifier(place.schema, old)
    connection.execute(query("additions", "rename_index", index=index, name=sql.Identifier(new)))


def _columns(connection: Connection, generation: Generation) -> dict[str, str]:
    return {name: kind for name, kind, _ in stored_columns(connection, generation.schema, generation.table)}


def _layout(pipeline: Pipeline, types: dict[str, str]) -> VectorTable:
    """The next table; the columns that come from the source have the types of the live table."""

    def of(wanted: Iterable[str]) -> tuple[PgColumn, ...]:
        return tuple(PgColumn(name, "integer" if name == CHUNK else types.get(name, "text")) for name in wanted)

    return VectorTable.of(pipeline, of(pipeline.source.vector_key), of(pipeline.source.metadata))


def _named(pipeline: Pipeline) -> list[str]:
    """The names of the columns that rowvec makes for a pipeline."""
    return [column.name for column in _layout(pipeline, {}).columns]


def _shared(types: dict[str, str], wanted: dict[str, str]) -> list[str]:
    return [name for name in wanted if name in types]


def _both(connection: Connection, live: Generation, following: Generation) -> list[str]:
    return _shared(_columns(connection, live), _columns(connection, following))


def _keys(*settings: Pipeline) -> list[str]:
    return [name for pipeline in settings for name in pipeline.source.vector_key]


def _place(generation: Generation) -> _Place:
    return _Place(generation.schema, generation.table, f"__{generation.number}")


def _quoted(*parts: str) -> str:
    return ".".join('"' + part.replace('"', '""') + '"' for part in parts)
