"""The retry policy of all paid providers: how often a request is tried, and how long to wait between the tries."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Literal

import tenacity

from rowvec.embedders.provider.response import WrongDimensions
from rowvec.embedders.rate_limit.limiter import LONGEST_REST, Clock, Pace, Turn
from rowvec.errors import RateLimited, RetriableError, RowvecError

# Vectors of a wrong length are billed each time, and a model that gives them once usually gives them again.
_DIMENSION_ATTEMPTS = 3

_BACKOFF = tenacity.wait_exponential(multiplier=0.5, max=60) + tenacity.wait_random(0, 1)


@dataclass(slots=True)
class RetryPolicy:
    """Counts the tries of one request. A 429 does not count as a try if other requests succeeded since the last one."""

    max_attempts: int
    pace: Pace
    successes_seen: int = 0
    """``pace.successes`` at the last 429 that was not counted, or at the start."""
    not_counted: int = 0
    """Tries that were not counted."""

    def should_stop(self, state: tenacity.RetryCallState) -> bool:
        """Whether to give up after the last try: tenacity's ``stop``."""
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, RateLimited):
            if (error.retry_after or 0) > LONGEST_REST:
                return True
            if self.pace.successes > self.successes_seen:
                self.successes_seen = self.pace.successes
                self.not_counted += 1
        tries = state.attempt_number - self.not_counted
        return tries >= (
            min(_DIMENSION_ATTEMPTS, self.max_attempts) if isinstance(error, WrongDimensions) else self.max_attempts
        )


def retrier(max_attempts: int, pace: Pace, clock: Clock, stop: threading.Event) -> tenacity.Retrying:
    """Retries one request until it succeeds or the retry policy gives up, then raises the last error."""
    return tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(RetriableError),
        stop=RetryPolicy(max_attempts, pace, successes_seen=pace.successes).should_stop,
        wait=wait,
        sleep=lambda seconds: clock.wait(seconds, stop),
        reraise=True,
    )


def wait(state: tenacity.RetryCallState) -> float:
    """Seconds until the next try, longer each time: tenacity's ``wait``.

    0 if the provider named a time or asks for a slower pace: then all threads rest together, see ``Pace``.
    """
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, RateLimited) or (isinstance(error, RetriableError) and error.retry_after):
        return 0.0
    return _BACKOFF(state)


def back_off(
    error: RowvecError,
    pace: Pace,
    turn: Turn,
    attempt: int,
    *,
    complaint: Literal["rate_limited", "slow_down"] = "rate_limited",
    limits: tuple[float | None, float | None] = (None, None),
) -> None:
    """Make all threads wait as a refusal asks for; ``attempt`` counts from 1."""
    if not isinstance(error, RetriableError) or (error.retry_after or 0) > LONGEST_REST:
        return
    seconds = error.retry_after
    if isinstance(error, RateLimited):
        pace.complained(turn, complaint, min(60.0, 0.5 * 2**attempt) if seconds is None else seconds, limits)
    elif seconds:
        pace.pause(seconds)
