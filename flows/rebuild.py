"""Builds the next generation of a vector table next to the live one, compares the two, and switches to it."""

from __future__ import annotations

from pathlib import Path

from prefect import flow
from rowvec_flows.sync import sync
from rowvec_tasks import jobs
from rowvec_tasks.artifacts import remove_generation_pages, show_rebuild
from rowvec_tasks.flow_body import job, run_name
from rowvec_tasks.given import PipelineOrFile, loaded
from rowvec_tasks.hooks import clear_up

from rowvec.errors import RowvecError, raise_if_awaiting
from rowvec.operations.rebuild import RebuildReport, Steps
from rowvec.operations.rebuild import rebuild as in_order

# Not None: a form asks for the type of a field that may be None, before it asks for the value.
NO_LIMIT = -1.0


@flow(
    name="rebuild",
    description=__doc__,
    flow_run_name=run_name,
    persist_result=False,
    on_cancellation=[clear_up],
    on_crashed=[clear_up],
)
@job
def rebuild(
    pipeline: PipelineOrFile, max_cost: float = NO_LIMIT, switch: bool = True, questions: str = ""
) -> RebuildReport:
    """Build the vector table again with the pipeline's present settings, while clients read the old one.

    Args:
        pipeline: The pipeline file: a path on the worker, or an https URL. It is read when the run starts.
        max_cost: US dollars. A rebuild that would cost more is refused before anything is spent. -1: no limit.
        switch: Whether to make the new generation the live one at once; if not, run this again to switch.
        questions: A file of labelled questions on the worker. If the new generation answers them worse than the live
            one, there is no switch. Empty: none are asked.
    """
    pipeline = loaded(pipeline)
    steps = Steps(
        begin=jobs.begin_rebuild,
        sync=lambda of: raise_if_awaiting(sync(of, cause="rebuild")),
        live_pipeline=jobs.live_pipeline,
        compare=jobs.compare,
        judge=jobs.judge,
        switch=jobs.switch,
    )
    try:
        limit = None if max_cost < 0 else max_cost
        asked = Path(questions) if questions else None
        report = in_order(pipeline, limit, steps, to_switch=switch, questions=asked)
    except RowvecError:
        remove_generation_pages(pipeline.name)
        raise
    if report.switched:
        remove_generation_pages(pipeline.name)
    show_rebuild(report)
    return report
