"""A run that a person cancels: its process is asked to end, and it ends as cancelled, in one sentence."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import copy_context
from typing import Any, TypeVar
from uuid import UUID

import httpx
from prefect import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId, FlowRunFilterParentFlowRunId
from prefect.client.schemas.objects import State, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import CancelledRun, PrefectException, TerminationSignal, UnfinishedRun
from prefect.runtime import flow_run

from rowvec.errors import RowvecError, RunCancelled

T = TypeVar("T")

ASK_SECONDS = 5.0
"""How often a watched sync asks whether a person has cancelled it; one that is over sooner never asks."""
TOO_LATE = "cancelled too late: the run had done its work"
SENTENCE = "cancelled: readers see nothing half done, what was paid for is kept, and the next run goes on from there"


class _Cancelled(RunCancelled, TerminationSignal):
    """What Prefect raises for SIGTERM, so that it ends the run; and what the ledger records as cancelled."""

    def __init__(self) -> None:
        TerminationSignal.__init__(self, signal.SIGTERM)
        self.args = (SENTENCE,)


@contextmanager
def cancellable() -> Generator[None]:
    """Within this context, the signal that ends a run which a person has cancelled is raised as ``RunCancelled``."""
    try:
        yield
    except RunCancelled:
        raise
    except TerminationSignal:
        if is_being_cancelled():
            raise _Cancelled from None
        raise


_known = threading.Event()


def is_being_cancelled() -> bool:
    """Whether a person has asked to cancel the run of this process; False if that cannot be found out."""
    run_id = os.environ.get("PREFECT__FLOW_RUN_ID")
    if run_id is None or _known.is_set():
        return _known.is_set()
    try:
        with get_client(sync_client=True) as client:
            state = client.read_flow_run(UUID(run_id)).state
    except (httpx.HTTPError, PrefectException):
        return False
    if state is not None and (state.is_cancelling() or state.is_cancelled()):
        _known.set()
    return _known.is_set()


def is_known_to_be_cancelled() -> bool:
    """Whether ``is_being_cancelled`` has been true in this process; this asks no server."""
    return _known.is_set()


class SyncCancelled(RunCancelled):
    """A person has cancelled a sync of a watcher. It has no process of its own that could be ended, and ends itself."""


@contextmanager
def asking() -> Generator[Callable[[], None]]:
    """Within this context, the callable raises ``SyncCancelled`` once a person has cancelled its caller's flow run.

    Nobody sends a signal then: the process belongs to the watcher, which goes on.
    """
    run_id, cancelled, over = flow_run.get_id(), threading.Event(), threading.Event()

    def check() -> None:
        if cancelled.is_set():
            raise SyncCancelled(SENTENCE)

    if run_id is not None:
        context = copy_context()
        asks = (UUID(run_id), cancelled, over)
        threading.Thread(target=lambda: context.run(_ask, *asks), name="rowvec cancelled", daemon=True).start()
    try:
        yield check
    finally:
        over.set()


def _ask(run_id: UUID, cancelled: threading.Event, over: threading.Event) -> None:
    """Set ``cancelled`` once the server says so; ends with ``over``."""
    while not over.wait(ASK_SECONDS):
        try:
            with get_client(sync_client=True) as client:
                state = client.read_flow_run(run_id).state
        except (httpx.HTTPError, PrefectException):
            continue
        if state is not None and (state.is_cancelling() or state.is_cancelled()):
            cancelled.set()
            return


def unless_cancelled(sync: Callable[[], T]) -> T:
    """What a watcher's sync returns. Raises ``RowvecError`` if a person has cancelled it."""
    try:
        return sync()
    except (CancelledRun, UnfinishedRun) as error:
        # Unfinished: when it had done its work, its state was Cancelling, which Prefect does not replace by Completed.
        raise RowvecError(SENTENCE) from error


_ENDED = frozenset({StateType.COMPLETED, StateType.FAILED, StateType.CANCELLED})


def end_parts(flow_run_id: UUID, ending: State[Any], *, cancelled: bool) -> None:
    """Set what was at work in a run that was ended from outside to the state ``ending``, because it had no time to say
    how it ended, or was interrupted: the newest run below it and, of a run that a person has cancelled, its tasks."""
    ended = _ENDED if cancelled else _ENDED | {StateType.CRASHED}
    with get_client(sync_client=True) as client:
        below = FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[flow_run_id]))
        for child in client.read_flow_runs(flow_run_filter=below, sort=FlowRunSort.START_TIME_DESC, limit=1):
            if child.state_type not in ended:
                client.set_flow_run_state(child.id, ending, force=True)
        of_run = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id]))
        for task in client.read_task_runs(flow_run_filter=of_run, limit=200) if cancelled else ():
            if task.state_type not in ended:
                client.set_task_run_state(task.id, ending, force=True)
