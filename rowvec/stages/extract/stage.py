"""Extract: one snapshot of source and vector table becomes a stored plan of what must change."""

from __future__ import annotations

import time
from dataclasses import replace

from rowvec.embedders.cache import opened_embedder
from rowvec.ledger import pipelines
from rowvec.ledger.behind import refuse_if_behind
from rowvec.ledger.lease import open_owned
from rowvec.ledger.marked_store import settle
from rowvec.ledger.plans import Plan
from rowvec.ledger.runs import Run
from rowvec.pipeline import Pipeline
from rowvec.pipeline.parts import table_identifier
from rowvec.pipeline.references import resolve
from rowvec.postgres.connection import Connection
from rowvec.postgres.vector_table import make_schema
from rowvec.runtime.telemetry import traced
from rowvec.searches.hybrid import check_language
from rowvec.sources.target_overlap import check_source_is_not_target
from rowvec.stages import staging
from rowvec.stages.extract.open import open_source
from rowvec.stages.extract.request import Request, check_deletes
from rowvec.stages.images.lost import forget_lost_images, wanting_images
from rowvec.store.open import open_store


def extract(connection: Connection, request: Request) -> Plan:
    """Compare source and vector table, and store the plan.

    Raises ``SourceError`` or ``TargetError`` if one of them is not as the pipeline says, and ``DeleteLimitExceeded``
    before any money is spent.
    """
    pipeline = request.pipeline
    if pipeline.search.hybrid:
        # The index stage needs the language; an unknown one is refused here, before anything is paid for.
        check_language(connection, pipeline.search.language)
    check_source_is_not_target(connection, pipeline)
    source = open_source(connection, pipeline, request.identity, request.pipeline_id)
    plan = source.extract(request)
    check_deletes(replace(plan.counts, deleted=source.count_lost(plan)), pipeline)
    return plan


@traced("extract")
def run(pipeline: Pipeline, run: Run, weight: int = 1) -> Plan:
    """Compare source and vector table; the plan is stored, and its batches are pending.

    ``weight``: how many times the usual minimum of rows a batch gets.
    """
    started = time.monotonic()
    resolved = resolve(pipeline)
    identity = opened_embedder(resolved.embedder).identity
    with open_owned(resolved, run.lease, "rowvec extract", computes=True) as connection:
        store = open_store(resolved.artifacts)
        refuse_if_behind(connection, store, pipeline.name)
        settle(connection, store, pipeline.name, run.pipeline_id, run.run_id)
        shows_images = resolved.what == "images"
        if shows_images:
            forget_lost_images(connection, store, pipeline.name)
        request = Request(
            pipeline=resolved,
            identity=identity,
            pipeline_id=run.pipeline_id,
            run_id=run.run_id,
            note_all_images=shows_images and any(wanting_images(connection, pipeline)),
            batch_weight=weight,
        )
        # Outside the transactions of extract and merge: another process may be making the same schema.
        make_schema(connection, table_identifier(pipeline.target.table)[0])
        plan = extract(connection, request)
        pipelines.keep_settings(connection, run.pipeline_id, pipeline)
        # A first load makes the vector table, empty, even if there is no row to embed.
        if plan.batches or plan.direct:
            staging.create_staging(connection, run.run_id, plan.table, plan.staging, direct=plan.direct)
        lost = wanting_images(connection, pipeline)[0] if shows_images else 0
    return replace(plan, lost_images=lost, seconds=time.monotonic() - started)
