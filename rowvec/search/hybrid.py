"""Hybrid search: full text and vectors ranked together, for words that a vector blurs (names, numbers, codes)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from psycopg import sql

from rowvec.errors import TargetError, UsageError
from rowvec.postgres.connection import Connection, lost_connections_are_retriable
from rowvec.postgres.fragments import cut_name
from rowvec.postgres.queries import query
from rowvec.postgres.vector_index import IndexChoice
from rowvec.postgres.vector_table import VectorTable
from rowvec.search.query import Hit, ask, cursor_for_vectors, hit_of, opened, percent_signs_doubled, refused_values
from rowvec.search.statement import distance_to
from rowvec.vectors.layout import Embeddings

# A row at rank r of a list scores 1 / (60 + r), ranks from 1: the constant of Cormack, Clarke and Buettcher (SIGIR
# 2009), which others use too. Larger, the lists' heads count less.
RRF_K = 60

# Ranks of each list that take part. A row that neither list has so far up is no answer to anybody's question.
DEPTH = 4
LEAST_DEPTH = 50

_LOCK_TIMEOUT = "30min"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hybrid:
    """What full text search needs to know."""

    language: str
    """A text search configuration of the database: english, german, simple and so on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HybridHit:
    """One row that was found, by its vector, its words or both."""

    hit: Hit
    """Its distance is exact, also where the words alone found it."""
    score: float
    """The sum of 1 / (60 + rank) over the two lists."""
    vector_rank: int | None
    """From 1; None where the vector did not find it."""
    text_rank: int | None


def text_index_name(table: VectorTable, hybrid: Hybrid) -> str:
    """The name of the full text index; its language is part of it."""
    return cut_name(table.name, f"_rowvec_text_{hybrid.language}")


def ensure_text_index(connection: Connection, table: VectorTable, hybrid: Hybrid) -> bool:
    """See to it that the table has a valid index on its content's words; returns whether it was built now.

    Built CONCURRENTLY, beside readers and writers; what an interrupted build left is dropped first, and an index for
    another language afterwards. Raises ``UsageError`` for a language that the database does not know.
    """
    check_language(connection, hybrid.language)
    name = text_index_name(table, hybrid)
    with lost_connections_are_retriable():
        before = _text_indexes(connection, table)
        if before.get(name) is False:
            _drop(connection, table, name)
        built = not before.get(name)
        if built:
            connection.execute(query("index", "set"), {"name": "lock_timeout", "value": _LOCK_TIMEOUT})
            try:
                connection.execute(
                    query(
                        "hybrid",
                        "create_index",
                        name=sql.Identifier(name),
                        table=table.identifier,
                        language=sql.Literal(hybrid.language),
                    )
                )
            finally:
                if not connection.broken:
                    connection.execute(query("index", "set"), {"name": "lock_timeout", "value": "30s"})
            if not _text_indexes(connection, table).get(name):
                raise TargetError(f"the full text index {table.schema}.{name} is not valid: run again")
        for other in before:
            if other != name:
                _drop(connection, table, other)
    return built


def drop_text_indexes(connection: Connection, table: VectorTable) -> tuple[str, ...]:
    """Drop what ``ensure_text_index`` made, for a pipeline that is hybrid no more; returns the names."""
    with lost_connections_are_retriable():
        names = tuple(_text_indexes(connection, table))
        for name in names:
            _drop(connection, table, name)
    return names


def check_language(connection: Connection, language: str) -> None:
    """Raises ``UsageError`` for a language that the database does not know."""
    with lost_connections_are_retriable():
        known = [str(row[0]) for row in connection.execute(query("hybrid", "languages")).fetchall()]
    if language not in known:
        raise UsageError(f"the database has no text search configuration {language!r}; there are: {', '.join(known)}")


def hybrid_search(
    connection: Connection,
    table: VectorTable,
    choice: IndexChoice,
    hybrid: Hybrid,
    vector: Embeddings,
    words: str,
    k: int,
    where: str | None = None,
    oversampling: int | None = None,
) -> list[HybridHit]:
    """The ``k`` rows that rank best in nearness to ``vector`` and in matching ``words``, best first.

    Reciprocal rank fusion of two lists of ``max(4 k, 50)`` rows: a row that only one of them has counts too. ``words``
    are read as search engines read them (quotes, ``or``, ``-``). ``where`` holds for both lists. Equal scores are in
    the order of the key. Raises ``UsageError`` as ``search`` does.
    """
    asked = ask(table, choice, vector, k, "adaptive", where, oversampling, rows=depth_of(k))
    if "\0" in words:
        raise UsageError("the words have a character that no text in Postgres can hold")
    parameters = {**asked.parameters, "words": words}
    with lost_connections_are_retriable(), refused_values(where), connection.transaction():
        cursor = cursor_for_vectors(connection)
        nearest, _ = opened(cursor, asked)
        fused = fused_statement(
            table,
            hybrid,
            nearest=nearest,
            distance=distance_to(table, asked.vector),
            words=sql.Placeholder("words"),
            k=sql.Literal(k),
            depth=sql.Literal(depth_of(k)),
            condition=asked.condition,
        )
        rows = cursor.execute(percent_signs_doubled(fused), parameters, prepare=False).fetchall()
    return [
        HybridHit(hit=hit_of(table, row[:-3]), score=float(row[-3]), vector_rank=row[-2], text_rank=row[-1])
        for row in rows
    ]


def depth_of(k: int) -> int:
    """Ranks of each list that take part in the fusion."""
    return max(DEPTH * k, LEAST_DEPTH)


def fused_statement(
    table: VectorTable,
    hybrid: Hybrid,
    *,
    nearest: sql.Composable,
    distance: sql.Composable,
    words: sql.Composable,
    k: sql.Composable,
    depth: sql.Composable,
    condition: sql.Composable,
) -> sql.Composed:
    """The fusion of a vector search ``nearest`` with one by ``words``: its columns, score and both ranks."""
    key = [sql.Identifier(c.name) for c in table.key]
    columns = [*key, *(sql.Identifier(c.name) for c in table.metadata), sql.Identifier("content")]

    def of(alias: str, names: list[sql.Identifier]) -> sql.Composed:
        return sql.SQL(", ").join(sql.SQL("{}.{}").format(sql.Identifier(alias), name) for name in names)

    return query(
        "hybrid",
        "fused",
        table=table.identifier,
        nearest=nearest,
        key_t=of("t", key),
        key=sql.SQL(", ").join(key),
        columns=of("t", columns),
        same_row=sql.SQL(" AND ").join(sql.SQL("t.{name} = f.{name}").format(name=name) for name in key),
        language=sql.Literal(hybrid.language),
        words=words,
        distance=distance,
        filter=condition,
        depth=depth,
        rrf=sql.Literal(RRF_K),
        k=k,
    )


def _text_indexes(connection: Connection, table: VectorTable) -> dict[str, bool]:
    """Names of our full text indexes on the table, and whether each is valid."""
    rows: list[tuple[Any, ...]] = connection.execute(
        query("hybrid", "text_indexes"), {"schema": table.schema, "table": table.name}
    ).fetchall()
    return {str(name): bool(valid) for name, valid in rows}


def _drop(connection: Connection, table: VectorTable, name: str) -> None:
    connection.execute(
        query("index", "drop", concurrently=sql.SQL("CONCURRENTLY"), name=sql.Identifier(table.schema, name))
    )
