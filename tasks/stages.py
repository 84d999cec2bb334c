"""One Prefect task a stage: its name, its retries, its tags. What a stage does is in ``rowvec.stages``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from rowvec import stages
from rowvec.merge import Merged
from rowvec.pipeline import Pipeline
from rowvec.plan import Plan
from rowvec.report import SyncReport
from rowvec.run import Run
from rowvec.stages import Batch, Indexed, Round
from tasks.policy import JITTER, RETRIES, WAITS_SECONDS, is_retriable

# No time-outs here: Prefect cannot interrupt a task in a thread. Embedder, blob client and database have their own.
_stage: Callable[..., Any] = partial(
    task,
    retries=RETRIES,
    retry_delay_seconds=WAITS_SECONDS,
    retry_jitter_factor=JITTER,
    retry_condition_fn=is_retriable,
    cache_policy=NO_CACHE,
    persist_result=False,
)


@_stage(task_run_name="extract", tags=["rowvec", "extract"])
def extract(pipeline: Pipeline, run: Run) -> Plan:
    """Find what changed, and store the plan."""
    return stages.extract_rows(pipeline, run)


@_stage(task_run_name="embed {number}", tags=["rowvec", "embed"])
def embed(pipeline: Pipeline, run: Run, number: int) -> Batch:
    """Give a batch's rows their vectors."""
    return stages.embed_rows(pipeline, run.run_id, number)


@_stage(task_run_name="binarize {batch.number}", tags=["rowvec", "binarize"])
def binarize(pipeline: Pipeline, batch: Batch) -> Batch:
    """One bit a dimension, beside the vectors."""
    return stages.binarize_rows(pipeline, batch)


@_stage(task_run_name="upload {batch.number}", tags=["rowvec", "upload"])
def upload(pipeline: Pipeline, batch: Batch) -> Batch:
    """Keep the batch as an immutable Parquet object."""
    return stages.upload_rows(pipeline, batch)


@_stage(task_run_name="load {batch.number}", tags=["rowvec", "load"])
def load(pipeline: Pipeline, batch: Batch) -> Batch:
    """COPY the batch into staging."""
    return stages.load_rows(pipeline, batch)


@_stage(task_run_name="merge", tags=["rowvec", "merge"])
def merge(pipeline: Pipeline, run: Run) -> Merged:
    """Bring staging into the vector table, in one transaction."""
    return stages.merge_rows(pipeline, run.run_id)


@_stage(task_run_name="index", tags=["rowvec", "index"])
def index(pipeline: Pipeline, run: Run) -> Indexed:
    """Build or rebuild the index where it has to be."""
    return stages.index_rows(pipeline, run.run_id)


@_stage(task_run_name="validate", tags=["rowvec", "validate"])
def validate(pipeline: Pipeline, run: Run, rounds: list[Round], indexed: Indexed) -> SyncReport:
    """Check what must hold, and record the verdict."""
    return stages.validate_rows(pipeline, run, rounds, indexed)
