"""Hybrid search: full text and vectors ranked together, for words that a vector blurs (names, numbers, codes)."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any

from psycopg import sql

from rowvec.errors import TargetError, UsageError
from rowvec.postgres.connection import Connection, lost_connections_are_retriable
from rowvec.postgres.fragments import cut_name, names, same_key
from rowvec.postgres.queries import query
from rowvec.postgres.tables.partitions import tables_of
from rowvec.postgres.vector_index import IndexChoice
from rowvec.postgres.vector_table import VectorTable
from rowvec.searches.query import Hit, hit_of, percent_signs_doubled, prepare, search_transaction
from rowvec.searches.request import SearchRequest, check_request
from rowvec.searches.statement import SearchValues, columns_of, distance_to

# A row at rank r of a list, counted from 1, scores 1 / (60 + r): the constant of Cormack, Clarke and Buettcher (SIGIR
# 2009), which others use too. With a larger one the heads of the lists count less.
RRF_K = 60

# Ranks of each list that take part: the larger of DEPTH * k and LEAST_DEPTH. A row that both lists have further down
# answers no question.
DEPTH = 4
LEAST_DEPTH = 50

_LOCK_TIMEOUT = "30min"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hybrid:
    """How the contents are searched by their words."""

    language: str
    """The name of a text search configuration of the database: english, german, simple and so on."""


def ensure_text_index(connection: Connection, table: VectorTable, hybrid: Hybrid) -> bool:
    """Build the index on the words of the contents, unless the table has a valid one; returns whether it was built.

    It is built CONCURRENTLY, so readers and writers go on. An invalid index, which an interrupted build left, is
    dropped first, and an index for another language afterwards. Raises ``UsageError`` for a language that the database
    does not know, ``TargetError`` if the new index is not valid, and what ``lost_connections_are_retriable`` raises.
    """
    check_language(connection, hybrid.language)
    with lost_connections_are_retriable():
        before = _text_indexes(connection, table)
        # By the end of its name: after a rebuild the table has the name of another one, and its indexes keep theirs.
        own = {name: valid for name, valid in before.items() if name.endswith(_suffix(hybrid))}
        name = next((name for name, valid in own.items() if valid), None)
        built = name is None
        if name is None:
            for invalid in own:
                _drop(connection, table, invalid)
            name = _free_name(connection, table, hybrid)
            create = query(
                "hybrid",
                "create_index",
                name=sql.Identifier(name),
                table=table.identifier,
                language=sql.Literal(hybrid.language),
            )
            connection.execute_alone(create, {"lock_timeout": _LOCK_TIMEOUT})
            if not _text_indexes(connection, table).get(name):
                raise TargetError(f"the full text index {table.schema}.{name} is not valid: run again")
        for other in _text_indexes(connection, table):
            if other != name:
                _drop(connection, table, other)
    return built


def has_text_index(connection: Connection, table: VectorTable, hybrid: Hybrid) -> bool:
    """Whether the table has the valid index that ``ensure_text_index`` builds."""
    return any(valid and name.endswith(_suffix(hybrid)) for name, valid in _text_indexes(connection, table).items())


def drop_text_indexes(connection: Connection, table: VectorTable) -> tuple[str, ...]:
    """Drop what ``ensure_text_index`` built on a table or its partitions, for a pipeline that no longer wants it.

    Returns the names.
    """
    with lost_connections_are_retriable():
        found = tuple(_text_indexes(connection, table))
        for one in tables_of(connection, table) if found else ():
            for name in _text_indexes(connection, one):
                _drop(connection, one, name)
    return found


def check_language(connection: Connection, language: str) -> None:
    """Raise ``UsageError`` for a language that the database does not know."""
    with lost_connections_are_retriable():
        known = [str(row[0]) for row in connection.execute(query("hybrid", "languages")).fetchall()]
    if language not in known:
        raise UsageError(f"the database has no text search configuration {language!r}; there are: {', '.join(known)}")


def hybrid_search(
    connection: Connection,
    table: VectorTable,
    choice: IndexChoice,
    hybrid: Hybrid,
    words: str,
    request: SearchRequest,
) -> list[Hit]:
    """The ``k`` rows that rank best in nearness to the request's vector and in matching ``words``, best first.

    Reciprocal rank fusion of two lists of ``max(4 k, 50)`` rows; a row that only one list has counts too. ``words``
    are read as search engines read them (quotes, ``or``, ``-``). The filter holds for both lists. Rows of equal score
    are in the order of the key. Raises what ``search`` raises, and ``UsageError`` for words that Postgres cannot hold.
    """
    checked = check_request(table, choice, request, rows=depth_of(request.k))
    if "\0" in words:
        raise UsageError("the words have a character that no text in Postgres can hold")
    with search_transaction(connection, checked, request.where) as cursor:
        nearest, _ = prepare(cursor, checked)
        fused = fused_statement(
            table,
            hybrid,
            replace(checked.values, k=sql.Literal(request.k)),
            nearest=nearest,
            words=sql.Placeholder("words"),
            depth=sql.Literal(depth_of(request.k)),
        )
        parameters = {**checked.parameters, "words": words}
        rows = cursor.execute(percent_signs_doubled(fused), parameters, prepare=False).fetchall()
    return [
        replace(hit_of(checked, row[:-3]), score=float(row[-3]), vector_rank=row[-2], text_rank=row[-1]) for row in rows
    ]


def depth_of(k: int) -> int:
    """Ranks of each list that take part in the fusion."""
    return max(DEPTH * k, LEAST_DEPTH)


def fused_statement(
    table: VectorTable,
    hybrid: Hybrid,
    values: SearchValues,
    *,
    nearest: sql.Composable,
    words: sql.Composable,
    depth: sql.Composable,
) -> sql.Composed:
    """The fusion of a vector search ``nearest`` with one by ``words``: its columns, score and both ranks.

    Both give up to ``depth`` rows, and the fusion ``values.k``.
    """
    return query(
        "hybrid",
        "fused",
        table=table.identifier,
        nearest=nearest,
        key_t=names(table.key, "t"),
        key=names(table.key),
        columns=columns_of(table, values),
        same_row=same_key(table.key, "t", "f"),
        language=sql.Literal(hybrid.language),
        words=words,
        distance=distance_to(table, values.vector),
        filter=values.condition,
        depth=depth,
        rrf=sql.Literal(RRF_K),
        k=values.k,
    )


def _text_indexes(connection: Connection, table: VectorTable) -> dict[str, bool]:
    """The names of the full text indexes that rowvec built on the table, and whether each is valid."""
    rows: list[tuple[Any, ...]] = connection.execute(
        query("hybrid", "text_indexes"), {"schema": table.schema, "table": table.name}
    ).fetchall()
    return {str(name): bool(valid) for name, valid in rows}


def _drop(connection: Connection, table: VectorTable, name: str) -> None:
    statement = query("index", "drop", concurrently=sql.SQL("CONCURRENTLY"), name=sql.Identifier(table.schema, name))
    connection.execute_alone(statement, {})


def _suffix(hybrid: Hybrid) -> str:
    """The end of the full text index's name; the language is part of it."""
    return f"_rowvec_text_{hybrid.language}"


def _free_name(connection: Connection, table: VectorTable, hybrid: Hybrid) -> str:
    """A name for the full text index, with a number if an earlier generation's index has the plain one."""
    found = connection.execute(query("index", "names"), {"schema": table.schema}).fetchall()
    taken = {str(row[0]) for row in found}
    numbered = (cut_name(table.name, f"_{number}{_suffix(hybrid)}") for number in itertools.count(2))
    plain = cut_name(table.name, _suffix(hybrid))
    return next(name for name in itertools.chain([plain], numbered) if name not in taken)
