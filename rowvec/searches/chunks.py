"""Searches in a table whose rows are chunks: the best chunk of each row of the source, and the chunks around it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from psycopg import sql

from rowvec.errors import UsageError
from rowvec.pipeline import Pipeline
from rowvec.postgres.connection import Connection, lost_connections_are_retriable
from rowvec.postgres.queries import query
from rowvec.postgres.vector_table import VectorTable
from rowvec.searches.query import Chunk, Hit, percent_signs_doubled
from rowvec.searches.request import MOST_K

MOST_NEIGHBOURS = 10

_CHUNK = "chunk"

# Chunks to look at for each row wanted, at first; each further search looks at so many times as many.
_CHUNKS_PER_ROW = 4


def check_chunks(pipeline: Pipeline, *, by_row: bool, neighbours: int) -> None:
    """Raise ``UsageError`` if the pipeline's source has no chunks, or if too many neighbours are asked for."""
    if not 0 <= neighbours <= MOST_NEIGHBOURS:
        raise UsageError(f"neighbours must be from 0 to {MOST_NEIGHBOURS}")
    if (by_row or neighbours) and pipeline.source.chunks is None:
        raise UsageError(
            f"the pipeline {pipeline.name} has one vector per row, so there are no chunks to group or to show around "
            "a result: search without group_by row and neighbours, or set source.chunks"
        )


def best_of_each_row(search: Callable[[int], list[Hit]], k: int) -> list[Hit]:
    """The nearest chunk of each of the ``k`` nearest rows; ``search`` finds so many nearest chunks, nearest first.

    Fewer than ``k`` only if no more rows match, or if ``MOST_K`` chunks are of fewer rows.
    """
    chunks = k
    while True:
        chunks = max(chunks, min(chunks * _CHUNKS_PER_ROW, MOST_K))
        hits = search(chunks)
        best: dict[str, Hit] = {}
        for hit in hits:
            best.setdefault(repr(_row_of(hit)), hit)
        if len(best) >= k or len(hits) < chunks or chunks >= MOST_K:
            return list(best.values())[:k]


def with_neighbours(connection: Connection, table: VectorTable, hits: list[Hit], neighbours: int) -> list[Hit]:
    """The hits, each with up to so many chunks of its row before it and behind it."""
    same = sql.SQL(" AND ").join(
        sql.SQL("t.{} = %s::{}").format(sql.Identifier(column.name), column.type_sql) for column in table.key[:-1]
    )
    around = percent_signs_doubled(query("search", "neighbours", table=table.identifier, same=same))
    found: list[Hit] = []
    with lost_connections_are_retriable(), connection.transaction():
        for hit in hits:
            place = int(hit.key[_CHUNK])
            values = [*_row_of(hit).values(), place - neighbours, place + neighbours, place]
            rows = connection.execute(around, values).fetchall()
            found.append(replace(hit, neighbours=tuple(Chunk(number=n, content=content) for n, content in rows)))
    return found


def _row_of(hit: Hit) -> dict[str, object]:
    """The key of the source's row."""
    return {name: value for name, value in hit.key.items() if name != _CHUNK}
