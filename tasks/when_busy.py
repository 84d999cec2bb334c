"""One run per pipeline at a time: what a run does if another run of the same pipeline is at work."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, Literal

import httpx
from prefect import get_client
from prefect.exceptions import PrefectException
from prefect.runtime import deployment, flow_run
from prefect.states import Cancelled, Running

from rowvec.errors import PipelineBusy
from rowvec.runtime.progress import tell

WhenBusy = Literal["wait", "skip", "fail"]

WAIT_MINUTES = 60.0
WAIT = "wait"
"""The stage under which the terminal shows a run that waits."""
SKIPPED = "Skipped"
"""Name of the state of a run that did nothing because another run was at work."""
WAITING = "Waiting"
"""Name of the state of a run that waits until the other run has ended."""

# Each attempt watches the other run's lease for three more seconds. Between attempts the run has no connection.
_LOOK_SECONDS = 5.0
_MINUTE = 60.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class BusyPolicy:
    """What a run does while another run of its pipeline is at work, and for how long it waits."""

    when_busy: WhenBusy
    since: float
    """When this run began to wait, in seconds on the monotonic clock."""
    until: float
    """When it stops waiting, in seconds on the monotonic clock; only ``wait`` reads it."""
    nested: bool = False
    """Whether this run is a part of another run, which needs its result: it is never skipped."""

    def next_step(self, now: float) -> WhenBusy:
        """What to do at the time ``now``, if another run is at work."""
        if self.when_busy == "skip":
            return "fail" if self.nested else "skip"
        return "wait" if self.when_busy == "wait" and now < self.until else "fail"


_outer: ContextVar[BusyPolicy | None] = ContextVar("busy_policy", default=None)
"""The policy of the run that this run is a part of."""


def run_alone(
    pipeline: str, work: Callable[[], Any], when_busy: WhenBusy | None = None, wait_minutes: float = WAIT_MINUTES
) -> Any:
    """Call ``work``, and call it again while it raises ``PipelineBusy`` and the policy is to wait.

    ``work`` must take the pipeline's lease before it does anything else. Returns what ``work`` returns, or the state
    *Skipped* if the policy is ``skip``. A run within another run has the policy of the outer run, whatever is given
    here. With ``when_busy`` None, runs of a deployment wait and all other runs fail. Raises ``PipelineBusy`` if the
    policy is ``fail``, or if the other run is still at work after ``wait_minutes``.
    """
    policy, is_told = _outer.get() or _policy(when_busy, wait_minutes), False
    token = _outer.set(replace(policy, nested=True))
    try:
        while True:
            try:
                return work()
            except PipelineBusy as error:
                step = policy.next_step(time.monotonic())
                if step == "fail":
                    raise
                if step == "skip":
                    return Cancelled(
                        name=SKIPPED, message=f"skipped: another run of the pipeline {pipeline} is at work"
                    )
                if not is_told:
                    _set_state_waiting(str(error))
                    is_told = True
            _show_progress(policy)
            time.sleep(_LOOK_SECONDS)
    finally:
        _outer.reset(token)


def _policy(when_busy: WhenBusy | None, wait_minutes: float) -> BusyPolicy:
    # Prefect asks its server for the deployment, so the run does that only if it needs to know.
    chosen: WhenBusy = when_busy or ("wait" if deployment.get_id() else "fail")
    now = time.monotonic()
    return BusyPolicy(when_busy=chosen, since=now, until=now + wait_minutes * _MINUTE)


def _show_progress(policy: BusyPolicy) -> None:
    """Show on the terminal how long the run has waited; in the UI the run's state says that it waits."""
    waited, total = time.monotonic() - policy.since, policy.until - policy.since
    tell(WAIT, "for another run, seconds", int(waited), int(total))


def _set_state_waiting(reason: str) -> None:
    logger.info("waiting: %s", reason)
    run_id = flow_run.get_id()
    if run_id is None:
        return
    try:
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(run_id, Running(name=WAITING, message=reason))
    except (httpx.HTTPError, PrefectException) as error:
        # The run goes on: that its state is not shown is no reason to fail.
        logger.warning("the UI does not show that this run waits: %s", error)
