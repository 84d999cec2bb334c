"""Rebuilds the vector table from the store alone: it reads no source and calls no embedder."""

from __future__ import annotations

from prefect import flow
from rowvec_tasks import jobs
from rowvec_tasks.artifacts import show
from rowvec_tasks.cancellation import cancellable
from rowvec_tasks.flow_body import job, number_run, run_name
from rowvec_tasks.given import PipelineOrFile, loaded
from rowvec_tasks.hooks import clear_up

from rowvec.operations.restore import restoring
from rowvec.stages.report import RestoreReport, conclude


@flow(
    name="restore",
    description=__doc__,
    flow_run_name=run_name,
    persist_result=False,
    on_cancellation=[clear_up],
    on_crashed=[clear_up],
)
@job
def restore(pipeline: PipelineOrFile, manifest: str = "") -> RestoreReport:
    """Build the vector table from its artifacts. Raises ``Inconsistent`` if a check fails afterwards.

    Args:
        pipeline: The pipeline file: a path on the worker, or an https URL. It is read when the run starts.
        manifest: The name of the manifest in the store to restore from; empty: the newest one.
    """
    pipeline = loaded(pipeline)
    with restoring(pipeline, manifest or None) as under_way, cancellable():
        number_run(under_way.run)
        report = jobs.validate_restore(pipeline, under_way.run, jobs.restore(pipeline, under_way))
        show(pipeline, report)
        return conclude(report)
