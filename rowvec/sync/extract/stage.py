"""Extract: one snapshot of source and vector table becomes a stored plan of what has to change."""

from __future__ import annotations

import time
from dataclasses import replace

from rowvec.embedders.cache import opened_embedder
from rowvec.ledger import pipelines
from rowvec.ledger.pipelines import PipelineId
from rowvec.ledger.plans import Plan
from rowvec.ledger.runs import Run
from rowvec.pipeline import Pipeline
from rowvec.pipeline.parts import table_identifier
from rowvec.pipeline.references import resolve
from rowvec.postgres.connection import Connection, open_target, without_blocking
from rowvec.postgres.vector_table import make_schema
from rowvec.runtime.telemetry import traced
from rowvec.search.hybrid import check_language
from rowvec.sources.postgres import is_beside
from rowvec.store.open import open_store
from rowvec.sync import staging
from rowvec.sync.extract.chunks import count_lost, is_joined, split_contents
from rowvec.sync.extract.joined import extract_joined
from rowvec.sync.extract.request import Request, check_deletes
from rowvec.sync.images.lost import forget_lost_images, wanting_images
from rowvec.vectors.fingerprint import Identity


def extract(connection: Connection, request: Request) -> Plan:
    """Compare source and vector table, and store the plan.

    Raises ``SourceError`` or ``TargetError`` where one of them is not as the pipeline says, and
    ``DeleteLimitExceeded`` before anything was spent.
    """
    pipeline = request.pipeline
    if pipeline.search.hybrid:
        # Before anything is paid for, though it is the index that will need it.
        check_language(connection, pipeline.search.language)
    if pipeline.source.chunks is not None:
        bring_chunks_up_to_date(connection, pipeline, request.identity, request.pipeline_id, request)
    if is_joined(pipeline):
        plan = without_blocking(lambda: extract_joined(connection, request))
    else:
        from rowvec.sync.extract.by_hash import extract_apart  # late: pyarrow's file readers are needed only here

        plan = without_blocking(lambda: extract_apart(connection, request))
    counts = plan.counts
    if pipeline.source.chunks is not None and counts.deleted:
        counts = replace(counts, deleted=count_lost(connection, pipeline, plan))
    check_deletes(counts, pipeline)
    return plan


def bring_chunks_up_to_date(
    connection: Connection,
    pipeline: Pipeline,
    identity: Identity,
    pipeline_id: PipelineId,
    request: Request | None = None,
) -> None:
    """Split whatever contents of the source are new; with a ``request``, set aside what cannot be."""
    if is_beside(pipeline):
        split_contents(connection, pipeline, identity, pipeline_id)
        return
    from rowvec.sync.extract.mirrored_chunks import mirror_source  # late: pyarrow's file readers are needed only here

    mirror_source(connection, pipeline, pipeline_id, request)


@traced("extract")
def run(pipeline: Pipeline, run: Run, weight: int = 1) -> Plan:
    """Compare source and vector table; the plan is stored and waits for its batches to be worked on.

    ``weight``: how many times its usual least size a batch is to have.
    """
    started = time.monotonic()
    resolved = resolve(pipeline)
    identity = opened_embedder(resolved.embedder).identity
    with open_target(resolved, "rowvec extract") as connection:
        shows_images = resolved.source.kind == "images"
        if shows_images:
            forget_lost_images(connection, open_store(resolved.artifacts), pipeline.name)
        request = Request(
            pipeline=resolved,
            identity=identity,
            pipeline_id=run.pipeline_id,
            run_id=run.run_id,
            note_all_images=shows_images and any(wanting_images(connection, pipeline)),
            batch_weight=weight,
        )
        # Not in the extract's transaction, nor in the merge's: others may be making the same schema.
        make_schema(connection, table_identifier(pipeline.target.table)[0])
        plan = extract(connection, request)
        pipelines.keep_settings(connection, run.pipeline_id, pipeline)
        # Without a single row to embed, a first load still makes the (empty) vector table.
        if plan.batches or plan.direct:
            staging.create_staging(connection, run.run_id, plan.table, plan.staging, direct=plan.direct)
        lost = wanting_images(connection, pipeline)[0] if shows_images else 0
    return replace(plan, lost_images=lost, seconds=time.monotonic() - started)
