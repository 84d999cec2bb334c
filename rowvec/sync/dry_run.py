"""The plan command: what a sync would do and cost, without spending anything."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

from rowvec.embedders import open_embedder
from rowvec.ledger import pipelines, runs, spending
from rowvec.ledger.generations import effective
from rowvec.ledger.plans import sample_texts
from rowvec.pipeline import Pipeline
from rowvec.pipeline.references import resolve
from rowvec.postgres.connection import open_target
from rowvec.postgres.migrations import install
from rowvec.sources.row_security import restriction
from rowvec.sync.batch_api import jobs
from rowvec.sync.batch_api.submit import price_share
from rowvec.sync.extract.request import Request
from rowvec.sync.extract.stage import extract

# Tokens are counted exactly for up to this many texts, and estimated from characters above.
_COUNTED_TEXTS = 100_000


def plan(pipeline: Pipeline) -> dict[str, Any]:
    """What a sync would do, in rows, tokens and US dollars; the stored plan stays until the next one.

    Nothing is embedded and no vector changes.
    """
    pipeline = effective(pipeline)
    resolved = resolve(pipeline)
    embedder = open_embedder(resolved.embedder)
    with open_target(resolved, "rowvec plan") as connection, ExitStack() as held:
        install(connection)
        pipeline_id = pipelines.register(connection, pipeline, embedder.identity)
        run_id = held.enter_context(runs.planning(connection, pipeline_id))
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
        shown_in_part = restriction(connection, resolved)
        budget = spending.outlook(connection, spending.account_of(resolved, run_id), cost)
    counts = found.counts
    embedded = counts.texts - counts.known
    return {
        "run_id": run_id,
        **{k: v for k, v in asdict(counts).items() if k not in ("texts", "known")},
        "what": pipeline.what,
        "embedded": embedded,
        "reused": counts.new + counts.changed - embedded,
        "tokens": tokens,
        "cost_usd": cost,
        "awaiting": {"jobs": at_work[0], "texts": at_work[1]},
        "budget": budget,
        "notes": [shown_in_part] if shown_in_part else [],
    }
