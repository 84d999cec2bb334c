"""How often a stage is tried: the flow's tasks and the sync without an orchestrator follow the same waits."""

from __future__ import annotations

import logging

import tenacity

from rowvec.errors import RetriableError

# Seconds before each new attempt. The embedder and the blob client have already tried again before an error arrives
# here: these waits are for a database that restarts, or a provider that is down for a minute.
WAITS_SECONDS = (2.0, 8.0, 20.0, 60.0)
JITTER = 0.5
"""A wait is longer by up to this part of itself."""

logger = logging.getLogger(__name__)


def retrying() -> tenacity.Retrying:
    """Calls a stage, and calls it again after each ``RetriableError`` until the waits are used up; an ``Attempt``."""
    waits = [tenacity.wait_fixed(wait) + tenacity.wait_random(0, JITTER * wait) for wait in WAITS_SECONDS]
    return tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(RetriableError),
        wait=tenacity.wait_chain(*waits),
        stop=tenacity.stop_after_attempt(len(WAITS_SECONDS) + 1),
        before_sleep=_log,
        reraise=True,
    )


def _log(state: tenacity.RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    seconds = state.next_action.sleep if state.next_action else 0.0
    logger.warning("trying again in %.0f s: %s", seconds, error)
