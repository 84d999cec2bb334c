"""A search as SQL whose values are still open: Python fills in parameters, the SQL function its arguments."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from psycopg import sql

from rowvec.postgres.fragments import names
from rowvec.postgres.names import PGVECTOR
from rowvec.postgres.queries import blocks, query
from rowvec.postgres.vector_index import IndexChoice, indexed_bits, indexed_expression
from rowvec.postgres.vector_table import Metric, VectorTable
from rowvec.searches.index_kinds import method_of
from rowvec.searches.index_kinds.protocol import Sought, reranks

Mode = Literal["adaptive", "exact", "ann", "bits"]

# Microseconds, measured on two busy cores with 256 and 1,536 dimensions: to look at one entry of an HNSW index and its
# row (12 to 30); to rank a row exactly (1 at 256, 7 to 14 at 1,536, where vectors are TOASTed); for one unit of the
# planner's cost (1.5 to 5). An error of a factor of two costs as much at the turning point, and less elsewhere.
_VISIT = 20.0
_ROW = 1.0
_ROW_DIMENSION = 0.006
COST_UNIT = 3.0

_STORED_BITS = sql.SQL("t.embedding_bits")

_OPERATORS: dict[Metric, sql.Composed] = {
    "cosine": sql.SQL("OPERATOR({}.<=>)").format(PGVECTOR),
    "l2": sql.SQL("OPERATOR({}.<->)").format(PGVECTOR),
    "inner_product": sql.SQL("OPERATOR({}.<#>)").format(PGVECTOR),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchValues:
    """The values of a search, as SQL: literals and placeholders from Python, ``$1`` and so on in the SQL function."""

    vector: sql.Composable
    k: sql.Composable
    oversampling: sql.Composable
    condition: sql.Composable
    """The filter, over the alias ``t``."""
    vectors: bool = False
    """Whether the rows have their vectors, after the content."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Filtered:
    """What ``filter_plan`` computes for a filter, as SQL: each an integer."""

    most_matches: sql.Composable
    """Up to this many matching rows are all ranked exactly; 0: the search goes to the index at once."""
    visits: sql.Composable
    """Entries that the index is expected to look at for its shortlist."""
    most_visits: sql.Composable
    """Entries after which the index has cost as much as the exact search."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """A search as SQL."""

    settings: sql.Composed
    """Calls of ``set_config``, for the transaction that reads the rows."""
    rows: sql.Composed
    """The query: key, metadata, content, distance."""


def statement(
    table: VectorTable, choice: IndexChoice, mode: Mode, values: SearchValues, filtered: Filtered | None = None
) -> Statement:
    """The search as SQL. Without ``filtered``, the condition is taken for one that most rows pass."""
    hamming = mode == "bits"
    parts: dict[str, sql.Composable] = {
        "table": table.identifier,
        "columns": columns_of(table, values),
        "key": names(table.key, "t"),
        "distance": _hamming(_STORED_BITS, table.bits_of(values.vector))
        if hamming
        else distance_to(table, values.vector),
        "filter": values.condition,
        # The place of a row is unique in one table, and a table that is split is several.
        "at_place": values.condition if table.partition_by else query("search", "everywhere"),
        "k": values.k,
    }
    if not by_index(choice, mode):
        settings = sql.SQL(blocks("search")["exact_settings"])
        return Statement(settings=sql.Composed([settings]), rows=query("search", "exact", **parts))
    shortlist = shortlist_length(choice, mode, values)
    sought = Sought(
        shortlist=shortlist,
        oversampling=values.oversampling,
        most_visits=sql.SQL("greatest(20000, 4 * {})").format(_candidates(values)),
    )
    if filtered is not None:
        sought = replace(sought, most_visits=filtered.most_visits, visits=filtered.visits)
        parts["most_matches"] = filtered.most_matches
    calls = [
        query("search", "set_one", name=sql.Literal(name), value=value)
        for name, value in method_of(choice.kind).settings_of(choice, sought).items()
    ]
    settings = query("search", "settings", of_index=sql.SQL("\n").join(calls))
    block = "approximate" if filtered is None else "filtered"
    nearness = _nearness(table, choice, mode, values.vector)
    return Statement(settings=settings, rows=query("search", block, nearness=nearness, shortlist=shortlist, **parts))


def columns_of(table: VectorTable, values: SearchValues) -> sql.Composed:
    """The columns of a result, before its distance: key, metadata, content, and the vector if it is asked for."""
    columns = names((*table.key, *table.metadata), "t")
    return sql.SQL("{}, t.content, t.embedding" if values.vectors else "{}, t.content").format(columns)


def by_index(choice: IndexChoice, mode: Mode) -> bool:
    """Whether a search uses the index at all."""
    if mode == "exact" or choice.kind == "none":
        return False
    return mode != "bits" or choice.on == "bits"


def shortlist_length(choice: IndexChoice, mode: Mode, values: SearchValues) -> sql.Composable:
    """How many candidates the index should bring for ``k`` rows."""
    if mode == "bits":
        return values.k
    if reranks(choice):
        return _candidates(values)
    # An index gives its order only nearly: float16 rounds, and iterative scans come in batches. Twice as many fix it.
    return sql.SQL("({} * 2)").format(values.k)


def filter_plan(
    table: VectorTable,
    *,
    rows: sql.Composable,
    matching: sql.Composable,
    cost: sql.Composable,
    shortlist: sql.Composable,
) -> sql.Composed:
    """A SELECT of the three numbers of ``Filtered`` from the planner's estimate of a filter.

    ``rows`` of the table, those ``matching``, and the ``cost`` of finding them in the planner's units.
    """
    return query(
        "search",
        "filter_plan",
        rows=rows,
        matching=matching,
        find=sql.SQL("({} * {}::float8)").format(cost, sql.Literal(COST_UNIT)),
        shortlist=shortlist,
        row=sql.SQL("{}::float8").format(sql.Literal(_ROW + _ROW_DIMENSION * table.layout.elements)),
        visit=sql.SQL("{}::float8").format(sql.Literal(_VISIT)),
    )


def distance_to(table: VectorTable, vector: sql.Composable) -> sql.Composed:
    """The exact distance of the row ``t`` by the table's metric."""
    return sql.SQL("(t.embedding {} {})").format(_OPERATORS[table.metric], vector)


def _candidates(values: SearchValues) -> sql.Composed:
    return sql.SQL("({} * {})").format(values.k, values.oversampling)


def _hamming(held: sql.Composable, queried: sql.Composable) -> sql.Composed:
    # In a SELECT of its own the bits are computed once, and not again for each candidate whose distance is compared.
    return sql.SQL("({} OPERATOR({}.<~>) (SELECT {}))").format(held, PGVECTOR, queried)


def _nearness(table: VectorTable, choice: IndexChoice, mode: Mode, vector: sql.Composable) -> sql.Composed:
    """The expression that the index orders by."""
    if mode == "bits":
        return _hamming(_STORED_BITS, table.bits_of(vector))
    if choice.on == "bits":
        held = indexed_bits(table, choice, _STORED_BITS, sql.SQL("t.embedding"))
        return _hamming(held, table.bits_of(vector, choice.bits))
    indexed = indexed_expression(table, choice, sql.SQL("t.embedding"))
    queried = indexed_expression(table, choice, vector)
    if indexed is None or queried is None:
        return distance_to(table, vector)
    return sql.SQL("({} {} (SELECT {}))").format(indexed, _OPERATORS[table.metric], queried)
