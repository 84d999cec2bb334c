"""Search: the rows nearest to a query vector, exactly or through the index."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import psycopg
from pgvector import HalfVector, SparseVector, Vector
from pgvector.psycopg.halfvec import HalfVectorBinaryDumper, HalfVectorLoader
from pgvector.psycopg.sparsevec import SparseVectorBinaryDumper, SparseVectorLoader
from pgvector.psycopg.vector import VectorBinaryDumper, VectorLoader
from psycopg import errors as pg
from psycopg import sql
from psycopg.adapt import Loader
from psycopg.pq import TransactionStatus

from rowvec.errors import UsageError
from rowvec.postgres.connection import Connection, lost_connections_are_retriable
from rowvec.postgres.names import Operator, PercentSignsDoubled, PgvectorSchema, TypeName
from rowvec.postgres.queries import query
from rowvec.postgres.vector_index import IndexChoice
from rowvec.postgres.vector_table import VectorTable
from rowvec.searches.request import CheckedSearch, SearchRequest, check_request
from rowvec.searches.row_values import read_as_postgres_writes
from rowvec.searches.statement import Filtered, by_index, filter_plan, shortlist_length, statement
from rowvec.vectors.layout import Precision

_LOADERS: dict[Precision, type[Loader]] = {
    "float32": VectorLoader,
    "float16": HalfVectorLoader,
    "sparse": SparseVectorLoader,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """A chunk near one that was found."""

    number: int
    """Counted from 0 in its row."""
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """One row that was found; ``as_json`` is what ``rowvec search --json`` prints for it."""

    key: dict[str, Any]
    """The key columns by name, and ``chunk`` if contents are split."""
    metadata: dict[str, Any]
    """The metadata columns by name, as Python's own types, or as Postgres' text if Python has no equal."""
    content: str | None
    """The text that was embedded; of an image ``sha256:`` and the checksum of its bytes."""
    distance: float
    """By the table's metric (inner product: negated, as pgvector has it); in mode ``bits`` the bits that differ.

    NaN if the row's vector is zero, or if its components are too large.
    """
    vector: npt.NDArray[np.float32] | npt.NDArray[np.float16] | SparseVector | None = field(default=None, compare=False)
    """``(d,)``, float32 or, with ``precision: float16``, float16; pgvector's own class if vectors are sparse.

    None if the search did not ask for vectors.
    """
    score: float | None = None
    """In mode ``hybrid``: the sum of 1 / (60 + rank) over the two lists."""
    vector_rank: int | None = None
    """In mode ``hybrid``: counted from 1; None if the vector did not find the row."""
    text_rank: int | None = None
    """In mode ``hybrid``: counted from 1; None if the words did not find the row."""
    neighbours: tuple[Chunk, ...] | None = None
    """The chunks before and behind this one, in their order; None if the search did not ask for them."""

    def as_json(self) -> dict[str, Any]:
        """Key and metadata columns, content and distance (None for NaN) as one JSON object; the vector is not in it."""
        distance = self.distance if math.isfinite(self.distance) else None
        shown = {**self.key, **self.metadata, "content": self.content, "distance": distance}
        if self.neighbours is not None:
            shown["neighbours"] = [{"chunk": near.number, "content": near.content} for near in self.neighbours]
        if self.score is None:
            return shown
        return {**shown, "score": self.score, "vector_rank": self.vector_rank, "text_rank": self.text_rank}


@dataclass(frozen=True, slots=True)
class SearchPlan:
    """How the planner would run a search."""

    indexes: frozenset[str]
    sequential_shortlist: bool
    """The shortlist reads the whole table, although its purpose is to avoid that."""
    most_matches: int = 0
    """The filter is expected to be narrow: up to this many matching rows are ranked exactly, without the index."""
    workers: bool = False
    """Parallel workers take part: they start with every search, even if they are not needed."""


def search(connection: Connection, table: VectorTable, choice: IndexChoice, request: SearchRequest) -> list[Hit]:
    """The ``k`` rows nearest to the request's vector, nearest first; fewer only if the table has no more that match.

    If the index brings fewer candidates than it should, as under a narrow filter, the search is exact after all.

    Raises ``UsageError`` for a vector, filter, mode or number that does not fit the table, ``DatabaseUnavailable`` and
    ``TargetError`` as ``lost_connections_are_retriable`` does.
    """
    checked = check_request(table, choice, request)
    with search_transaction(connection, checked, request.where) as cursor:
        nearest, _ = prepare(cursor, checked)
        # With a filter the statement is never prepared: one plan for all filters would be wrong for most.
        rows = cursor.execute(nearest, checked.parameters, prepare=False if request.where else None).fetchall()
    return [hit_of(checked, row) for row in rows]


def explain(connection: Connection, table: VectorTable, choice: IndexChoice, request: SearchRequest) -> SearchPlan:
    """How the database would run ``search`` with the same request; runs nothing. Raises what ``search`` raises."""
    checked = check_request(table, choice, request)
    with search_transaction(connection, checked, request.where) as cursor:
        nearest, most_matches = prepare(cursor, checked)
        explained = query("search", "explain", statement=nearest)
        row = cursor.execute(explained, checked.parameters, prepare=False).fetchone()
    nodes = list(_nodes(row[0][0]["Plan"] if row else {}))
    shortlist = [inner for node in nodes if node.get("Subplan Name") == "CTE shortlist" for inner in _nodes(node)]
    return SearchPlan(
        indexes=frozenset(node["Index Name"] for node in nodes if "Index Name" in node),
        sequential_shortlist=any(node["Node Type"] == "Seq Scan" for node in shortlist),
        most_matches=most_matches,
        workers=any(node["Node Type"].startswith("Gather") for node in nodes),
    )


@contextmanager
def search_transaction(
    connection: Connection, checked: CheckedSearch, where: str | None
) -> Generator[psycopg.Cursor[tuple[Any, ...]]]:
    """A transaction for one search, with a cursor that can send query vectors, and read vectors if they are asked for.

    Raises ``UsageError`` if a value of the filter ``where`` cannot be read as its column's type, or not be compared.
    """
    # In a caller's transaction a savepoint would keep the settings of this search, and the planner's estimate for the
    # next one would be made under them. A rollback ends them.
    within = connection.info.transaction_status != TransactionStatus.IDLE
    with lost_connections_are_retriable(), _filter_errors(where), connection.transaction(force_rollback=within):
        cursor = connection.cursor()
        # In binary: as text, 3,072 numbers cost two milliseconds. Registered for this cursor alone and without a type:
        # a cast in the statement names it, and other cursors keep reading vector columns as text.
        cursor.adapters.register_dumper(Vector, VectorBinaryDumper)
        cursor.adapters.register_dumper(HalfVector, HalfVectorBinaryDumper)
        cursor.adapters.register_dumper(SparseVector, SparseVectorBinaryDumper)
        read_as_postgres_writes(cursor.adapters)
        if checked.values.vectors:
            _read_vectors(cursor, checked.table)
        yield cursor


def prepare(cursor: psycopg.Cursor[tuple[Any, ...]], checked: CheckedSearch) -> tuple[sql.Composed, int]:
    """Make the transaction's settings; returns the query, and up to how many matching rows it ranks exactly.

    Only a search with a filter through the index costs one more query, for the planner's estimate of the filter.
    """
    table, choice, mode, values = checked.table, checked.choice, checked.mode, checked.values
    if checked.where is None or not by_index(choice, mode):
        prepared = statement(table, choice, mode, values)
        cursor.execute(sql.SQL("SELECT {}").format(prepared.settings))
        return percent_signs_doubled(prepared.rows), 0
    estimate = query("search", "estimate", table=table.identifier, filter=checked.where.condition)
    row = cursor.execute(percent_signs_doubled(estimate), checked.where.parameters, prepare=False).fetchone()
    matching, everything = row[0][0]["Plan"]["Plans"] if row else ({}, {})
    plan = filter_plan(
        table,
        rows=sql.Literal(_rows_read(cursor, table, matching) or float(everything["Plan Rows"])),
        matching=sql.Literal(float(matching["Plan Rows"])),
        cost=sql.Literal(float(matching["Total Cost"])),
        shortlist=shortlist_length(choice, mode, values),
    )
    filtered = Filtered(
        most_matches=sql.SQL("f.most_matches"), visits=sql.SQL("f.visits"), most_visits=sql.SQL("f.most_visits")
    )
    settings = statement(table, choice, mode, values, filtered).settings
    found = cursor.execute(query("search", "filter_settings", settings=settings, plan=plan)).fetchone()
    most_matches = int(found[0]) if found else 0
    filtered = replace(filtered, most_matches=sql.Literal(most_matches))
    return percent_signs_doubled(statement(table, choice, mode, values, filtered).rows), most_matches


def _rows_read(cursor: psycopg.Cursor[tuple[Any, ...]], table: VectorTable, matching: dict[str, Any]) -> float | None:
    """The rows of the partitions that a filter's plan reads; None if the table is not split, or they are not known."""
    if table.partition_by is None:
        return None
    read = sorted({node["Relation Name"] for node in _nodes(matching) if "Relation Name" in node})
    parts = {"table": sql.Literal(table.identifier.as_string(cursor)), "names": sql.Literal(read)}
    row = cursor.execute(query("search", "rows_of_partitions", **parts)).fetchone()
    return row[0] if row else None


def percent_signs_doubled(composed: sql.Composed) -> sql.Composed:
    """Double the percent signs in identifiers, because a column may be called "50%".

    In a statement with parameters, psycopg takes a percent sign in an identifier for a placeholder.
    https://www.psycopg.org/psycopg3/docs/basic/params.html says to double it; ``sql.Identifier`` does not.
    """
    parts: list[sql.Composable] = [
        percent_signs_doubled(part)
        if isinstance(part, sql.Composed)
        else PercentSignsDoubled(part)
        if isinstance(part, (sql.Identifier, PgvectorSchema, TypeName, Operator))
        else part
        for part in composed
    ]
    return sql.Composed(parts)


def _read_vectors(cursor: psycopg.Cursor[tuple[Any, ...]], table: VectorTable) -> None:
    """Let the cursor load the table's vectors by pgvector's adapter: each database has its own number for the type."""
    embedding = next(column for column in table.columns if column.name == "embedding")
    row = cursor.execute(query("search", "type_number", type=embedding.type_sql)).fetchone()
    if row:
        cursor.adapters.register_loader(row[0], _LOADERS[table.layout.precision])


def hit_of(checked: CheckedSearch, row: tuple[Any, ...]) -> Hit:
    """A row of a search: its key and metadata columns, content, vector if it was asked for, and distance."""
    table = checked.table
    keys = len(table.key)
    last = keys + len(table.metadata)
    return Hit(
        key={column.name: value for column, value in zip(table.key, row[:keys], strict=True)},
        metadata={column.name: value for column, value in zip(table.metadata, row[keys:last], strict=True)},
        content=row[last],
        vector=_numbers(row[last + 1]) if checked.values.vectors else None,
        distance=float(row[-1]) if row[-1] is not None else math.nan,
    )


def _numbers(vector: Vector | HalfVector | SparseVector) -> npt.NDArray[Any] | SparseVector:
    return vector if isinstance(vector, SparseVector) else vector.to_numpy()


def _nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node.get("Plans", []):
        yield from _nodes(child)


@contextmanager
def _filter_errors(where: str | None) -> Generator[None]:
    try:
        yield
    except (pg.DataError, pg.UndefinedFunction) as error:
        if where is None:
            raise
        raise UsageError(f"--where does not fit its columns: {error.diag.message_primary}") from error
