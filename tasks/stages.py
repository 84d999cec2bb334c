"""One Prefect task a stage: its name and its retries. What it does: ``rowvec.sync.stages``, ``rowvec.sync.batch``."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from rowvec_tasks.logging_filter import tell_sentences
from rowvec_tasks.policy import stage
from rowvec_tasks.progress import expect

from rowvec.index.tuning.tuner import Budget
from rowvec.ledger.plans import Plan
from rowvec.ledger.runs import Run, RunId
from rowvec.operations import audit as auditing
from rowvec.operations import index as index_commands
from rowvec.operations import prune as retention
from rowvec.operations import rebuild, repair
from rowvec.operations.audit import Audit
from rowvec.operations.prune import Pruned
from rowvec.operations.rebuild import Comparison
from rowvec.operations.restore import Restored, restore_rows
from rowvec.operations.restore import finish_restore as finish
from rowvec.pipeline import Pipeline
from rowvec.sync import binarize as binarize_stage
from rowvec.sync import cluster
from rowvec.sync import embed as embed_stage
from rowvec.sync import index as index_stage
from rowvec.sync import load as load_stage
from rowvec.sync import merge as merge_stage
from rowvec.sync import upload as upload_stage
from rowvec.sync import validate as validate_stage
from rowvec.sync.batch import Batch
from rowvec.sync.batch_api import ask as asking
from rowvec.sync.batch_api.ask import Ahead
from rowvec.sync.extract import stage as stage_stage
from rowvec.sync.images import lost
from rowvec.sync.images import upload as images_upload
from rowvec.sync.index import Indexed
from rowvec.sync.merge import Merged, Round
from rowvec.sync.report import RestoreReport, SyncReport

Handed = Callable[[], Batch]
"""What the stage before has made of a batch: the ``result`` of its future, which is waited for. Of a future that is
given itself Prefect asks its server for the state, a request for each stage of each batch."""


@stage("extract")
def extract(pipeline: Pipeline, run: Run, weight: int = 1) -> Plan:
    """Find what changed, and store the plan."""
    plan = stage_stage.extract_rows(pipeline, run, weight)
    expect(plan.batches)
    return plan


@stage("jobs")
def ask_ahead(pipeline: Pipeline, run: Run) -> Ahead:
    """Have the provider's Batch API answer what it can; see how far it is."""
    return asking.ask_ahead(pipeline, run)


@stage("batch {number}")
def batch(pipeline: Pipeline, run_id: RunId, number: int) -> Batch:
    """Work a batch through all stages, on a worker of a cluster."""
    tell_sentences()  # in the worker's log
    return cluster.work_through(pipeline, run_id, number)


@stage("images {number}")
def images(pipeline: Pipeline, run: Run, number: int) -> Batch:
    """Put a batch's images into the store."""
    return images_upload.upload_image_files(pipeline, run.run_id, number)


@stage("images again")
def lost_images(pipeline: Pipeline, run: Run) -> int:
    """Put images into the store again that it has lost."""
    return lost.upload_lost_images(pipeline, run.run_id)


@stage("embed {number}")
def embed(pipeline: Pipeline, run: Run, number: int, before: Handed | None = None) -> Batch:
    """Give a batch's rows their vectors."""
    return embed_stage.embed_rows(pipeline, run.run_id, number, before() if before else None)


@stage("binarize {number}")
def binarize(pipeline: Pipeline, number: int, embedded: Handed) -> Batch:
    """One bit a dimension, beside the vectors."""
    del number  # for the run's name, which is made before the batch is there
    return binarize_stage.binarize_rows(pipeline, embedded())


@stage("upload {number}")
def upload(pipeline: Pipeline, number: int, binarized: Handed) -> Batch:
    """Keep the batch as an immutable Parquet object."""
    del number  # as above
    return upload_stage.upload_rows(pipeline, binarized())


@stage("load {number}")
def load(pipeline: Pipeline, number: int, uploaded: Handed) -> Batch:
    """COPY the batch into staging."""
    del number  # as above
    return load_stage.load_rows(pipeline, uploaded())


@stage("merge")
def merge(pipeline: Pipeline, run: Run) -> Merged:
    """Bring staging into the vector table, in one transaction."""
    return merge_stage.merge_rows(pipeline, run.run_id)


@stage("index")
def index(pipeline: Pipeline, run: Run) -> Indexed:
    """Build or rebuild the index where it has to be."""
    return index_stage.index_rows(pipeline, run.run_id)


@stage("validate")
def validate(pipeline: Pipeline, run: Run, rounds: list[Round], indexed: Indexed) -> SyncReport:
    """Check what must hold, and record the verdict."""
    return validate_stage.validate_rows(pipeline, run, rounds, indexed)


@stage("restore")
def restore(pipeline: Pipeline, run: Run, manifest: str | None) -> Restored:
    """Build the vector table from artifacts and journal."""
    return restore_rows(pipeline, run, manifest)


@stage("validate restore")
def finish_restore(pipeline: Pipeline, run: Run, restored: Restored) -> RestoreReport:
    """Index it, check it, and record the verdict."""
    return finish(pipeline, run, restored)


@stage("begin rebuild")
def begin_rebuild(pipeline: Pipeline, max_cost: float | None) -> Pipeline:
    """Find what builds the next generation, and what it would cost."""
    return rebuild.begin_rebuild(pipeline, max_cost)


@stage("live pipeline")
def live_pipeline(pipeline: Pipeline) -> Pipeline:
    """The settings of what is read now."""
    return rebuild.live_pipeline(pipeline)


@stage("compare")
def compare(pipeline: Pipeline, following: Pipeline) -> Comparison:
    """Ask both generations about the same rows."""
    return rebuild.compare(pipeline, following)


@stage("switch")
def switch(pipeline: Pipeline, following: Pipeline) -> str:
    """Let the next generation be read, in one transaction."""
    return rebuild.switch(pipeline, following)


@stage("audit")
def audit(pipeline: Pipeline) -> Audit:
    """Compare source, artifacts and vector table both ways."""
    return auditing.run_audit(pipeline)


@stage("prepare repair")
def prepare_repair(pipeline: Pipeline) -> Audit:
    """The same, and make right what a sync cannot."""
    return repair.prepare_repair(pipeline)


@stage("prune")
def prune(pipeline: Pipeline, older_than: timedelta, *, apply: bool, compact: bool) -> Pruned:
    """Let go of what is old and not needed in the store."""
    return retention.prune(pipeline, older_than, apply=apply, compact=compact)


@stage("see to index")
def see_to_index(pipeline: Pipeline, *, rebuild_it: bool) -> dict[str, Any]:
    """Build what is missing, worn or wrong."""
    return index_commands.see_to_index(pipeline, rebuild=rebuild_it)


@stage("tune index")
def tune(pipeline: Pipeline, budget: Budget) -> dict[str, Any]:
    """Measure which index suits the table's vectors, and keep the choice for syncs."""
    return index_commands.tune(pipeline, budget).as_json()
