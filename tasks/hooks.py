"""Clears up after a run that cannot do it itself: it was cancelled, or its process has ended."""

from __future__ import annotations

import logging
from typing import Any

import httpx
from prefect import Flow, get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import PrefectException
from prefect.states import Cancelled, Crashed
from rowvec_tasks.artifacts import remove_generation_pages
from rowvec_tasks.cancellation import SENTENCE, TOO_LATE, end_parts
from rowvec_tasks.given import loaded

from rowvec.errors import RowvecError
from rowvec.ledger.cleanup import clear
from rowvec.runtime.figures import counted

logger = logging.getLogger(__name__)


def clear_up(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Clear what the run left behind: ``on_cancellation`` and ``on_crashed`` of every flow that writes.

    It frees disk space and tables before the next run does. Nothing depends on it: the next run clears whatever is
    left.
    """
    cancelled = state.is_cancelling() or state.is_cancelled()
    why = SENTENCE if cancelled else f"the flow run {flow_run.id} was ended from outside: {state.name}"
    try:
        if state.is_cancelling() and flow_run.deployment_id is None:
            # No worker sets its last state, and it was at its end when it was cancelled.
            with get_client(sync_client=True) as client:
                client.set_flow_run_state(flow_run.id, Cancelled(message=TOO_LATE), force=True)
        end_parts(flow_run.id, Cancelled(message=SENTENCE) if cancelled else Crashed(message=why), cancelled=cancelled)
        # A watcher has several.
        for place in flow_run.parameters.get("pipelines") or [flow_run.parameters["pipeline"]]:
            pipeline = loaded(place, str(flow_run.id))
            if flow.name == "rebuild":
                remove_generation_pages(pipeline.name, flow_run.id)
            done = clear(pipeline, why, "cancelled" if cancelled else "abandoned")
            closed, dropped = counted(len(done.runs), "runs"), counted(len(done.tables), "tables")
            logger.info("%s: %s closed, %s dropped", flow_run.name, closed, dropped)
    except (KeyError, httpx.HTTPError, PrefectException, RowvecError) as error:
        logger.warning("%s: the next run clears what this run has left (%s)", flow_run.name, type(error).__name__)
