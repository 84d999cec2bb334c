"""Hybrid search as an SQL function next to the vector table, so that any client can call it."""

from __future__ import annotations

from functools import partial
from typing import LiteralString

from psycopg import sql

from rowvec.postgres.connection import Connection
from rowvec.postgres.fragments import cut_name, names
from rowvec.postgres.queries import query
from rowvec.postgres.vector_index import IndexChoice
from rowvec.postgres.vector_table import VectorTable
from rowvec.searches.hybrid import DEPTH, LEAST_DEPTH, Hybrid, check_language, fused_statement
from rowvec.searches.request import LIMITS, MOST_K
from rowvec.searches.sql_function import (
    COLUMNS,
    Definition,
    arguments,
    equal_to_filter,
    generations,
    install_search_function,
    remove_function,
    replace_function,
    results,
    vector_type,
)
from rowvec.searches.statement import SearchValues

SUFFIX = "_hybrid_search"
"""The end of the function's name, after that of the table."""

_COMMENT = "rowvec: the rows that rank best by vector and by words together, best first"


def install_hybrid_function(connection: Connection, table: VectorTable, choice: IndexChoice, hybrid: Hybrid) -> str:
    """Make or replace ``<schema>.<table>_hybrid_search(query, words, k, filter)`` and the search function it calls.

    It gives the columns of the search function, ``score``, ``vector_rank`` and ``text_rank``, as ``hybrid_search``
    does; returns its name, quoted. Raises ``TargetError`` if it cannot be replaced, ``UsageError`` for a language that
    the database does not know.
    """
    check_language(connection, hybrid.language)
    install_search_function(connection, table, choice)

    def define(name: sql.Identifier) -> Definition:
        wanted: list[tuple[LiteralString, sql.Composable]] = [
            ("query", vector_type(table)),
            ("words", sql.SQL("text")),
            ("k", sql.SQL("integer DEFAULT 10")),
            ("filter", sql.SQL("jsonb DEFAULT NULL")),
        ]
        more = (sql.SQL("score double precision"), sql.SQL("vector_rank bigint"), sql.SQL("text_rank bigint"))
        return Definition(
            write=partial(
                query,
                "hybrid",
                "function",
                name=name,
                arguments=arguments(table, wanted),
                results=results(table, *more),
            ),
            body=_body(connection, table, choice, hybrid),
            types=sql.SQL("{}, text, integer, jsonb").format(vector_type(table)),
            comment=_COMMENT,
        )

    return replace_function(connection, table, cut_name(table.name, SUFFIX), define)


def drop_hybrid_function(connection: Connection, table: VectorTable) -> None:
    """Drop the function, if it exists: the pipeline no longer wants it. Raises what ``remove_function`` raises."""
    remove_function(connection, table, cut_name(table.name, SUFFIX))


def _body(connection: Connection, table: VectorTable, choice: IndexChoice, hybrid: Hybrid) -> sql.Composed:
    depth = sql.SQL("greatest({} * $3, {})").format(sql.Literal(DEPTH), sql.Literal(LEAST_DEPTH))
    nearest = query(
        "hybrid",
        "function_nearest",
        columns=sql.SQL("{}, t.content").format(names((*table.key, *table.metadata), "t")),
        search=sql.Identifier(table.schema, cut_name(table.name, "_search")),
        depth=depth,
        most_k=sql.Literal(MOST_K),
        oversampling=sql.Literal(choice.oversampling),
    )
    values = SearchValues(
        vector=sql.SQL("$1"),
        k=sql.SQL("$3"),
        oversampling=sql.Literal(choice.oversampling),
        condition=equal_to_filter(table),
    )
    statement = fused_statement(table, hybrid, values, nearest=nearest, words=sql.SQL("$2"), depth=depth)
    return query(
        "hybrid",
        "function_body",
        generations=generations(connection, table, SUFFIX, f"{COLUMNS}, score, vector_rank, text_rank"),
        most_k=sql.Literal(MOST_K),
        limits_message=sql.Literal(LIMITS),
        statement=statement,
    )
