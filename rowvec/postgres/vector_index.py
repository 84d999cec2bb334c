"""What an index on vectors is: its kind, its column, and the expression it is built on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from psycopg import sql

from rowvec.postgres.vector_table import VectorTable


def column(table: VectorTable, choice: IndexChoice) -> sql.Composable:
    if choice.on == "bits":
        return sql.SQL("embedding_bits")
    return indexed_expression(table, choice, sql.SQL("embedding")) or sql.SQL("embedding")


def indexed_expression(table: VectorTable, choice: IndexChoice, of: sql.Composable) -> sql.Composed | None:
    """What an index on floats holds of ``of``, an embedding; None where that is the embedding as it is stored.

    A query must say it word for word, or the planner would not know the index.
    """
    if not choice.prefix and choice.on == "float":
        return None
    half = choice.on == "halfvec" or table.precision == "float16"
    cut = sql.SQL("subvector({}, 1, {})").format(of, sql.Literal(choice.prefix)) if choice.prefix else of
    cast = sql.SQL("({}::halfvec({}))" if half else "({}::vector({}))")
    return cast.format(cut, sql.Literal(choice.prefix or table.dimensions))


Kind = Literal["none", "hnsw", "ivfflat"]


On = Literal["bits", "float", "halfvec"]


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexChoice:
    """The index a vector table is to have, and why."""

    kind: Kind
    on: On = "float"
    """``bits``: the column ``embedding_bits``; ``float``: ``embedding`` as stored; ``halfvec``: ``embedding`` cast."""
    opclass: str = ""
    m: int = 16
    ef_construction: int = 64
    lists: int = 0
    lists_by_rows: bool = False
    """IVFFlat: nobody asked for this very number, so an index with half or twice as many is as good."""
    prefix: int = 0
    """The index holds that many leading dimensions alone, and the search reranks by the whole vector; 0: it holds all.

    For models that put what matters first (Matryoshka).
    """
    oversampling: int = 8
    """Candidates reranked exactly for each row wanted, where the index holds bits or a prefix."""
    ef_search: int = 0
    """HNSW: candidates looked at, if more are not wanted anyway; 0: 200."""
    probes: int = 0
    """IVFFlat: lists looked at first; 0: by lists and oversampling."""
    reason: str
