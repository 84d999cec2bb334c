"""The vector table from the store alone: no source is read, and no embedder asked."""

from __future__ import annotations

from prefect import flow

from rowvec.pipeline import Pipeline
from rowvec.report import RestoreReport
from rowvec.restore import restoring
from rowvec.stages import conclude
from tasks import stages
from tasks.artifacts import show
from tasks.hooks import clear_up
from tasks.job import job, run_name


@flow(name="restore", flow_run_name=run_name, persist_result=False, on_cancellation=[clear_up], on_crashed=[clear_up])
@job
def restore(pipeline: Pipeline, manifest: str | None = None) -> RestoreReport:
    """Build the vector table from its artifacts.

    Args:
        pipeline: What is restored, and where it goes: the content of a pipeline file.
        manifest: The name of the manifest to go by in the store; left out: the newest.
    """
    with restoring(pipeline, manifest) as run:
        report = stages.finish_restore(pipeline, run, stages.restore(pipeline, run, manifest))
        show(pipeline, report)
        return conclude(report)
