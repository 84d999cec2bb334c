"""The next generation of a vector table: built beside the one that is read, compared with it, switched to."""

from __future__ import annotations

import time

from prefect import flow
from rowvec_flows.sync import sync
from rowvec_tasks import stages
from rowvec_tasks.artifacts import show_rebuild
from rowvec_tasks.flow_body import ended, job, run_name
from rowvec_tasks.hooks import clear_up

from rowvec.operations.rebuild import RebuildReport, finish_rebuild
from rowvec.pipeline import Pipeline


@flow(name="rebuild", flow_run_name=run_name, persist_result=False, on_cancellation=[clear_up], on_crashed=[clear_up])
@job
def rebuild(pipeline: Pipeline, max_cost: float | None = None, switch: bool = True) -> RebuildReport:
    """Build the vector table anew by the pipeline as it is now, while the old one is read.

    Args:
        pipeline: What is embedded, how, and where it goes: the content of a pipeline file, with its new settings.
        max_cost: US dollars. A rebuild that would cost more is refused before anything is spent.
        switch: Whether to let the new generation be read at once; if not, run this again to switch.
    """
    started = time.monotonic()
    following = stages.begin_rebuild(pipeline, max_cost)
    built = ended(sync(following, cause="rebuild"))
    # What is read is brought in step by its own settings, so that both are asked about the same rows.
    before = ended(sync(stages.live_pipeline(pipeline), cause="rebuild"))
    caught_up = ended(sync(following, cause="rebuild"))
    comparison = stages.compare(pipeline, following)
    retired = after = None
    if switch:
        retired = stages.switch(pipeline, following)
        # The manifest of the new generation, and what came in the moment of the switch.
        after = ended(sync(pipeline, cause="rebuild"))
    report = finish_rebuild(pipeline, following, [built, caught_up, after], before, comparison, retired, started)
    show_rebuild(report)
    return report
