"""When the next request may be sent: smooth within the account's limits, and at rest when the provider asks for it."""

from __future__ import annotations

import math
import threading
import time
from dataclasses import dataclass, field, replace
from functools import cache
from hashlib import sha256
from typing import Protocol, runtime_checkable

# Clocks and networks jitter: asking for the very last per cent of a limit is answered with 429s.
HEADROOM = 0.97

# How the rate recovers after it was lowered: about 1 % a success.
_RECOVERY = 0.99
_FIRST_GAP = 0.001
_LONGEST_GAP = {"rate_limited": 1.0, "slow_down": 20.0}
_FACTOR = {"rate_limited": 1.25, "slow_down": 2.0}

# How soon a thread that waits for its turn notices that the account's division among processes has changed.
_GLANCE_SECONDS = 0.25
# A share that grew by less is not worth giving up the places in the schedule for.
_WORTH_WAKING = 1.1


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


class Sharing(Protocol):
    """Somebody who divides an account's limits among the processes that use it."""

    def asked(self) -> None:
        """A thread is about to wait for its turn: called before each request, so it is quick when all is known."""
        ...

    def rested(self, seconds: float) -> None:
        """The provider asked this process to rest so long; others are to be told."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """What was made of an account since it was last asked about."""

    spent: float
    """Seconds of the whole account's limit that the requests took which left."""
    throttled: bool
    """Whether there was always a request that waited for its turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """The rate at which requests may leave, and when the next one may."""

    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    gap: float = 0.0
    """Seconds between two requests, raised when the provider complains and lowered with each success."""
    next_at: float = 0.0
    share: float = 1.0
    """Of the limits, what this process may use; others use the rest."""

    @property
    def limited(self) -> bool:
        """Whether there is a limit that is known."""
        return bool(self.requests_per_minute or self.tokens_per_minute)

    def cost(self, tokens: int) -> float:
        """Seconds of the whole limit that a request of so many tokens takes."""
        requests = 60 / (self.requests_per_minute * HEADROOM) if self.requests_per_minute else 0.0
        return max(requests, 60 * tokens / (self.tokens_per_minute * HEADROOM) if self.tokens_per_minute else 0.0)

    def reserve(self, now: float, tokens: int) -> tuple[float, Schedule]:
        """When a request of so many tokens may leave, and the schedule for those after it; never, without a share.

        Spacing every request by what it costs is a token bucket without a burst: providers divide their minute into
        seconds, so a burst at the start of a minute is refused even where the minute would allow it.
        """
        if not self.share:
            return math.inf, self
        at = max(now, self.next_at)
        return at, replace(self, next_at=at + max(self.gap, self.cost(tokens) / self.share))

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
    """One account's schedule, shared by all threads that send to it, and divided with other processes where a
    ``Sharing`` says so."""

    def __init__(self, schedule: Schedule, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._schedule = schedule
        self._resumed_at = self._resting_until = self._paid_until = clock.now()
        self._sent = 0
        self._epoch = 0
        self._division = 0
        self._successes = 0
        self._shares: dict[Sharing, float] = {}
        self._waiting = 0
        self._spent = self._owed = 0.0
        self._never_idle = False

    @property
    def successes(self) -> int:
        """Requests answered so far, whoever sent them."""
        return self._successes

    @property
    def gap(self) -> float:
        """Seconds between requests that complaints have led to; 0 when all is well."""
        return self._schedule.gap

    @property
    def limited(self) -> bool:
        """Whether a limit is known, from the pipeline or from the provider: without one there is nothing to divide."""
        return self._schedule.limited

    @property
    def share(self) -> float:
        """Of the account's limits, what this process may use now."""
        return self._schedule.share

    def wait_turn(self, tokens: int, stop: threading.Event) -> Turn:
        """Block until a request of so many tokens may be sent. Raises ``Stopped`` where ``stop`` is set first."""
        for sharing in tuple(self._shares):
            sharing.asked()
        with self._lock:
            self._waiting += 1
        try:
            return self._turn(tokens, stop)
        finally:
            with self._lock:
                self._waiting -= 1
                self._never_idle &= self._waiting > 0

    def _turn(self, tokens: int, stop: threading.Event) -> Turn:
        while True:
            with self._lock:
                at, self._schedule = self._schedule.reserve(self._clock.now(), tokens)
                epoch, division, until = self._epoch, self._division, self._schedule.next_at
            while (remaining := at - self._clock.now()) > 0 and not stop.is_set() and division == self._division:
                # Endless only without a share, which may be another one by now: no clock waits so long.
                glance = bool(self._shares) or math.isinf(remaining)
                self._clock.wait(min(remaining, _GLANCE_SECONDS) if glance else remaining, stop)
            if stop.is_set():
                raise Stopped
            with self._lock:
                if (epoch, division) == (self._epoch, self._division):
                    self._sent += 1
                    self._spent += self._schedule.cost(tokens)
                    self._paid_until = max(self._paid_until, until)
                    return Turn(epoch)
            # Somebody was told to wait while we slept: our place in the old schedule is worth nothing.

    def divide(self, sharing: Sharing, share: float | None) -> None:
        """From now on no more than this share of the limits is used; None: ``sharing`` has no say any more.

        Where two have a say, the smaller share holds. What has left is reckoned by the new share too.
        """
        with self._lock:
            if share is None:
                self._shares.pop(sharing, None)
            else:
                self._shares[sharing] = share
            before, now = self._schedule.share, self._clock.now()
            share = min(self._shares.values(), default=1.0)
            self._schedule = replace(self._schedule, share=share)
            if share < before or share > before * _WORTH_WAKING:
                # Places in the schedule were given by the old share: whoever waits for his asks for another.
                # Seconds of the whole limit that what has left is still to be followed by; without a share none pass.
                owed = max(0.0, self._paid_until - now) * before if before else self._owed
                self._owed, self._paid_until = owed, now + (owed / share if share else 0.0)
                self._schedule = replace(self._schedule, next_at=max(self._resting_until, self._paid_until))
                self._division += 1

    def use(self) -> Use:
        """What was made of the account since the last call."""
        with self._lock:
            use = Use(spent=self._spent, throttled=self._never_idle and self._waiting > 0)
            self._spent, self._never_idle = 0.0, self._waiting > 0
            return use

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
        for sharing in tuple(self._shares):
            sharing.rested(seconds)

    def pause(self, seconds: float) -> None:
        """Nobody sends for so many seconds."""
        with self._lock:
            self._rest(self._clock.now() + seconds)

    def rest_with_others(self, seconds: float) -> None:
        """As ``pause``, of a rest that another process was asked for, and may tell of more than once."""
        with self._lock:
            until = self._clock.now() + seconds
            if seconds and until > self._resting_until + _GLANCE_SECONDS:
                self._rest(until)

    def _rest(self, until: float) -> None:
        self._epoch += 1
        # A short rest asked for during a long one does not shorten it.
        self._resting_until = max(self._resting_until, until)
        self._schedule = replace(self._schedule, next_at=self._resting_until)
        self._resumed_at, self._sent = self._resting_until, 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """Whose limits they are: a provider keeps them by key and model."""

    address: str = field(repr=False)
    """With a user and a password, where the pipeline has them there."""
    model: str
    secret: str = field(repr=False)
    """The key, or the word that stands for one. It is never written down."""

    def digest(self) -> bytes:
        """32 bytes that tell accounts apart, wherever they are asked from, and from which no key can be read."""
        return sha256("\0".join((self.address.rstrip("/"), self.model, self.secret)).encode()).digest()


@cache
def pace_of(account: Account, requests_per_minute: float | None, tokens_per_minute: float | None) -> Pace:
    """The pace of an account in this process: embedders of one account share its limits, whichever task opened them."""
    del account  # it only tells paces apart
    schedule = Schedule(requests_per_minute=requests_per_minute, tokens_per_minute=tokens_per_minute)
    return Pace(schedule, SystemClock())


@runtime_checkable
class Paced(Protocol):
    """An embedder that keeps to the limits of an account."""

    @property
    def account(self) -> Account:
        """Whose limits."""
        ...

    @property
    def pace(self) -> Pace:
        """What its requests wait for."""
        ...
