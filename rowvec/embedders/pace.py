"""When the next request may be sent: smooth within the account's limits, and at rest when the provider asks for it."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, replace
from functools import cache
from typing import Protocol

# Clocks and networks jitter: asking for the very last per cent of a limit is answered with 429s.
HEADROOM = 0.97

# How the rate recovers after it was lowered: about 1 % a success.
_RECOVERY = 0.99
_FIRST_GAP = 0.001
_LONGEST_GAP = {"rate_limited": 1.0, "slow_down": 20.0}
_FACTOR = {"rate_limited": 1.25, "slow_down": 2.0}


class Stopped(Exception):
    """The work was ended, by another request's failure or by the reader, while this one waited for its turn."""


class Clock(Protocol):
    """Time, so that a test can let a long wait pass at once."""

    def now(self) -> float:
        """Seconds that never go back."""
        ...

    def wait(self, seconds: float, stop: threading.Event) -> None:
        """Return after so many seconds, or as soon as ``stop`` is set."""
        ...


class SystemClock:
    """The time that passes for everybody."""

    def now(self) -> float:
        """Seconds of the monotonic clock."""
        return time.monotonic()

    def wait(self, seconds: float, stop: threading.Event) -> None:
        """Sleep."""
        stop.wait(seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """The rate at which requests may leave, and when the next one may."""

    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    gap: float = 0.0
    """Seconds between two requests, raised when the provider complains and lowered with each success."""
    next_at: float = 0.0

    def reserve(self, now: float, tokens: int) -> tuple[float, Schedule]:
        """When a request of so many tokens may leave, and the schedule for those after it.

        Spacing every request by what it costs is a token bucket without a burst: providers divide their minute into
        seconds, so a burst at the start of a minute is refused even where the minute would allow it.
        """
        at = max(now, self.next_at)
        spacing = self.gap
        if self.requests_per_minute:
            spacing = max(spacing, 60 / (self.requests_per_minute * HEADROOM))
        if self.tokens_per_minute:
            spacing = max(spacing, 60 * tokens / (self.tokens_per_minute * HEADROOM))
        return at, replace(self, next_at=at + spacing)

    def slower(self, complaint: str, recent_gap: float) -> Schedule:
        """After a complaint of the provider, given the seconds between requests that led to it."""
        gap = _FACTOR[complaint] * max(self.gap, recent_gap, _FIRST_GAP)
        return replace(self, gap=max(self.gap, min(gap, _LONGEST_GAP[complaint])))

    def faster(self) -> Schedule:
        """After a success."""
        gap = self.gap * _RECOVERY
        return replace(self, gap=gap if gap > _FIRST_GAP / 2 else 0.0)

    def learned(self, requests_per_minute: float | None, tokens_per_minute: float | None) -> Schedule:
        """With the limits the provider named, where the pipeline names none."""
        return replace(
            self,
            requests_per_minute=self.requests_per_minute or requests_per_minute,
            tokens_per_minute=self.tokens_per_minute or tokens_per_minute,
        )


@dataclass(frozen=True, slots=True)
class Turn:
    """Leave to send one request, given in the time between two complaints."""

    epoch: int


class Pace:
    """One account's schedule, shared by all threads that send to it."""

    def __init__(self, schedule: Schedule, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._schedule = schedule
        self._resumed_at = self._resting_until = clock.now()
        self._sent = 0
        self._epoch = 0
        self._successes = 0

    @property
    def successes(self) -> int:
        """Requests answered so far, whoever sent them."""
        return self._successes

    @property
    def gap(self) -> float:
        """Seconds between requests that complaints have led to; 0 when all is well."""
        return self._schedule.gap

    def wait_turn(self, tokens: int, stop: threading.Event) -> Turn:
        """Block until a request of so many tokens may be sent. Raises ``Stopped`` where ``stop`` is set first."""
        while True:
            with self._lock:
                at, self._schedule = self._schedule.reserve(self._clock.now(), tokens)
                epoch = self._epoch
            while (remaining := at - self._clock.now()) > 0 and not stop.is_set():
                self._clock.wait(remaining, stop)
            if stop.is_set():
                raise Stopped
            with self._lock:
                if epoch == self._epoch:
                    self._sent += 1
                    return Turn(epoch)
            # Somebody was told to wait while we slept: our place in the old schedule is worth nothing.

    def succeeded(self) -> None:
        """A request was answered."""
        with self._lock:
            self._successes += 1
            self._schedule = self._schedule.faster()

    def complained(
        self, turn: Turn, complaint: str, seconds: float, limits: tuple[float | None, float | None] = (None, None)
    ) -> None:
        """The provider answered ``rate_limited`` or ``slow_down``: everybody rests so many seconds, then is slower.

        Requests that left before the same rest count as one complaint.
        """
        with self._lock:
            now = self._clock.now()
            self._schedule = self._schedule.learned(*limits)
            if turn.epoch == self._epoch:
                recent_gap = (now - self._resumed_at) / self._sent if self._sent else 0.0
                self._schedule = self._schedule.slower(complaint, recent_gap)
            self._rest(now + seconds)

    def pause(self, seconds: float) -> None:
        """Nobody sends for so many seconds."""
        with self._lock:
            self._rest(self._clock.now() + seconds)

    def _rest(self, until: float) -> None:
        self._epoch += 1
        # A short rest asked for during a long one does not shorten it.
        self._resting_until = max(self._resting_until, until)
        self._schedule = replace(self._schedule, next_at=self._resting_until)
        self._resumed_at, self._sent = self._resting_until, 0


@cache
def pace_of(address: str, model: str, requests_per_minute: float | None, tokens_per_minute: float | None) -> Pace:
    """The pace of an account in this process: embedders of one account share its limits, whichever task opened them."""
    del address, model  # they only tell accounts apart
    schedule = Schedule(requests_per_minute=requests_per_minute, tokens_per_minute=tokens_per_minute)
    return Pace(schedule, SystemClock())
