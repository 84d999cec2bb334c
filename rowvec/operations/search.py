"""The search command: the rows nearest to a query."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from rowvec.embedders import embed_image_query, embed_query, image_in, open_embedder, open_image_embedder
from rowvec.errors import UsageError
from rowvec.index.tuning.results import present_index
from rowvec.ledger import pipelines
from rowvec.ledger.generations import effective
from rowvec.pipeline import Pipeline
from rowvec.pipeline.references import resolve
from rowvec.postgres.connection import open_target
from rowvec.postgres.vector_table import stored_table
from rowvec.runtime.suggestion import did_you_mean
from rowvec.searches.chunks import best_of_each_row, check_chunks, with_neighbours
from rowvec.searches.hybrid import Hybrid, hybrid_search
from rowvec.searches.query import Hit
from rowvec.searches.query import search as search_table
from rowvec.searches.request import SearchRequest

SearchMode = Literal["adaptive", "exact", "ann", "bits", "hybrid"]
"""How a search finds its rows; see ``search``."""

MODES: tuple[SearchMode, ...] = ("adaptive", "exact", "ann", "bits", "hybrid")


def search(
    pipeline: Pipeline,
    query: str | Path,
    k: int = 10,
    *,
    where: str | None = None,
    mode: SearchMode = "adaptive",
    words: str | None = None,
    vectors: bool = False,
    group_by: Literal["chunk", "row"] = "chunk",
    neighbours: int = 0,
) -> list[Hit]:
    """The ``k`` rows nearest to a text, or to the image in a file, nearest first; fewer only if no more match.

    Args:
        pipeline: Whose vector table is searched, with whose embedder.
        query: A text, or the path of an image as a ``Path``. The embedder is asked for its vector: one paid request if
            the embedder is a service.
        k: How many rows, 1 to 10,000.
        where: A filter over key and metadata columns, for example ``year >= 1900 AND author = 'Klee'``. It is parsed,
            and its values are sent as parameters.
        mode: ``adaptive`` goes through the index and ranks a shortlist again by the whole vectors; ``exact`` reads
            every row; ``ann`` insists on an index on floats; ``bits`` orders by Hamming distance; ``hybrid`` ranks
            vectors and words together.
        words: In mode ``hybrid`` the words to look for, if they differ from the text.
        vectors: Whether each hit has its vector.
        group_by: Of a source in chunks: ``row`` finds ``k`` rows, each by its nearest chunk; ``chunk`` finds ``k``
            chunks, of which several may be of one row.
        neighbours: Of a source in chunks: how many chunks before and behind each hit come with it, 0 to 10.

    Raises ``UsageError`` for a mode, number, filter or image that cannot be used, and for a pipeline whose table has
    vectors of another embedder; ``TargetError`` and ``DatabaseUnavailable`` if the table cannot be read; what the
    embedder raises, see ``rowvec.errors``.
    """
    mode = mode_of(mode)
    _check_mode(pipeline, query, mode, words)
    image = image_in(query) if isinstance(query, Path) else None
    pipeline = effective(pipeline)
    check_chunks(pipeline, by_row=group_by == "row", neighbours=neighbours)
    resolved = resolve(pipeline)
    embedder = open_embedder(resolved.embedder)
    with open_target(resolved, "rowvec search") as connection:
        table = stored_table(connection, resolved)
        if pipelines.is_readable(connection, "pipelines", "identity"):
            pipelines.check_identity(connection, pipeline, embedder.identity)
        choice = present_index(connection, table, resolved.index)
        if image is not None:
            vector = embed_image_query(open_image_embedder(resolved.embedder), image)
        else:
            vector = embed_query(embedder, str(query))
        hybrid = Hybrid(language=resolved.search.language)

        def nearest(count: int) -> list[Hit]:
            if mode == "hybrid":
                request = SearchRequest(vector, count, where=where, vectors=vectors)
                return hybrid_search(connection, table, choice, hybrid, words or str(query), request)
            return search_table(connection, table, choice, SearchRequest(vector, count, mode, where, vectors=vectors))

        hits = best_of_each_row(nearest, k) if group_by == "row" else nearest(k)
        return with_neighbours(connection, table, hits, neighbours) if neighbours else hits


def mode_of(text: str) -> SearchMode:
    """The mode of this name. Raises ``UsageError`` if there is none."""
    if text not in MODES:
        raise UsageError(
            f"there is no search mode {text!r}; the modes are {', '.join(MODES)}{did_you_mean(text, MODES)}"
        )
    return MODES[MODES.index(text)]


def group_by_of(text: str) -> Literal["chunk", "row"]:
    """What to group by, by its name. Raises ``UsageError`` if there is no such name."""
    if text not in ("chunk", "row"):
        raise UsageError(f"results are grouped by chunk or by row, not by {text!r}")
    return text


def _check_mode(pipeline: Pipeline, question: str | Path, mode: SearchMode, words: str | None) -> None:
    if words is not None and mode != "hybrid":
        raise UsageError("words are for mode hybrid: choose that mode, or leave them out")
    if mode == "hybrid" and not pipeline.search.hybrid:
        raise UsageError("mode hybrid needs a full text index: set search.hybrid to true and run rowvec sync")
    if mode == "hybrid" and isinstance(question, Path):
        raise UsageError("mode hybrid ranks by words, and an image has none; choose another mode")
