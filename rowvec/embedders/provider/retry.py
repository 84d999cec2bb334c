"""How often a request is tried, how long is waited between, when patience ends: the same for each paid provider."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Literal

import tenacity

from rowvec.embedders.provider.response import WrongDimensions
from rowvec.embedders.rate_limit.limiter import Clock, Pace, Turn
from rowvec.errors import RateLimited, RetriableError, RowvecError

# A provider that wants more patience than this (a limit of the day) ends the run, which says when to come back.
LONGEST_REST = 900.0

# Vectors of a wrong length are paid for each time; a model that gives them goes on giving them.
_DIMENSION_ATTEMPTS = 3

_BACKOFF = tenacity.wait_exponential(multiplier=0.5, max=60) + tenacity.wait_random(0, 1)


@dataclass(slots=True)
class Patience:
    """Counts the tries of one request; a 429 while others get through is pacing at work and no failure."""

    max_attempts: int
    pace: Pace
    seen: int = 0
    forgiven: int = 0

    def is_over(self, state: tenacity.RetryCallState) -> bool:
        """Whether the last try was the last: tenacity's ``stop``."""
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, RateLimited):
            if (error.retry_after or 0) > LONGEST_REST:
                return True
            if self.pace.successes > self.seen:
                self.seen = self.pace.successes
                self.forgiven += 1
        tries = state.attempt_number - self.forgiven
        return tries >= (
            min(_DIMENSION_ATTEMPTS, self.max_attempts) if isinstance(error, WrongDimensions) else self.max_attempts
        )


def patient(max_attempts: int, pace: Pace, clock: Clock, stop: threading.Event) -> tenacity.Retrying:
    """What tries one request again until it succeeds or patience ends; then its error is raised."""
    return tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(RetriableError),
        stop=Patience(max_attempts, pace, seen=pace.successes).is_over,
        wait=wait,
        sleep=lambda seconds: clock.wait(seconds, stop),
        reraise=True,
    )


def wait(state: tenacity.RetryCallState) -> float:
    """Seconds until the next try, longer each time: tenacity's ``wait``.

    Where the provider named a time, or asks for a slower pace, all threads rest together: see ``Pace``.
    """
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, RateLimited) or (isinstance(error, RetriableError) and error.retry_after):
        return 0.0
    return _BACKOFF(state)


def heed(
    error: RowvecError,
    pace: Pace,
    turn: Turn,
    attempt: int,
    *,
    complaint: Literal["rate_limited", "slow_down"] = "rate_limited",
    limits: tuple[float | None, float | None] = (None, None),
) -> None:
    """Tell all threads of the wait that a refusal asks for; ``attempt`` counts from 1."""
    if not isinstance(error, RetriableError) or (error.retry_after or 0) > LONGEST_REST:
        return
    seconds = error.retry_after
    if isinstance(error, RateLimited):
        pace.complained(turn, complaint, min(60.0, 0.5 * 2**attempt) if seconds is None else seconds, limits)
    elif seconds:
        pace.pause(seconds)
