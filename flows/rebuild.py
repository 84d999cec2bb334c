"""Builds the next generation of a vector table next to the live one, compares the two, and switches to it."""

from __future__ import annotations

from prefect import flow
from rowvec_flows.sync import sync
from rowvec_tasks import stages
from rowvec_tasks.artifacts import show_rebuild
from rowvec_tasks.flow_body import job, run_name
from rowvec_tasks.hooks import clear_up

from rowvec.errors import raise_if_awaiting
from rowvec.operations.rebuild import RebuildReport, Steps
from rowvec.operations.rebuild import rebuild as in_order
from rowvec.pipeline import Pipeline


@flow(name="rebuild", flow_run_name=run_name, persist_result=False, on_cancellation=[clear_up], on_crashed=[clear_up])
@job
def rebuild(pipeline: Pipeline, max_cost: float | None = None, switch: bool = True) -> RebuildReport:
    """Build the vector table again with the pipeline's present settings, while clients read the old one.

    Args:
        pipeline: What is embedded, how, and where it goes: the content of a pipeline file, with its new settings.
        max_cost: US dollars. A rebuild that would cost more is refused before anything is spent.
        switch: Whether to make the new generation the live one at once; if not, run this again to switch.
    """
    steps = Steps(
        begin=stages.begin_rebuild,
        sync=lambda of: raise_if_awaiting(sync(of, cause="rebuild")),
        live_pipeline=stages.live_pipeline,
        compare=stages.compare,
        switch=stages.switch,
    )
    report = in_order(pipeline, max_cost, steps, to_switch=switch)
    show_rebuild(report)
    return report
