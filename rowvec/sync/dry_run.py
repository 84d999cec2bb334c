"""What the commands do that need no flow: plan, search, rejects."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rowvec.embedders import embed_image_query, embed_query, image_in, open_embedder, open_image_embedder
from rowvec.errors import UsageError
from rowvec.index.build import index_state
from rowvec.index.choice import IndexChoice, fits, oversampling_for
from rowvec.index.tuning.results import find_tuning
from rowvec.ledger import pipelines, spending
from rowvec.ledger import rejects as set_aside
from rowvec.ledger.plans import sample_texts
from rowvec.ledger.runs import open_target
from rowvec.operations.switch import effective
from rowvec.pipeline import Pipeline
from rowvec.pipeline.model import Index
from rowvec.pipeline.references import resolve
from rowvec.postgres.connection import Connection
from rowvec.postgres.migrations import install
from rowvec.postgres.vector_table import VectorTable, stored_table
from rowvec.search.hybrid import Hybrid, HybridHit, hybrid_search
from rowvec.search.query import Hit, Mode
from rowvec.search.query import search as search_table
from rowvec.sync.batch_api import jobs
from rowvec.sync.batch_api.ask import price_share
from rowvec.sync.extract.stage import Request, extract
from rowvec.sync.report import what_of

# Tokens are counted exactly up to this many texts, and reckoned from their characters beyond.
_COUNTED_TEXTS = 100_000

MODES: tuple[Mode, ...] = ("adaptive", "exact", "ann", "bits")


def plan(pipeline: Pipeline) -> dict[str, Any]:
    """What a sync would do, in rows, tokens and US dollars; the plan itself stays stored until the next one.

    Nothing is embedded and no vector is touched.
    """
    pipeline = effective(pipeline)
    resolved = resolve(pipeline)
    embedder = open_embedder(resolved.embedder)
    with open_target(resolved, "rowvec plan") as connection:
        install(connection)
        pipeline_id = pipelines.register(connection, pipeline, embedder.identity)
        run_id = pipelines.start_plan(connection, pipeline_id)
        pipelines.supersede_plans(connection, pipeline_id, run_id)
        request = Request(pipeline=resolved, identity=embedder.identity, pipeline_id=pipeline_id, run_id=run_id)
        found = extract(connection, request)
        tokens = 0
        if found.batches and embedder.paid:
            texts, count, characters = sample_texts(connection, found, _COUNTED_TEXTS)
            tokens = embedder.count_tokens(texts)
            if count > len(texts):
                tokens = round(tokens * characters / max(1, sum(map(len, texts))))
        at_work = jobs.at_work(connection, pipeline_id)
        cost = embedder.cost(tokens) * price_share(resolved, found.counts.texts - found.counts.known)
        budget = spending.outlook(connection, spending.account_of(resolved, run_id), cost)
    counts = found.counts
    embedded = counts.texts - counts.known
    return {
        "run_id": run_id,
        **{k: v for k, v in asdict(counts).items() if k not in ("texts", "known")},
        "what": what_of(pipeline),
        "embedded": embedded,
        "reused": counts.new + counts.changed - embedded,
        "tokens": tokens,
        "cost_usd": cost,
        "awaiting": {"jobs": at_work[0], "texts": at_work[1]},
        "budget": budget,
    }


def search(
    pipeline: Pipeline,
    question: str | Path,
    k: int,
    where: str | None,
    mode: str,
    words: str | None = None,
) -> dict[str, Any]:
    """The ``k`` rows nearest to a text, or to the image in a file: key and metadata columns, content and distance.

    Mode ``hybrid`` ranks them together with those that hold the words (``words``, or the text itself), and adds the
    score and both ranks.
    """
    if mode != "hybrid" and mode not in MODES:
        raise UsageError(f"there is no search mode {mode!r}; the modes are {', '.join(MODES)}, hybrid")
    if words is not None and mode != "hybrid":
        raise UsageError("--words are for --mode hybrid; give that, or leave them out")
    if mode == "hybrid" and not pipeline.search.hybrid:
        raise UsageError("--mode hybrid needs a full text index: set search.hybrid to true and run rowvec sync")
    if mode == "hybrid" and isinstance(question, Path):
        raise UsageError("--mode hybrid ranks by words, and an image has none; leave it out")
    pipeline = effective(pipeline)
    resolved = resolve(pipeline)
    embedder = open_embedder(resolved.embedder)
    with open_target(resolved, "rowvec search") as connection:
        table = stored_table(connection, resolved)
        if pipelines.is_readable(connection, "pipelines", "identity"):
            pipelines.check_identity(connection, pipeline, embedder.identity)
        choice = present_index(connection, table, resolved.index)
        if isinstance(question, Path):
            vector = embed_image_query(open_image_embedder(resolved.embedder), image_in(question))
        else:
            vector = embed_query(embedder, question)
        if mode == "hybrid":
            hybrid = Hybrid(language=resolved.search.language)
            fused = hybrid_search(connection, table, choice, hybrid, vector, words or str(question), k, where)
            return {"results": [{**_shown(one.hit), **_ranks(one)} for one in fused]}
        chosen = MODES[MODES.index(mode)]
        hits = search_table(connection, table, choice, vector, k, chosen, where)
    return {"results": [_shown(hit) for hit in hits]}


def _shown(hit: Hit) -> dict[str, Any]:
    return {**hit.key, **hit.metadata, "content": hit.content, "distance": hit.distance}


def _ranks(found: HybridHit) -> dict[str, Any]:
    return {"score": found.score, "vector_rank": found.vector_rank, "text_rank": found.text_rank}


def rejects(pipeline: Pipeline, *, retry: bool) -> dict[str, Any]:
    """The rows that are set aside; with ``retry`` they are forgotten, so that the next sync tries them again."""
    resolved = resolve(pipeline)
    with open_target(resolved, "rowvec rejects") as connection:
        install(connection)
        pipeline_id = pipelines.find(connection, pipeline)
        count = set_aside.count(connection, pipeline_id)
        listed = set_aside.listed(connection, pipeline_id)
        retried = set_aside.forget(connection, pipeline_id) if retry else 0
        if retry:
            jobs.forget_refusals(connection, pipeline_id)
    return {"count": count, "retried": retried, "rejects": [asdict(reject) for reject in listed]}


def present_index(connection: Connection, table: VectorTable, wanted: Index) -> IndexChoice:
    """What a search can go by: the valid index that is there, with the effort that was tuned for it; else none."""
    oversampling = oversampling_for(wanted, table.dimensions)
    tuned = find_tuning(connection, table) if wanted.kind == "auto" and wanted.on == "auto" else None
    for state in reversed(index_state(connection, table)):
        if state.valid and not state.partial:
            if tuned and fits(state.present, tuned.choice):
                return tuned.choice
            return replace(state.present, oversampling=oversampling)
    return IndexChoice(kind="none", oversampling=oversampling, reason="There is no index.")
