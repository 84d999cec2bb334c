"""Clears up after a run that cannot do it itself: it was cancelled, or its process has ended."""

from __future__ import annotations

import logging
from typing import Any

from prefect import Flow
from prefect.client.schemas.objects import FlowRun, State
from pydantic import ValidationError

from rowvec.errors import RowvecError
from rowvec.ledger.cleanup import clear
from rowvec.pipeline import Pipeline

logger = logging.getLogger(__name__)


def clear_up(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Clear what the run left behind: ``on_cancellation`` and ``on_crashed`` of every flow that writes.

    It frees disk space and tables before the next run does. Nothing depends on it: the next run clears whatever is
    left.
    """
    del flow  # all flows leave the same things
    try:
        pipeline = Pipeline.model_validate(flow_run.parameters["pipeline"])
        done = clear(pipeline, f"the flow run {flow_run.id} was ended from outside: {state.name}")
    except (KeyError, ValidationError, RowvecError) as error:
        logger.warning("%s: the next run clears what this run has left (%s)", flow_run.name, type(error).__name__)
        return
    logger.info("%s: %d run(s) closed, %d table(s) dropped", flow_run.name, len(done.runs), len(done.tables))
