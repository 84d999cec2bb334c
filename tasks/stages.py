"""One Prefect task per stage of a sync: its name and its retries. What a stage does is in the module of its name in the
core."""

from __future__ import annotations

from collections.abc import Callable

from prefect import Task
from rowvec_tasks.logging_filter import log_sentences
from rowvec_tasks.policy import stage
from rowvec_tasks.progress import expect

from rowvec.ledger.plans import Plan
from rowvec.ledger.runs import Run
from rowvec.pipeline import Pipeline
from rowvec.runtime.private import private_files
from rowvec.stages import cluster, order
from rowvec.stages import index as index_stage
from rowvec.stages import merge as merge_stage
from rowvec.stages import validate as validate_stage
from rowvec.stages.batch import Batch
from rowvec.stages.batch_api import submit
from rowvec.stages.batch_api.submit import Awaited
from rowvec.stages.extract import stage as extract_stage
from rowvec.stages.images import lost
from rowvec.stages.index import Indexed
from rowvec.stages.merge import Merged, Round
from rowvec.stages.report import SyncReport

Handed = Callable[[], Batch]
"""What the stage before has made of a batch: the ``result`` of its future, which is waited for. Of a future that is
given itself Prefect asks its server for the state, a request for each stage of each batch."""


@stage("extract")
def extract(pipeline: Pipeline, run: Run, weight: int = 1) -> Plan:
    """Find what changed, and store the plan."""
    plan = extract_stage.run(pipeline, run, weight)
    expect(plan.batches)
    return plan


@stage("jobs")
def submit_jobs(pipeline: Pipeline, run: Run) -> Awaited:
    """Have the provider's Batch API answer what it can; see how far it is."""
    return submit.run(pipeline, run)


@stage("batch {number}")
def batch(pipeline: Pipeline, run: Run, number: int) -> Batch:
    """Work a batch through all stages, on a worker of a cluster."""
    log_sentences()  # in the worker's log
    with private_files():
        return cluster.work_through(pipeline, run, number)


@stage("images again")
def lost_images(pipeline: Pipeline, run: Run) -> int:
    """Put images into the store again that it has lost."""
    return lost.run(pipeline, run)


@stage("images {number}")
def images(pipeline: Pipeline, run: Run, number: int, before: Handed | None = None) -> Batch:
    """Put a batch's images into the store."""
    return _batch_stage("images", pipeline, run, number, before)


@stage("embed {number}")
def embed(pipeline: Pipeline, run: Run, number: int, before: Handed | None = None) -> Batch:
    """Give a batch's rows their vectors."""
    return _batch_stage("embed", pipeline, run, number, before)


@stage("binarize {number}")
def binarize(pipeline: Pipeline, run: Run, number: int, before: Handed | None = None) -> Batch:
    """Make one bit per dimension of each vector."""
    return _batch_stage("binarize", pipeline, run, number, before)


@stage("upload {number}")
def upload(pipeline: Pipeline, run: Run, number: int, before: Handed | None = None) -> Batch:
    """Keep the batch as an immutable Parquet object."""
    return _batch_stage("upload", pipeline, run, number, before)


@stage("load {number}")
def load(pipeline: Pipeline, run: Run, number: int, before: Handed | None = None) -> Batch:
    """COPY the batch into staging."""
    return _batch_stage("load", pipeline, run, number, before)


OF_BATCH: dict[str, Task[..., Batch]] = {
    "images": images,
    "embed": embed,
    "binarize": binarize,
    "upload": upload,
    "load": load,
}
"""The task of each of ``rowvec.stages.order.BATCH_STAGES``."""


def _batch_stage(name: str, pipeline: Pipeline, run: Run, number: int, before: Handed | None) -> Batch:
    batch = before() if before else Batch.of(run, number)
    return order.BATCH_STAGES[name].run(pipeline, batch)


@stage("merge")
def merge(pipeline: Pipeline, run: Run) -> Merged:
    """Bring staging into the vector table, in one transaction."""
    return merge_stage.run(pipeline, run)


@stage("index")
def index(pipeline: Pipeline, run: Run) -> Indexed:
    """Build or rebuild the index where it has to be."""
    return index_stage.run(pipeline, run)


@stage("validate")
def validate(pipeline: Pipeline, run: Run, rounds: list[Round], indexed: Indexed) -> SyncReport:
    """Check what must hold, and record the verdict."""
    return validate_stage.run(pipeline, run, rounds, indexed)
