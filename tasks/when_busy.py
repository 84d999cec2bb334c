"""One run a pipeline: what a run does that finds another one at work, by the policy it was started with."""

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
"""What the terminal calls the stage."""
SKIPPED = "Skipped"
WAITING = "Waiting"
"""Names of states: of one that let another run be, and of one that waits its turn."""

# Each look asks for the lock for three seconds more, and holds no snapshot in between: an index build waits for those.
_LOOK_SECONDS = 5.0
_MINUTE = 60.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a run waits for another one, and what it does then."""

    when_busy: WhenBusy
    since: float
    until: float
    """On the monotonic clock; for ``wait``."""
    within: bool = False
    """Whether it is a run within another one, which cannot do without it."""

    def next_step(self, now: float) -> WhenBusy:
        """What to do now that another run is at work."""
        if self.when_busy == "skip":
            return "fail" if self.within else "skip"
        return "wait" if self.when_busy == "wait" and now < self.until else "fail"


_inherited: ContextVar[Patience | None] = ContextVar("patience", default=None)


def in_turn(pipeline: str, work: Callable[[], Any]) -> Any:
    """What ``work`` returns, once no other run of the pipeline is at work; a state where it is skipped.

    ``work`` is called again after each wait: it takes the pipeline's lock before it does anything. Raises
    ``PipelineBusy`` where the policy is to fail, or the time is over.
    """
    patience, rested = _patience(), False
    token = _inherited.set(replace(patience, within=True))
    try:
        while True:
            try:
                return work()
            except PipelineBusy as error:
                step = patience.next_step(time.monotonic())
                if step == "fail":
                    raise
                if step == "skip":
                    return Cancelled(
                        name=SKIPPED, message=f"skipped: another run of the pipeline {pipeline} is at work"
                    )
                if not rested:
                    _tell_waiting(str(error))
                    rested = True
            _show(patience)
            time.sleep(_LOOK_SECONDS)
    finally:
        _inherited.reset(token)


def _patience() -> Patience:
    """This run's, by its parameters; where it has none, a deployment's runs wait and those of a command do not."""
    inherited = _inherited.get()
    if inherited is not None:
        return inherited
    given: dict[str, Any] = flow_run.get_parameters()
    # Prefect asks its server for the deployment: not where the parameters say it.
    when_busy: WhenBusy = given.get("when_busy") or ("wait" if deployment.get_id() else "fail")
    minutes = float(given.get("wait_minutes", WAIT_MINUTES))
    now = time.monotonic()
    return Patience(when_busy=when_busy, since=now, until=now + minutes * _MINUTE)


def _show(patience: Patience) -> None:
    """For the terminal; who looks at the UI sees the run's state."""
    waited, total = time.monotonic() - patience.since, patience.until - patience.since
    tell(WAIT, "for another run, seconds", int(waited), int(total))


def _tell_waiting(why: str) -> None:
    logger.info("waiting: %s", why)
    run_id = flow_run.get_id()
    if run_id is None:
        return
    try:
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(run_id, Running(name=WAITING, message=why))
    except (httpx.HTTPError, PrefectException) as error:
        # A run does not fail because nobody can see that it waits.
        logger.warning("that this run waits is not shown: %s", error)
