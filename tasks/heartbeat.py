"""Signs of life of a run that a command has started, sent so that the run does not wait for the one who sends them."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar

import prefect
from prefect.events import emit_event
from prefect.runtime import flow_run
from prefect.settings import get_current_settings
from rowvec_tasks.changed_settings import changed_settings

from rowvec.runtime.beside import beside

EVENT = "prefect.flow-run.heartbeat"
"""What Prefect itself sends: an automation that watches for runs whose process was killed waits for this event."""

_seconds: ContextVar[int | None] = ContextVar("seconds_between_heartbeats", default=None)


@contextmanager
def own_heartbeats(*, are_sent: bool = True) -> Generator[None]:
    """Within this context, ``alive`` sends the heartbeats of runs, as often as Prefect's settings say, and not Prefect.

    Prefect's thread sleeps in steps of one second, and a run waits for it at its end: half a second on average.
    """
    token = _seconds.set(get_current_settings().flows.heartbeat_frequency if are_sent else None)
    try:
        with changed_settings({"flows": {"heartbeat_frequency": None}}):
            yield
    finally:
        _seconds.reset(token)


@contextmanager
def alive() -> Generator[None]:
    """Within this context, the present flow run sends its heartbeats, the first at once. Prefect sends them outside of
    ``own_heartbeats``, and this does nothing."""
    every, run_id = _seconds.get(), flow_run.get_id()
    if every is None or run_id is None:
        yield
        return
    resource = {
        "prefect.resource.id": f"prefect.flow-run.{run_id}",
        "prefect.resource.name": flow_run.get_name() or "",
        "prefect.version": prefect.__version__,
    }

    def beat(stop: threading.Event) -> None:
        while not stop.wait(every):
            emit_event(EVENT, resource)

    emit_event(EVENT, resource)
    # With the flow's context, from which Prefect takes the server and what the event is related to; and waited for,
    # because after a heartbeat that follows the end of its run, an automation would take the run for killed.
    with beside(beat):
        yield
