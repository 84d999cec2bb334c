"""One Prefect task a stage: its name, its retries, its tags. What a stage does is in ``rowvec.stages``."""

from __future__ import annotations

from rowvec import rebuild, stages
from rowvec.merge import Merged
from rowvec.pipeline import Pipeline
from rowvec.plan import Plan
from rowvec.rebuild import Comparison
from rowvec.report import RestoreReport, SyncReport
from rowvec.restore import Restored, restore_rows
from rowvec.restore import finish_restore as finish
from rowvec.run import Run
from rowvec.serving import Indexed
from rowvec.stages import Batch, Round
from tasks.policy import stage


@stage("extract")
def extract(pipeline: Pipeline, run: Run) -> Plan:
    """Find what changed, and store the plan."""
    return stages.extract_rows(pipeline, run)


@stage("images {number}")
def images(pipeline: Pipeline, run: Run, number: int) -> Batch:
    """Put a batch's images into the store."""
    return stages.upload_image_files(pipeline, run.run_id, number)


@stage("embed {number}")
def embed(pipeline: Pipeline, run: Run, number: int, before: Batch | None = None) -> Batch:
    """Give a batch's rows their vectors."""
    return stages.embed_rows(pipeline, run.run_id, number, before)


@stage("binarize {batch.number}")
def binarize(pipeline: Pipeline, batch: Batch) -> Batch:
    """One bit a dimension, beside the vectors."""
    return stages.binarize_rows(pipeline, batch)


@stage("upload {batch.number}")
def upload(pipeline: Pipeline, batch: Batch) -> Batch:
    """Keep the batch as an immutable Parquet object."""
    return stages.upload_rows(pipeline, batch)


@stage("load {batch.number}")
def load(pipeline: Pipeline, batch: Batch) -> Batch:
    """COPY the batch into staging."""
    return stages.load_rows(pipeline, batch)


@stage("merge")
def merge(pipeline: Pipeline, run: Run) -> Merged:
    """Bring staging into the vector table, in one transaction."""
    return stages.merge_rows(pipeline, run.run_id)


@stage("index")
def index(pipeline: Pipeline, run: Run) -> Indexed:
    """Build or rebuild the index where it has to be."""
    return stages.index_rows(pipeline, run.run_id)


@stage("validate")
def validate(pipeline: Pipeline, run: Run, rounds: list[Round], indexed: Indexed) -> SyncReport:
    """Check what must hold, and record the verdict."""
    return stages.validate_rows(pipeline, run, rounds, indexed)


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
