"""Deletes from the store what is old and no longer needed."""

from __future__ import annotations

from datetime import timedelta

from prefect import flow
from rowvec_tasks import jobs
from rowvec_tasks.artifacts import show_pruned
from rowvec_tasks.flow_body import job, run_name
from rowvec_tasks.given import PipelineOrFile, loaded
from rowvec_tasks.hooks import clear_up

from rowvec.operations.pruned import Pruned


@flow(
    name="prune",
    description=__doc__,
    flow_run_name=run_name,
    persist_result=False,
    on_cancellation=[clear_up],
    on_crashed=[clear_up],
)
@job
def prune(pipeline: PipelineOrFile, older_than_days: float = 30, apply: bool = False, compact: bool = False) -> Pruned:
    """Delete artifacts and manifests that are old and that nothing needs.

    Args:
        pipeline: The pipeline file: a path on the worker, or an https URL. It is read when the run starts.
        older_than_days: For so many days runs stay restorable and artifacts are kept.
        apply: Whether to delete; if not, the run only reports what it would delete.
        compact: Whether to merge small artifacts into large ones first; only together with apply.
    """
    pipeline = loaded(pipeline)
    found = jobs.prune_store(pipeline, timedelta(days=older_than_days), apply=apply, compact=compact)
    show_pruned(pipeline, found)
    return found
