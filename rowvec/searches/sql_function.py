"""The search as an SQL function next to the vector table, so that any client can call it."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import LiteralString, cast

from psycopg import errors as pg
from psycopg import sql

from rowvec.errors import TargetError
from rowvec.ledger.generations import generation_before
from rowvec.postgres.columns import PgColumn
from rowvec.postgres.connection import Connection, lost_connections_are_retriable
from rowvec.postgres.fragments import cut_name, definitions, names
from rowvec.postgres.locks import LockSpace
from rowvec.postgres.names import TypeName
from rowvec.postgres.queries import query
from rowvec.postgres.vector_index import IndexChoice
from rowvec.postgres.vector_table import VectorTable, stored_columns
from rowvec.searches.index_kinds import method_of
from rowvec.searches.index_kinds.protocol import Sought
from rowvec.searches.privileges import give, privileges_of
from rowvec.searches.request import LIMITS, MOST_K, MOST_OVERSAMPLING
from rowvec.searches.statement import Filtered, SearchValues, by_index, filter_plan, shortlist_length, statement
from rowvec.searches.where import cast_of

# Types whose values a filter compares as they are. Other types may have no equality (json, point): a filter compares
# their text.
_COMPARED = frozenset(
    {
        "smallint", "integer", "bigint", "numeric", "boolean", "text", "character varying", "character", "uuid", "date",
        "timestamp with time zone", "timestamp without time zone",
    }
)  # fmt: skip
_LENGTH = re.compile(r"\([^)]*\)")

COLUMNS: LiteralString = "content, distance"
"""The columns that the function gives after those of the key and the metadata."""

_COMMENT = 'rowvec: the rows nearest to a vector, nearest first; filter is equality on columns, {"column": value}'


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """A search function as it should be."""

    write: Callable[..., sql.Composed]
    """The statement that makes it, with this ``body``."""
    body: sql.Composed
    types: sql.Composed
    """The types of its arguments."""
    comment: LiteralString
    """By which ``our_functions`` knows it."""
    access_method: str = ""
    """Whose settings it makes; none if it makes no settings of an index."""

    def marked_body(self, connection: Connection) -> str:
        """The body, and a number of the whole statement: who finds it in the database finds this definition there."""
        body = self.body.as_string(connection)
        whole = self.write(body=sql.Literal(body)).as_string(connection)
        return f"{body}\n-- definition {int.from_bytes(hashlib.sha256(whole.encode()).digest()[:8])}\n"


def install_search_function(connection: Connection, table: VectorTable, choice: IndexChoice) -> str:
    """Make or replace ``<schema>.<table>_search(query, k, oversampling, filter)``; returns its name, quoted.

    It gives key and metadata columns, ``content`` and ``distance``, as ``search`` in mode ``adaptive`` does. One
    transaction: callers meet the old function or the new one. Raises ``TargetError`` if it cannot be replaced.
    """
    plain = cut_name(table.name, "_search")
    return replace_function(connection, table, plain, lambda name: _definition(connection, table, choice, name))


def replace_function(
    connection: Connection, table: VectorTable, plain: str, define: Callable[[sql.Identifier], Definition]
) -> str:
    """Make the function ``plain`` in the table's schema as ``define`` says; returns its quoted name.

    A function that is as it should be stays, so that its callers keep their plans. Functions of that name with other
    arguments that rowvec made before are dropped; the new one has their privileges, and a comment that is not rowvec's.
    Raises ``TargetError`` if one of them cannot be dropped or replaced, ``DatabaseUnavailable`` if the connection is
    lost.
    """
    name = sql.Identifier(table.schema, plain)
    written = name.as_string(connection)
    with lost_connections_are_retriable(), _refusals(f"{table.schema}.{plain}"), connection.transaction():
        connection.execute(query("search", "function_lock"), {"space": LockSpace.SEARCH_FUNCTION, "name": written})
        ours = query("search", "our_functions")
        named = {"schema": table.schema, "name": plain}
        before = connection.execute(ours, named).fetchall()
        wanted = define(name)
        body = wanted.marked_body(connection)
        if [found for _, _, _, found in before] == [body]:
            return written
        if wanted.access_method:
            connection.execute(query("search", "load_library"), {"access_method": wanted.access_method})
        held = [privileges_of(connection, "function", signature) for signature, *_ in before[:1]]
        try:
            with connection.transaction():
                made = _create(connection, name, wanted, body)
        except pg.InvalidFunctionDefinition:
            # Other result columns, or another name of an argument: CREATE OR REPLACE cannot change those.
            _drop(connection, [signature for signature, *_ in before])
            made = _create(connection, name, wanted, body)
        else:
            _drop(connection, [signature for signature, oid, *_ in before if oid != made])
        if before:
            after = next(found for found, oid, *_ in connection.execute(ours, named).fetchall() if oid == made)
            give(connection, "function", after, held[0])
            _comment_again(connection, after, before[0][2])
    return written


def remove_function(connection: Connection, table: VectorTable, plain: str) -> None:
    """Drop the functions ``plain`` of the table's schema that rowvec made, if any; raises as ``replace_function``."""
    with lost_connections_are_retriable(), _refusals(f"{table.schema}.{plain}"), connection.transaction():
        ours = query("search", "our_functions")
        found = connection.execute(ours, {"schema": table.schema, "name": plain}).fetchall()
        _drop(connection, [signature for signature, *_ in found])


@contextmanager
def _refusals(name: str) -> Generator[None]:
    """Raise ``TargetError`` if a view depends on the function, or another function has its name."""
    try:
        yield
    except (pg.DependentObjectsStillExist, pg.InvalidFunctionDefinition) as error:
        raise TargetError(
            f"the search function {name} cannot be replaced ({error.diag.message_primary}); drop what depends on it, "
            "or the function itself, and run again"
        ) from error


def _definition(connection: Connection, table: VectorTable, choice: IndexChoice, name: sql.Identifier) -> Definition:
    wanted: list[tuple[LiteralString, sql.Composable]] = [
        ("query", vector_type(table)),
        ("k", sql.SQL("integer DEFAULT 10")),
        ("oversampling", sql.SQL("integer DEFAULT {}").format(sql.Literal(choice.oversampling))),
        ("filter", sql.SQL("jsonb DEFAULT NULL")),
    ]
    return Definition(
        write=partial(
            query,
            "search",
            "function",
            name=name,
            arguments=arguments(table, wanted),
            results=results(table),
            of_index=_restored(choice),
            seqscan=sql.SQL("on" if choice.kind == "none" else "off"),
            # No parallel workers with an index: those of the exact search, which is seldom needed, would start every
            # time.
            workers=sql.SQL("DEFAULT" if choice.kind == "none" else "0"),
        ),
        body=_body(table, choice, generations(connection, table, "_search", COLUMNS)),
        types=sql.SQL("{}, integer, integer, jsonb").format(vector_type(table)),
        comment=_COMMENT,
        access_method="" if choice.kind == "none" else method_of(choice.kind).access_method,
    )


def _restored(choice: IndexChoice) -> sql.Composed:
    """The clauses by which the settings of the index's kind end with the call."""
    if choice.kind == "none":
        return sql.Composed([])
    any_number = sql.Literal(1)
    plain = Sought(shortlist=any_number, oversampling=any_number, most_visits=any_number)
    method = method_of(choice.kind)
    made = (method.settings_of(choice, sought) for sought in (plain, replace(plain, visits=any_number)))
    settings = dict.fromkeys(itertools.chain.from_iterable(made))
    clauses = [query("search", "restored", name=sql.Identifier(*name.split("."))) for name in settings]
    return sql.SQL("\n").join(clauses)


def _create(connection: Connection, name: sql.Identifier, wanted: Definition, body: str) -> int:
    """Returns the function's oid."""
    connection.execute(wanted.write(body=sql.Literal(body)))
    comment = sql.Literal(wanted.comment)
    connection.execute(query("search", "comment_function", name=name, types=wanted.types, comment=comment))
    signature = sql.SQL("{} ({})").format(name, wanted.types).as_string(connection)
    found = connection.execute(query("search", "function_oid", signature=sql.Literal(signature))).fetchone()
    return int(found[0]) if found else 0


def results(table: VectorTable, *more: sql.SQL) -> sql.Composed:
    """The columns that a search function gives."""
    own = definitions((*table.key, *table.metadata))
    return sql.SQL(", ").join([own, sql.SQL("content text"), sql.SQL("distance double precision"), *more])


def known_columns(table: VectorTable) -> sql.Composed:
    """The columns a filter may name, as a ``text[]``."""
    known = (sql.Literal(c.name) for c in (*table.key, *table.metadata))
    return sql.SQL("ARRAY[{}]::text[]").format(sql.SQL(", ").join(known))


def equal_to_filter(table: VectorTable) -> sql.Composed:
    """The condition that a row has the values that the filter, ``$4``, names."""
    return sql.SQL(" AND ").join(_equals(column) for column in (*table.key, *table.metadata))


def generations(connection: Connection, table: VectorTable, suffix: str, columns: LiteralString) -> sql.Composed:
    """The head of a body: a switch of generations is then no error to a caller during the switch or after it.

    ``columns``: what the function ``<table><suffix>`` gives after key and metadata.
    """
    written = table.identifier.as_string(connection)
    name = sql.Identifier(table.schema, cut_name(table.name, suffix))
    (oid,) = connection.execute(query("search", "table_oid"), {"table": written}).fetchone() or (None,)
    before = generation_before(connection, table.schema, table.name)
    former: sql.Composable = sql.SQL("")
    if before and before.dimensions != table.dimensions and _has_columns(connection, table, before.table):
        function = sql.Identifier(table.schema, cut_name(before.table, suffix))
        former = query(
            "search",
            "function_former",
            dimensions=sql.Literal(before.dimensions),
            asked=table.dimensions_of(sql.SQL("$1")),
            function=sql.Literal(function.as_string(connection)),
            again=sql.Literal(_call(table, function, columns).as_string(connection)),
        )
    first = table.partition_columns[:1]
    nothing = query("search", "no_partition", column=names(first)) if first else query("search", "no_row")
    return query(
        "search",
        "function_generations",
        table=table.identifier,
        nothing=nothing,
        name=sql.Literal(written),
        oid=sql.Literal(oid or 0),
        again=sql.Literal(_call(table, name, columns).as_string(connection)),
        former=former,
    )


def _call(table: VectorTable, function: sql.Identifier, columns: LiteralString) -> sql.Composed:
    own = names((*table.key, *table.metadata))
    return sql.SQL("SELECT {}, {} FROM {} ($1, $2, $3, $4)").format(own, sql.SQL(columns), function)


def _has_columns(connection: Connection, table: VectorTable, former: str) -> bool:
    """Whether the generation before gives the same columns in the same types, and takes the same type of query."""
    stored = {(name, kind) for name, kind, _ in stored_columns(connection, table.schema, former)}
    kinds = {_LENGTH.sub("", kind) for name, kind in stored if name == "embedding"}
    # Of pgvector's types only ``vector`` is cast to the others implicitly.
    return (
        bool(kinds & {table.layout.type_name} or table.precision == "float32")
        and {(c.name, c.pg_type) for c in (*table.key, *table.metadata)} <= stored
    )


def _body(table: VectorTable, choice: IndexChoice, first: sql.Composed) -> sql.Composed:
    columns = (*table.key, *table.metadata)
    values = SearchValues(vector=sql.SQL("$1"), k=sql.SQL("$2"), oversampling=sql.SQL("$3"), condition=sql.SQL("true"))
    plain = statement(table, choice, "adaptive", values)
    filtered = statement(
        table,
        choice,
        "adaptive",
        replace(values, condition=equal_to_filter(table)),
        Filtered(
            most_matches=sql.SQL("rowvec_most_matches"),
            visits=sql.SQL("rowvec_visits"),
            most_visits=sql.SQL("rowvec_most_visits"),
        ),
    )
    estimate: sql.Composable = sql.SQL("")
    if by_index(choice, "adaptive"):
        estimate = query(
            "search",
            "function_estimate",
            schema=sql.Literal(table.schema),
            name=sql.Literal(table.name),
            **_searched_rows(table),
            plan=filter_plan(
                table,
                rows=sql.SQL("estimate.rows"),
                matching=sql.SQL("estimate.matching"),
                cost=sql.SQL("estimate.cost"),
                shortlist=shortlist_length(choice, "adaptive", values),
            ),
        )
        estimate = sql.SQL("{}{}").format(_partition_of_filter(table), estimate)
    known = ", ".join(column.name for column in columns)
    return query(
        "search",
        "function_body",
        generations=first,
        most_k=sql.Literal(MOST_K),
        most_oversampling=sql.Literal(MOST_OVERSAMPLING),
        limits_message=sql.Literal(LIMITS),
        filterable=known_columns(table),
        known=sql.Literal(f"the filter names no key or metadata column; there are: {known}; it has: "),
        settings=plain.settings,
        statement=plain.rows,
        estimate=estimate,
        filtered_settings=filtered.settings,
        filtered_statement=filtered.rows,
    )


def _partition_of_filter(table: VectorTable) -> sql.Composable:
    """In the body: look up the partition that a search with a filter reads; nothing for a table that is not split."""
    if table.partition_by is None:
        return sql.SQL("")
    equal = sql.SQL(" AND ").join(_equals(column) for column in table.partition_columns)
    parts = {"columns": _split_columns(table), "table": table.identifier, "equal": equal}
    return sql.SQL("{}\n    ").format(query("search", "function_partition", **parts))


def _searched_rows(table: VectorTable) -> dict[str, sql.Composable]:
    """Among how many rows a search looks, and how many of them have what the filter says of the other columns."""
    whole = query("search", "of_table")
    if table.partition_by is None:
        return {"among": whole, "matching_among": whole, "certain": query("search", "no_column")}
    part = query("search", "of_partition")
    if table.partition_by.kind == "hash":
        return {"among": part, "matching_among": whole, "certain": query("search", "no_column")}
    certain = query("search", "all_of_partition", columns=_split_columns(table))
    return {"among": part, "matching_among": part, "certain": certain}


def _split_columns(table: VectorTable) -> sql.Composed:
    named = sql.SQL(", ").join(sql.Literal(column.name) for column in table.partition_columns)
    return sql.SQL("ARRAY[{}]::text[]").format(named)


def _equals(column: PgColumn) -> sql.Composed:
    name, identifier = sql.Literal(column.name), sql.Identifier("t", column.name)
    if _LENGTH.sub("", column.pg_type) in _COMPARED:
        return query("search", "filter_equals_typed", name=name, column=identifier, type=cast_of(column))
    return query("search", "filter_equals", name=name, column=identifier)


def arguments(table: VectorTable, wanted: list[tuple[LiteralString, sql.Composable]]) -> sql.Composed:
    """The parameters. A name that a result column has too gets underscores: both are variables of the function."""
    taken = {column.name for column in table.columns}
    named: list[sql.Composable] = []
    for name, rest in wanted:
        free = name
        while free in taken:
            free += "_"
        named.append(sql.SQL("{} {}").format(sql.Identifier(free), rest))
    return sql.SQL(", ").join(named)


def vector_type(table: VectorTable) -> TypeName:
    """The type of a query, without its length."""
    return TypeName(table.layout.type_name)


def _comment_again(connection: Connection, signature: str, comment: str | None) -> None:
    if comment is not None and not comment.startswith("rowvec: "):
        written = sql.SQL(cast("LiteralString", signature))
        connection.execute(query("search", "comment_again", signature=written, comment=sql.Literal(comment)))


def _drop(connection: Connection, signatures: list[str]) -> None:
    for signature in signatures:
        # The text of a regprocedure, which the database itself wrote and quoted.
        written = sql.SQL(cast("LiteralString", signature))
        connection.execute(query("search", "drop_function", signature=written))
