"""What a search asks for, and the check that it fits the table before any SQL runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from pgvector import HalfVector, SparseVector, Vector
from psycopg import sql

from rowvec.errors import UsageError
from rowvec.postgres.copy_types import overflows_half
from rowvec.postgres.vector_index import IndexChoice
from rowvec.postgres.vector_table import VectorTable
from rowvec.searches.statement import Mode, SearchValues
from rowvec.searches.where import EVERYTHING, Where, parse_where
from rowvec.vectors.layout import Embeddings
from rowvec.vectors.sparse import SparseVectors

MOST_K = 10_000
MOST_OVERSAMPLING = 64
LIMITS = f"k must be from 1 to {MOST_K:,}, and oversampling from 1 to {MOST_OVERSAMPLING}"


@dataclass(frozen=True, slots=True, eq=False)
class SearchRequest:
    """The ``k`` rows nearest to ``vector``."""

    vector: Embeddings
    """``(d,)``, or ``SparseVectors`` of one."""
    k: int
    mode: Mode = "adaptive"
    """``adaptive`` goes through the index (an index on bits or on a prefix gives a shortlist of ``k * oversampling``
    rows, which are then ranked by their whole vectors); ``ann`` insists on an index on floats; ``bits`` orders by
    Hamming distance alone; ``exact`` reads every row."""
    where: str | None = None
    """A filter, see ``parse_where``; None: all rows."""
    oversampling: int | None = None
    """Candidates per row wanted, 1 to 64; None: those of the index. On floats, where no shortlist is ranked again, it
    scales the candidates that the index looks at."""
    vectors: bool = False
    """Whether each hit has its vector."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedSearch:
    """A search that fits its table, with its values as SQL."""

    table: VectorTable
    choice: IndexChoice
    mode: Mode
    where: Where | None
    values: SearchValues
    parameters: dict[str, Any]


def check_request(
    table: VectorTable, choice: IndexChoice, request: SearchRequest, *, rows: int | None = None
) -> CheckedSearch:
    """Check a search that should find ``rows`` rows, by default ``request.k``.

    Raises ``UsageError`` for a vector, filter, mode or number that does not fit the table.
    """
    oversampling = choice.oversampling if request.oversampling is None else request.oversampling
    if not 1 <= request.k <= MOST_K or not 1 <= oversampling <= MOST_OVERSAMPLING:
        raise UsageError(LIMITS)
    _check_mode(table, choice, request.mode)
    where = parse_where(request.where, (*table.key, *table.metadata)) if request.where else None
    embedding = next(column for column in table.columns if column.name == "embedding")
    return CheckedSearch(
        table=table,
        choice=choice,
        mode=request.mode,
        where=where,
        values=SearchValues(
            vector=sql.SQL("{}::{}").format(sql.Placeholder("query"), embedding.type_sql),
            k=sql.Literal(rows or request.k),
            oversampling=sql.Literal(oversampling),
            condition=(where or EVERYTHING).condition,
            vectors=request.vectors,
        ),
        parameters={"query": _as_parameter(table, request.vector), **(where.parameters if where else {})},
    )


def _check_mode(table: VectorTable, choice: IndexChoice, mode: Mode) -> None:
    if mode == "ann" and (choice.kind == "none" or choice.on == "bits"):
        key = "index.kind to hnsw" if table.layout.is_sparse else "index.on to float"
        raise UsageError(
            f"{table.schema}.{table.name} has no index on float vectors, which mode ann needs: search with mode "
            f"adaptive, or set {key} and run rowvec index"
        )
    if mode == "bits" and not table.bits:
        remedy = "search with mode adaptive" if table.layout.is_sparse else "set target.bits to true"
        raise UsageError(f"{table.schema}.{table.name} keeps no bits, which mode bits needs: {remedy}")


def _as_parameter(table: VectorTable, vector: Embeddings) -> Vector | HalfVector | SparseVector:
    """The query vector in the table's own type, as pgvector's package has it."""
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
        raise UsageError("the query vector has a component too large for float16, the type of the table's vectors")
    return table.layout.to_pgvector(vector)
