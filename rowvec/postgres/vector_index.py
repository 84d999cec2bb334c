"""An index on vectors: its kind, its column, and the expression it is built on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from psycopg import sql

from rowvec.postgres.names import PGVECTOR
from rowvec.postgres.vector_table import VectorTable


def column(table: VectorTable, choice: IndexChoice) -> sql.Composable:
    """The column or expression that the index is built on."""
    if choice.on == "bits":
        return indexed_bits(table, choice, sql.SQL("embedding_bits"), sql.SQL("embedding"))
    return indexed_expression(table, choice, sql.SQL("embedding")) or sql.SQL("embedding")


def indexed_bits(
    table: VectorTable, choice: IndexChoice, stored: sql.Composable, embedding: sql.Composable
) -> sql.Composable:
    """What an index on bits holds: the table's column, or, if a tuner tries another number of bits, an expression."""
    if choice.bits == table.bits:
        return stored
    return sql.SQL("({})").format(table.bits_of(embedding, choice.bits))


def indexed_expression(table: VectorTable, choice: IndexChoice, of: sql.Composable) -> sql.Composed | None:
    """The expression of ``of``, an embedding, that an index on floats holds; None if it holds the embedding as stored.

    A query must have the same expression word for word, or the planner does not use the index.
    """
    if not choice.prefix and choice.on == "float":
        return None
    half = choice.on == "halfvec" or table.precision == "float16"
    prefix = sql.Literal(choice.prefix)
    cut = sql.SQL("{}.subvector({}, 1, {})").format(PGVECTOR, of, prefix) if choice.prefix else of
    return sql.SQL("({}::{}.{}({}))").format(
        cut, PGVECTOR, sql.SQL("halfvec" if half else "vector"), sql.Literal(choice.prefix or table.dimensions)
    )


On = Literal["bits", "float", "halfvec"]


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexChoice:
    """The index that a vector table should have, and why."""

    kind: str
    """``none``, or a kind of index as a pipeline file names it."""
    on: On = "float"
    """``bits``: the column ``embedding_bits``; ``float``: ``embedding`` as stored; ``halfvec``: ``embedding`` cast."""
    opclass: str = ""
    m: int = 16
    ef_construction: int = 64
    graph_by_rows: bool = False
    """HNSW: rowvec decides ``m`` and ``ef_construction``, so an index with a stronger graph is as good."""
    lists: int = 0
    lists_by_rows: bool = False
    """IVFFlat: the number of lists follows from the rows, so an index with half or twice as many is as good."""
    prefix: int = 0
    """The index holds only this many leading dimensions, and the search reranks by the whole vector; 0: it holds all.

    For models whose leading dimensions matter most (Matryoshka).
    """
    bits: int = 1
    """On bits: how many per dimension."""
    oversampling: int = 8
    """Candidates that are reranked exactly per row wanted, if the index holds bits or a prefix."""
    oversampling_given: bool = False
    """Whether the pipeline file names the oversampling, so that nothing raises it."""
    ef_search: int = 0
    """HNSW: the least number of candidates that a search looks at; 0: 200, or 40 if a shortlist is reranked."""
    probes: int = 0
    """IVFFlat: lists that a search looks at first; 0: computed from lists and oversampling."""
    options: tuple[tuple[str, str], ...] = ()
    """Of a kind that a plug-in brings: what CREATE INDEX has after WITH, by name."""
    effort: int = 0
    """Of a kind that a plug-in brings: the least effort of a search; 0: the kind's own."""
    reason: str


_NAMES = {field.name for field in fields(IndexChoice)}


def stored_choice(values: Mapping[str, Any]) -> IndexChoice:
    """A choice as the ledger keeps it in JSON, without what only another release knows."""
    known = {name: value for name, value in values.items() if name in _NAMES}
    options = tuple((name, value) for name, value in known.pop("options", ()))
    return IndexChoice(**known, options=options)
