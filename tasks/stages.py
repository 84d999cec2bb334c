"""One Prefect task per stage: its name and its retries. What a stage does is in the module of its name in the core."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from prefect import Task
from rowvec_tasks.logging_filter import log_sentences
from rowvec_tasks.policy import stage
from rowvec_tasks.progress import expect

from rowvec.index.tuning.results import Tuning
from rowvec.index.tuning.tuner import Budget
from rowvec.ledger.plans import Plan
from rowvec.ledger.runs import Run
from rowvec.operations import rebuild, repair
from rowvec.operations.audit import Audit
from rowvec.operations.audit import audit as run_audit
from rowvec.operations.erasure.forget import Erasure, forget
from rowvec.operations.index import maintain, tune
from rowvec.operations.prune import Pruned, prune
from rowvec.operations.rebuild import Comparison
from rowvec.operations.relevance.evaluate import Evaluation
from rowvec.operations.restore import Restore, Restored, finish_restore, restore_rows
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
from rowvec.stages.report import RestoreReport, SyncReport

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


@stage("restore")
def restore(pipeline: Pipeline, under_way: Restore) -> Restored:
    """Build the vector table from artifacts and journal."""
    return restore_rows(pipeline, under_way)


@stage("validate restore")
def validate_restore(pipeline: Pipeline, run: Run, restored: Restored) -> RestoreReport:
    """Build the index, check the table, and record the verdict."""
    return finish_restore(pipeline, run, restored)


@stage("begin rebuild")
def begin_rebuild(pipeline: Pipeline, max_cost: float | None) -> Pipeline:
    """Find the settings that build the next generation, and refuse to spend more than ``max_cost`` US dollars."""
    return rebuild.begin_rebuild(pipeline, max_cost)


@stage("live pipeline")
def live_pipeline(pipeline: Pipeline) -> Pipeline:
    """Read the settings of the live generation."""
    return rebuild.live_pipeline(pipeline)


@stage("compare")
def compare(pipeline: Pipeline, following: Pipeline) -> Comparison:
    """Measure the recall of both generations with the same rows as queries."""
    return rebuild.compare(pipeline, following)


@stage("judge")
def judge(live: Pipeline, following: Pipeline, questions: Path, to_switch: bool) -> Evaluation:
    """Ask labelled questions of both generations, and refuse to switch to one that answers them worse."""
    return rebuild.judge(live, following, questions, to_switch)


@stage("switch")
def switch(pipeline: Pipeline, following: Pipeline) -> str:
    """Make the next generation the live one, in one transaction."""
    return rebuild.switch(pipeline, following)


@stage("audit")
def audit(pipeline: Pipeline) -> Audit:
    """Compare source, artifacts and vector table both ways."""
    return run_audit(pipeline)


@stage("prepare repair")
def prepare_repair(pipeline: Pipeline) -> Audit:
    """Audit, and repair what a sync alone cannot."""
    return repair.prepare_repair(pipeline)


@stage("prune")
def prune_store(pipeline: Pipeline, older_than: timedelta, *, apply: bool, compact: bool) -> Pruned:
    """Delete from the store what is old and no longer needed."""
    return prune(pipeline, older_than, apply=apply, compact=compact)


@stage("forget")
def erase(pipeline: Pipeline) -> Erasure:
    """Erase the traces of rows that were deleted long enough ago."""
    return forget(pipeline, apply=True)


@stage("maintain index")
def maintain_index(pipeline: Pipeline, *, rebuild_it: bool) -> dict[str, Any]:
    """Build the index if it is missing, worn or wrong."""
    return maintain(pipeline, rebuild=rebuild_it)


@stage("tune index")
def tune_index(pipeline: Pipeline, budget: Budget) -> Tuning:
    """Measure which index suits the table's vectors, and store the choice for syncs."""
    return tune(pipeline, budget)
