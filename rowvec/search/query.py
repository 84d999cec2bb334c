"""Search: the rows nearest to a query vector, exactly or through the index."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, LiteralString, cast

import numpy as np
import psycopg
from psycopg import errors as pg
from psycopg import sql
from psycopg.adapt import Dumper
from psycopg.pq import Format

from rowvec.errors import UsageError
from rowvec.postgres.connection import Connection, lost_connections_are_retriable
from rowvec.postgres.copy_types import overflows_half
from rowvec.postgres.queries import query
from rowvec.postgres.vector_index import IndexChoice
from rowvec.postgres.vector_table import VectorTable
from rowvec.search.statement import Filtered, Mode, Statement, by_index, filter_plan, shortlist_length, statement
from rowvec.search.where import EVERYTHING, Where, parse_where
from rowvec.vectors.layout import Embeddings
from rowvec.vectors.sparse import SparseVectors

MOST_K = 10_000
MOST_OVERSAMPLING = 64
LIMITS = f"k must be from 1 to {MOST_K:,}, and oversampling from 1 to {MOST_OVERSAMPLING}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """One row that was found."""

    key: dict[str, Any]
    metadata: dict[str, Any]
    content: str | None
    distance: float
    """By the table's metric (inner product: negated, as pgvector has it); in mode ``bits`` the bits that differ."""


@dataclass(frozen=True, slots=True)
class SearchPlan:
    """What the planner made of a search."""

    indexes: frozenset[str]
    sequential_shortlist: bool
    """The shortlist reads the whole table, though it is there to avoid that."""
    most_matches: int = 0
    """The filter is taken for a narrow one: up to so many matching rows are ranked exactly, without the index."""
    workers: bool = False
    """Other processes take part: they start with every search, whether they are needed or not."""


def search(
    connection: Connection,
    table: VectorTable,
    choice: IndexChoice,
    vector: Embeddings,
    k: int,
    mode: Mode = "adaptive",
    where: str | None = None,
    oversampling: int | None = None,
) -> list[Hit]:
    """The ``k`` rows nearest to ``vector`` (``(d,)``, or sparse), nearest first; fewer only where no more exist.

    ``adaptive`` goes through the index of ``choice`` (on bits or a prefix: a shortlist of ``k * oversampling``, then
    exact rerank by the whole vector), ``ann`` insists on an index on floats, ``bits`` orders by Hamming distance alone,
    ``exact`` reads every row. Where the index brings fewer candidates than asked for, as under a narrow filter, the
    search is exact after all.
    ``oversampling`` is by default that of ``choice``; on floats it is the candidates looked at for each row wanted.

    Raises ``UsageError`` for a vector, filter, mode or number that does not fit the table.
    """
    asked = ask(table, choice, vector, k, mode, where, oversampling)
    with lost_connections_are_retriable(), refused_values(where), connection.transaction():
        cursor = cursor_for_vectors(connection)
        rows_of, _ = opened(cursor, asked)
        # With a filter never prepared: a plan for any filter would fit none.
        rows = cursor.execute(rows_of, asked.parameters, prepare=False if where else None).fetchall()
    return [hit_of(table, row) for row in rows]


def explain(
    connection: Connection,
    table: VectorTable,
    choice: IndexChoice,
    vector: Embeddings,
    k: int,
    mode: Mode = "adaptive",
    where: str | None = None,
    oversampling: int | None = None,
) -> SearchPlan:
    """How the database would run ``search`` with the same arguments; runs nothing."""
    asked = ask(table, choice, vector, k, mode, where, oversampling)
    with lost_connections_are_retriable(), refused_values(where), connection.transaction():
        cursor = cursor_for_vectors(connection)
        rows_of, most_matches = opened(cursor, asked)
        explained = query("search", "explain", statement=rows_of)
        row = cursor.execute(explained, asked.parameters, prepare=False).fetchone()
    nodes = list(_nodes(row[0][0]["Plan"] if row else {}))
    shortlist = [inner for node in nodes if node.get("Subplan Name") == "CTE shortlist" for inner in _nodes(node)]
    return SearchPlan(
        indexes=frozenset(node["Index Name"] for node in nodes if "Index Name" in node),
        sequential_shortlist=any(node["Node Type"] == "Seq Scan" for node in shortlist),
        most_matches=most_matches,
        workers=any(node["Node Type"].startswith("Gather") for node in nodes),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A search that has been checked."""

    table: VectorTable
    choice: IndexChoice
    mode: Mode
    k: sql.Literal
    oversampling: sql.Literal
    where: Where | None
    parameters: dict[str, Any]

    @property
    def vector(self) -> sql.Composed:
        """The query vector as a parameter."""
        embedding = next(column for column in self.table.columns if column.name == "embedding")
        return sql.SQL("{}::{}").format(sql.Placeholder("query"), embedding.type_sql)

    @property
    def condition(self) -> sql.Composable:
        """The filter, over the alias ``t``."""
        return (self.where or EVERYTHING).condition

    def statement(self, filtered: Filtered | None) -> Statement:
        """The search as SQL, with parameters."""
        return statement(
            self.table,
            self.choice,
            self.mode,
            vector=self.vector,
            k=self.k,
            oversampling=self.oversampling,
            condition=self.condition,
            filtered=filtered,
        )


def ask(
    table: VectorTable,
    choice: IndexChoice,
    vector: Embeddings,
    k: int,
    mode: Mode,
    where: str | None,
    oversampling: int | None,
    *,
    rows: int | None = None,
) -> Asked:
    """Check a search; ``rows`` are to be found, where that is not ``k``. Raises ``UsageError``."""
    oversampling = choice.oversampling if oversampling is None else oversampling
    if not 1 <= k <= MOST_K or not 1 <= oversampling <= MOST_OVERSAMPLING:
        raise UsageError(LIMITS)
    if mode == "ann" and (choice.kind == "none" or choice.on == "bits"):
        key = "index.kind to hnsw" if table.layout.is_sparse else "index.on to float"
        raise UsageError(
            f"{table.schema}.{table.name} has no index on float vectors, which mode ann needs: search with mode "
            f"adaptive, or set {key} and run rowvec index"
        )
    if mode == "bits" and not table.bits:
        remedy = "search with mode adaptive" if table.layout.is_sparse else "set target.bits to true"
        raise UsageError(f"{table.schema}.{table.name} keeps no bits, which mode bits needs: {remedy}")
    filtered = parse_where(where, (*table.key, *table.metadata)) if where else None
    return Asked(
        table=table,
        choice=choice,
        mode=mode,
        k=sql.Literal(rows or k),
        oversampling=sql.Literal(oversampling),
        where=filtered,
        parameters={"query": _wire(table, vector), **(filtered.parameters if filtered else {})},
    )


def cursor_for_vectors(connection: Connection) -> psycopg.Cursor[tuple[Any, ...]]:
    """A cursor that can send the parameters of a search."""
    cursor = connection.cursor()
    cursor.adapters.register_dumper(_Wire, _WireDumper)
    return cursor


def opened(cursor: psycopg.Cursor[tuple[Any, ...]], asked: Asked) -> tuple[sql.Composed, int]:
    """Settle the transaction's settings; returns the query, and up to how many matching rows it ranks exactly.

    Only a filter costs a second look at the statistics.
    """
    if asked.where is None or not by_index(asked.choice, asked.mode):
        opened = asked.statement(None)
        cursor.execute(sql.SQL("SELECT {}").format(opened.settings))
        return percent_signs_doubled(opened.rows), 0
    estimate = query("search", "estimate", table=asked.table.identifier, filter=asked.where.condition)
    row = cursor.execute(percent_signs_doubled(estimate), asked.where.parameters, prepare=False).fetchone()
    matching, everything = row[0][0]["Plan"]["Plans"] if row else ({}, {})
    plan = filter_plan(
        asked.table,
        rows=sql.Literal(float(everything["Plan Rows"])),
        matching=sql.Literal(float(matching["Plan Rows"])),
        cost=sql.Literal(float(matching["Total Cost"])),
        shortlist=shortlist_length(asked.choice, asked.mode, asked.k, asked.oversampling),
    )
    told = Filtered(
        most_matches=sql.SQL("f.most_matches"), visits=sql.SQL("f.visits"), most_visits=sql.SQL("f.most_visits")
    )
    settings = query("search", "filter_settings", settings=asked.statement(told).settings, plan=plan)
    found = cursor.execute(settings).fetchone()
    most_matches = int(found[0]) if found else 0
    settled = replace(told, most_matches=sql.Literal(most_matches))
    return percent_signs_doubled(asked.statement(settled).rows), most_matches


def percent_signs_doubled(composed: sql.Composed) -> sql.Composed:
    """A column may be called "50%": beside parameters, psycopg takes the sign in an identifier for a placeholder.

    https://www.psycopg.org/psycopg3/docs/basic/params.html says to double it; ``sql.Identifier`` does not.
    """
    parts: list[sql.Composable] = [
        percent_signs_doubled(part)
        if isinstance(part, sql.Composed)
        else sql.SQL(cast("LiteralString", part.as_string().replace("%", "%%")))
        if isinstance(part, sql.Identifier)
        else part
        for part in composed
    ]
    return sql.Composed(parts)


class _Wire(bytes):
    """A vector as pgvector sends it."""


class _WireDumper(Dumper):
    """In binary, its type left to the cast that stands beside it: as text, 3,072 numbers cost two milliseconds."""

    format = Format.BINARY
    oid = 0

    def dump(self, obj: _Wire) -> bytes:
        return obj


def _wire(table: VectorTable, vector: Embeddings) -> _Wire:
    shape = (vector.dimensions,) if isinstance(vector, SparseVectors) else vector.shape
    if shape != (table.dimensions,):
        raise UsageError(
            f"the query vector has the shape {shape}, and {table.schema}.{table.name} holds vectors of "
            f"{table.dimensions} dimensions"
        )
    numbers = vector.values if isinstance(vector, SparseVectors) else vector
    if not np.isfinite(numbers).all():
        raise UsageError("the query vector has a component that is no finite number")
    if table.metric == "cosine" and not numbers.any():
        raise UsageError("the query vector is zero: it has no direction, so nothing is near to it by cosine")
    if table.precision == "float16" and overflows_half(numbers):
        raise UsageError("the query vector has a component too large for float16, which the table's vectors are of")
    (wire,) = table.layout.wires(vector if isinstance(vector, SparseVectors) else vector[None])
    return _Wire(wire)


def hit_of(table: VectorTable, row: tuple[Any, ...]) -> Hit:
    """A row of a search's columns."""
    keys = len(table.key)
    last = keys + len(table.metadata)
    return Hit(
        key={column.name: value for column, value in zip(table.key, row[:keys], strict=True)},
        metadata={column.name: value for column, value in zip(table.metadata, row[keys:last], strict=True)},
        content=row[last],
        distance=float(row[last + 1]) if row[last + 1] is not None else math.nan,
    )


def _nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node.get("Plans", []):
        yield from _nodes(child)


@contextmanager
def refused_values(where: str | None) -> Generator[None]:
    """A value of the filter that its column's type cannot read, or cannot compare, is the user's to mend."""
    try:
        yield
    except (pg.DataError, pg.UndefinedFunction) as error:
        if where is None:
            raise
        raise UsageError(f"--where does not fit its columns: {error.diag.message_primary}") from error
