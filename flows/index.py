"""The index seen to, or the one found out that suits the table's vectors."""

from __future__ import annotations

from typing import Any

from prefect import flow
from rowvec_tasks import stages
from rowvec_tasks.artifacts import show_index
from rowvec_tasks.flow_body import job, run_name
from rowvec_tasks.hooks import clear_up

from rowvec.index.tuning.tuner import Budget
from rowvec.pipeline import Pipeline


@flow(name="index", flow_run_name=run_name, persist_result=False, on_cancellation=[clear_up], on_crashed=[clear_up])
@job
def index(
    pipeline: Pipeline,
    tune: bool = False,
    seconds: float = 600,
    memory_mib: int = 2048,
    rows: int = 200_000,
    rebuild: bool = False,
) -> dict[str, Any]:
    """Build what is missing, worn or wrong; or measure which index is best.

    Args:
        pipeline: Whose index is seen to: the content of a pipeline file.
        tune: Whether to measure which index suits these vectors, and keep the choice for syncs.
        seconds: With tune, what it may take.
        memory_mib: With tune, MiB that one build may take.
        rows: With tune, rows that are copied at most.
        rebuild: Whether to build the index anew though nothing is wrong with it.
    """
    if tune:
        found = stages.tune(pipeline, Budget(seconds=seconds, memory=memory_mib * 2**20, rows=rows))
    else:
        found = stages.see_to_index(pipeline, rebuild_it=rebuild)
    show_index(pipeline, found)
    return found
