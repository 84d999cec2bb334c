"""Maintains the index, or measures which index suits the table's vectors."""

from __future__ import annotations

from typing import Any

from prefect import flow
from rowvec_tasks import jobs
from rowvec_tasks.artifacts import show_index
from rowvec_tasks.flow_body import job, run_name
from rowvec_tasks.given import PipelineOrFile, loaded
from rowvec_tasks.hooks import clear_up

from rowvec.index.tuning.results import Tuning
from rowvec.index.tuning.tuner import Budget


@flow(
    name="index",
    description=__doc__,
    flow_run_name=run_name,
    persist_result=False,
    on_cancellation=[clear_up],
    on_crashed=[clear_up],
)
@job
def index(
    pipeline: PipelineOrFile,
    tune: bool = False,
    seconds: float = 600,
    memory_mib: int = 2048,
    rows: int = 200_000,
    rebuild: bool = False,
) -> Tuning | dict[str, Any]:
    """Build the index if it is missing, worn or wrong; or measure which index is best.

    Returns the measurements with ``tune``, otherwise the state of the index, as ``rowvec index --json`` prints it.

    Args:
        pipeline: The pipeline file: a path on the worker, or an https URL. It is read when the run starts.
        tune: Whether to measure which index suits these vectors, and keep the choice for syncs.
        seconds: With tune, the seconds that the measurements may take.
        memory_mib: With tune, the MiB of memory that one build may take.
        rows: With tune, the number of rows to measure on, at most.
        rebuild: Whether to rebuild the index even if nothing is wrong with it.
    """
    pipeline = loaded(pipeline)
    if tune:
        tuning = jobs.tune_index(pipeline, Budget(seconds=seconds, memory=memory_mib * 2**20, rows=rows))
        show_index(pipeline, tuning)
        return tuning
    found = jobs.maintain_index(pipeline, rebuild_it=rebuild)
    show_index(pipeline, found)
    return found
