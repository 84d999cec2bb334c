"""The search command: the rows nearest to a query."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from rowvec.embedders import embed_image_query, embed_query, image_in, open_embedder, open_image_embedder
from rowvec.errors import UsageError
from rowvec.index.tuning.results import present_index
from rowvec.ledger import pipelines
from rowvec.ledger.generations import effective
from rowvec.pipeline import Pipeline
from rowvec.pipeline.references import resolve
from rowvec.postgres.connection import open_target
from rowvec.postgres.vector_table import stored_table
from rowvec.searches.hybrid import Hybrid, HybridHit, hybrid_search
from rowvec.searches.query import Hit
from rowvec.searches.query import search as search_table
from rowvec.searches.request import SearchRequest
from rowvec.searches.statement import Mode

MODES: tuple[Mode, ...] = ("adaptive", "exact", "ann", "bits")


def search(
    pipeline: Pipeline,
    question: str | Path,
    k: int,
    where: str | None,
    mode: str,
    words: str | None = None,
) -> dict[str, Any]:
    """The ``k`` rows nearest to a text, or to the image in a file: key and metadata columns, content and distance.

    Mode ``hybrid`` ranks them together with the rows that hold the words (``words``, or the text itself), and adds the
    score and both ranks.

    Raises ``UsageError`` for an unknown mode, for words without mode ``hybrid``, for mode ``hybrid`` without a full
    text index or with an image, and for what ``rowvec.searches.query.search`` refuses.
    """
    _check_mode(pipeline, question, mode, words)
    image = image_in(question) if isinstance(question, Path) else None
    pipeline = effective(pipeline)
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
            vector = embed_query(embedder, str(question))
        if mode == "hybrid":
            hybrid, request = Hybrid(language=resolved.search.language), SearchRequest(vector, k, where=where)
            fused = hybrid_search(connection, table, choice, hybrid, words or str(question), request)
            return {"results": [{**_shown(one.hit), **_ranks(one)} for one in fused]}
        request = SearchRequest(vector, k, MODES[MODES.index(mode)], where)
        hits = search_table(connection, table, choice, request)
    return {"results": [_shown(hit) for hit in hits]}


def _check_mode(pipeline: Pipeline, question: str | Path, mode: str, words: str | None) -> None:
    if mode != "hybrid" and mode not in MODES:
        raise UsageError(f"there is no search mode {mode!r}; the modes are {', '.join(MODES)}, hybrid")
    if words is not None and mode != "hybrid":
        raise UsageError("--words are for --mode hybrid; give that, or leave them out")
    if mode == "hybrid" and not pipeline.search.hybrid:
        raise UsageError("--mode hybrid needs a full text index: set search.hybrid to true and run rowvec sync")
    if mode == "hybrid" and isinstance(question, Path):
        raise UsageError("--mode hybrid ranks by words, and an image has none; leave it out")


def _shown(hit: Hit) -> dict[str, Any]:
    distance = hit.distance if math.isfinite(hit.distance) else None
    return {**hit.key, **hit.metadata, "content": hit.content, "distance": distance}


def _ranks(found: HybridHit) -> dict[str, Any]:
    return {"score": found.score, "vector_rank": found.vector_rank, "text_rank": found.text_rank}
