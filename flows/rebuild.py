"""Builds the next generation of a vector table next to the live one, compares the two, and switches to it."""

from __future__ import annotations

import time

from prefect import flow
from rowvec_flows.sync import sync
from rowvec_tasks import stages
from rowvec_tasks.artifacts import show_rebuild
from rowvec_tasks.flow_body import job, run_name
from rowvec_tasks.hooks import clear_up

from rowvec.errors import raise_if_awaiting
from rowvec.operations.rebuild import RebuildReport, Rebuilt, finish_rebuild
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
    started = time.monotonic()
    following = stages.begin_rebuild(pipeline, max_cost)
    built = raise_if_awaiting(sync(following, cause="rebuild"))
    # The live generation is synced with its own settings, so that both hold the same rows when they are compared.
    before = raise_if_awaiting(sync(stages.live_pipeline(pipeline), cause="rebuild"))
    caught_up = raise_if_awaiting(sync(following, cause="rebuild"))
    comparison = stages.compare(pipeline, following)
    syncs, retired = (built, caught_up), None
    if switch:
        retired = stages.switch(pipeline, following)
        # Writes the new generation's manifest, and takes over the rows that changed during the switch.
        syncs = (*syncs, raise_if_awaiting(sync(pipeline, cause="rebuild")))
    rebuilt = Rebuilt(
        following=following,
        syncs=syncs,
        live_sync=before,
        comparison=comparison,
        retired_table=retired,
        started=started,
    )
    report = finish_rebuild(pipeline, rebuilt)
    show_rebuild(report)
    return report
