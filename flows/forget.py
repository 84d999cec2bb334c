"""Erases the traces of rows that the source deleted longer ago than the pipeline file says."""

from __future__ import annotations

from prefect import flow
from rowvec_tasks import jobs
from rowvec_tasks.artifacts import show_erased
from rowvec_tasks.flow_body import job, run_name
from rowvec_tasks.given import PipelineOrFile, loaded
from rowvec_tasks.hooks import clear_up

from rowvec.operations.erasure.forget import Erasure


@flow(
    name="forget",
    description=__doc__,
    flow_run_name=run_name,
    persist_result=False,
    on_cancellation=[clear_up],
    on_crashed=[clear_up],
)
@job
def forget(pipeline: PipelineOrFile) -> Erasure:
    """Apply ``artifacts.erase_deleted_after``, and finish an erasure that was killed.

    Keys are no parameters, because Prefect keeps those: ``rowvec forget FILE --key`` takes them.

    Args:
        pipeline: The pipeline file: a path on the worker, or an https URL. It is read when the run starts.
    """
    pipeline = loaded(pipeline)
    found = jobs.erase(pipeline)
    show_erased(pipeline, found)
    return found
