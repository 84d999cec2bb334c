"""Search: the rows nearest to a query vector, exactly or through the index."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, LiteralString, cast

import numpy as np
import numpy.typing as npt
from psycopg import errors as pg
from psycopg import sql

from rowvec.database import Connection, lost_connections_are_retriable
from rowvec.errors import UsageError
from rowvec.index import indexed_expression
from rowvec.index_choice import IndexChoice
from rowvec.queries import blocks, query
from rowvec.vector_table import Metric, VectorTable
from rowvec.where import EVERYTHING, Where, parse_where

Mode = Literal["adaptive", "exact", "ann", "bits"]

MOST_K = 10_000
MOST_OVERSAMPLING = 64
LIMITS = f"k must be from 1 to {MOST_K:,}, and oversampling from 1 to {MOST_OVERSAMPLING}"

# On 117,659 texts of 256 dimensions 200 candidates gave a recall of 0.99, 100 one of 0.97.
DEFAULT_EF_SEARCH = 200

_OPERATORS: dict[Metric, sql.SQL] = {
    "cosine": sql.SQL("<=>"),
    "l2": sql.SQL("<->"),
    "inner_product": sql.SQL("<#>"),
}


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """A search as SQL."""

    settings: sql.Composed
    """Calls of ``set_config``, for the transaction that the rows are read in."""
    rows: sql.Composed
    """The query: key, metadata, content, distance."""


def search(
    connection: Connection,
    table: VectorTable,
    choice: IndexChoice,
    vector: npt.NDArray[np.float32],
    k: int,
    mode: Mode = "adaptive",
    where: str | None = None,
    oversampling: int | None = None,
) -> list[Hit]:
    """The ``k`` rows nearest to ``vector`` (shape ``(d,)``), nearest first; fewer only where no more exist.

    ``adaptive`` goes through the index of ``choice`` (on bits or a prefix: a shortlist of ``k * oversampling``, then
    exact rerank by the whole vector), ``ann`` insists on an index on floats, ``bits`` orders by Hamming distance alone, ``exact`` reads every row. Where
    the index brings fewer candidates than asked for, as under a narrow filter, the search is exact after all.
    ``oversampling`` is by default that of ``choice``; on floats it is the candidates looked at for each row wanted.

    Raises ``UsageError`` for a vector, filter, mode or number that does not fit the table.
    """
    statement, parameters = _prepare(table, choice, vector, k, mode, where, oversampling)
    with lost_connections_are_retriable(), _refused_values(where), connection.transaction():
        connection.execute(statement.settings)
        # Never prepared: a plan for any filter would fit none.
        rows = connection.execute(statement.rows, parameters, prepare=False).fetchall()
    return [_hit(table, row) for row in rows]


def explain(
    connection: Connection,
    table: VectorTable,
    choice: IndexChoice,
    vector: npt.NDArray[np.float32],
    k: int,
    mode: Mode = "adaptive",
    where: str | None = None,
    oversampling: int | None = None,
) -> SearchPlan:
    """How the database would run ``search`` with the same arguments; runs nothing."""
    statement, parameters = _prepare(table, choice, vector, k, mode, where, oversampling)
    with lost_connections_are_retriable(), _refused_values(where), connection.transaction():
        connection.execute(statement.settings)
        explained = query("search", "explain", statement=statement.rows)
        row = connection.execute(explained, parameters, prepare=False).fetchone()
    nodes = list(_nodes(row[0][0]["Plan"] if row else {}))
    shortlist = [inner for node in nodes if node.get("Subplan Name") == "CTE shortlist" for inner in _nodes(node)]
    return SearchPlan(
        indexes=frozenset(node["Index Name"] for node in nodes if "Index Name" in node),
        sequential_shortlist=any(node["Node Type"] == "Seq Scan" for node in shortlist),
    )


def statement(
    table: VectorTable,
    choice: IndexChoice,
    mode: Mode,
    *,
    vector: sql.Composable,
    k: sql.Composable,
    oversampling: sql.Composable,
    condition: sql.Composable,
) -> Statement:
    """The search with its values still open: parameters from Python, ``$1`` and so on in the SQL function."""
    names = [sql.Identifier("t", c.name) for c in (*table.key, *table.metadata)]
    by_index = mode in ("adaptive", "ann") and choice.kind != "none"
    by_bits = mode == "bits" or (by_index and choice.on == "bits")
    metric = sql.SQL("(t.embedding {} {})").format(_OPERATORS[table.metric], vector)
    hamming = sql.SQL("(t.embedding_bits <~> binary_quantize({})::bit({}))").format(
        vector, sql.Literal(table.dimensions)
    )
    parts: dict[str, sql.Composable] = {
        "table": table.identifier,
        "columns": sql.SQL(", ").join([*names, sql.Identifier("t", "content")]),
        "key": sql.SQL(", ").join(names[: len(table.key)]),
        "distance": hamming if mode == "bits" else metric,
        "filter": condition,
        "k": k,
    }
    if not by_index and not (mode == "bits" and choice.kind != "none" and choice.on == "bits"):
        settings = sql.SQL(blocks("search")["exact_settings"])
        return Statement(settings=sql.Composed([settings]), rows=query("search", "exact", **parts))
    indexed = None if by_bits else indexed_expression(table, choice, sql.SQL("t.embedding"))
    candidates = sql.SQL("({} * {})").format(k, oversampling)
    if by_bits:
        nearness, shortlist = hamming, (k if mode == "bits" else candidates)
    elif indexed is None:
        nearness, shortlist = metric, sql.SQL("({} * 2)").format(k)
    else:
        asked = indexed_expression(table, choice, vector) or vector
        nearness = sql.SQL("({} {} {})").format(indexed, _OPERATORS[table.metric], asked)
        # An index gives its order only nearly (halves round, iterative scans come in batches): twice as many mend it.
        shortlist = candidates if choice.prefix else sql.SQL("({} * 2)").format(k)
    settings = query(
        "search",
        "settings",
        effort=_effort(choice, candidates, shortlist, oversampling),
        candidates=candidates,
        probes=_probes(choice, oversampling),
        lists=sql.Literal(max(choice.lists, 1)),
    )
    return Statement(
        settings=settings, rows=query("search", "approximate", nearness=nearness, shortlist=shortlist, **parts)
    )


def _effort(
    choice: IndexChoice, candidates: sql.Composable, shortlist: sql.Composable, oversampling: sql.Composable
) -> sql.Composed:
    """``hnsw.ef_search``, before its limits."""
    if not choice.ef_search:
        return sql.SQL("greatest({}, {})").format(sql.Literal(DEFAULT_EF_SEARCH), candidates)
    if choice.on == "bits" or choice.prefix:
        return sql.SQL("greatest({}, {})").format(sql.Literal(choice.ef_search), shortlist)
    # On whole floats there is no shortlist that oversampling would lengthen: it is effort alone, in proportion.
    return sql.SQL("greatest({} * {} / {}, {})").format(
        sql.Literal(choice.ef_search), oversampling, sql.Literal(choice.oversampling), shortlist
    )


def _probes(choice: IndexChoice, oversampling: sql.Composable) -> sql.Composed:
    """``ivfflat.probes``: those of the choice at its own oversampling, in proportion at another."""
    lists = sql.Literal(max(choice.lists, 1))
    if choice.probes:
        return sql.SQL("least({}, greatest(1, {} * {} / {}))").format(
            lists, sql.Literal(choice.probes), oversampling, sql.Literal(choice.oversampling)
        )
    return sql.SQL("least({lists}, greatest(1, ceil(sqrt({lists}) * {over} / 2.0)::int))").format(
        lists=lists, over=oversampling
    )


def _prepare(
    table: VectorTable,
    choice: IndexChoice,
    vector: npt.NDArray[np.float32],
    k: int,
    mode: Mode,
    where: str | None,
    oversampling: int | None,
) -> tuple[Statement, dict[str, str]]:
    oversampling = choice.oversampling if oversampling is None else oversampling
    if not 1 <= k <= MOST_K or not 1 <= oversampling <= MOST_OVERSAMPLING:
        raise UsageError(LIMITS)
    if mode == "ann" and (choice.kind == "none" or choice.on == "bits"):
        raise UsageError(
            f"{table.schema}.{table.name} has no index on float vectors, which mode ann needs: search with mode "
            "adaptive, or set index.on to float and run rowvec index"
        )
    if mode == "bits" and not table.bits:
        raise UsageError(f"{table.schema}.{table.name} keeps no bits, which mode bits needs: set target.bits to true")
    filtered: Where = parse_where(where, (*table.key, *table.metadata)) if where else EVERYTHING
    embedding = next(column for column in table.columns if column.name == "embedding")
    composed = statement(
        table,
        choice,
        mode,
        vector=sql.SQL("{}::{}").format(sql.Placeholder("query"), embedding.type_sql),
        k=sql.Literal(k),
        oversampling=sql.Literal(oversampling),
        condition=filtered.condition,
    )
    settings = sql.SQL("SELECT {}").format(composed.settings)
    return (
        Statement(settings=settings, rows=_percent_signs_doubled(composed.rows)),
        {"query": _vector_text(table, vector), **filtered.parameters},
    )


def _percent_signs_doubled(composed: sql.Composed) -> sql.Composed:
    """A column may be called "50%": beside parameters, psycopg takes the sign in an identifier for a placeholder.

    https://www.psycopg.org/psycopg3/docs/basic/params.html says to double it; ``sql.Identifier`` does not.
    """
    parts: list[sql.Composable] = [
        _percent_signs_doubled(part)
        if isinstance(part, sql.Composed)
        else sql.SQL(cast("LiteralString", part.as_string().replace("%", "%%")))
        if isinstance(part, sql.Identifier)
        else part
        for part in composed
    ]
    return sql.Composed(parts)


def _vector_text(table: VectorTable, vector: npt.NDArray[np.float32]) -> str:
    if vector.shape != (table.dimensions,):
        raise UsageError(
            f"the query vector has the shape {vector.shape}, and {table.schema}.{table.name} holds vectors of "
            f"{table.dimensions} dimensions"
        )
    if not np.isfinite(vector).all():
        raise UsageError("the query vector has a component that is no finite number")
    if table.metric == "cosine" and not vector.any():
        raise UsageError("the query vector is zero: it has no direction, so nothing is near to it by cosine")
    # float32 prints as the shortest text that reads back the same.
    return "[" + ",".join(str(component) for component in vector.astype(np.float32)) + "]"


def _hit(table: VectorTable, row: tuple[Any, ...]) -> Hit:
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
def _refused_values(where: str | None) -> Generator[None]:
    """A value of the filter that its column's type cannot read, or cannot compare, is the user's to mend."""
    try:
        yield
    except (pg.DataError, pg.UndefinedFunction) as error:
        if where is None:
            raise
        raise UsageError(f"--where does not fit its columns: {error.diag.message_primary}") from error
