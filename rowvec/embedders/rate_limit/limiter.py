"""The rate limiter: spaces requests evenly within an account's limits, and pauses when the provider asks for it."""

from __future__ import annotations

import math
import threading
import time
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Protocol, runtime_checkable

# Clocks and networks jitter: using the last per cent of a limit leads to answers with status 429.
HEADROOM = 0.97
LONGEST_REST = 900.0
"""If a provider asks for a longer rest than this (a daily limit), the run ends and says when to try again."""

# The rate recovers by about 1 % with each success after it was lowered.
_RECOVERY = 0.99
_FIRST_GAP = 0.001
_LONGEST_GAP = {"rate_limited": 1.0, "slow_down": 20.0}
_FACTOR = {"rate_limited": 1.25, "slow_down": 2.0}

# How often a waiting thread checks whether this process's share of the limits has changed.
_CHECK_SECONDS = 0.25
# Waiting threads are scheduled again only if the share grew by more than this factor.
_WORTH_RESCHEDULING = 1.1


class Stopped(Exception):
    """The work ended while this request waited for its turn: another request failed, or the reader stopped."""


class Clock(Protocol):
    """The source of time, so that a test can skip a long wait."""

    def now(self) -> float:
        """Seconds of a clock that never goes backwards."""
        ...

    def wait(self, seconds: float, stop: threading.Event) -> None:
        """Return after this many seconds, or as soon as ``stop`` is set."""
        ...


class SystemClock:
    """The real time."""

    def now(self) -> float:
        """Seconds of the monotonic clock."""
        return time.monotonic()

    def wait(self, seconds: float, stop: threading.Event) -> None:
        """Sleep until then, or until ``stop`` is set."""
        stop.wait(seconds)


class LimitSharing(Protocol):
    """Divides an account's limits among the processes that use it."""

    def before_request(self) -> None:
        """A thread is about to wait for its turn. Called before each request, so it must be quick in the usual case."""
        ...

    def provider_asked_to_rest(self, seconds: float) -> None:
        """The provider asked this process to send nothing for this long; tell the other processes."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """How much of an account's limits this process used since the last look."""

    spent: float
    """Seconds of the whole account's limit that the sent requests took."""
    throttled: bool
    """Whether at every moment a request waited for its turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """The rate at which requests may be sent, and when the next one may be."""

    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    gap: float = 0.0
    """Least seconds between two requests; raised when the provider refuses with 429, lowered by each success."""
    next_at: float = 0.0
    share: float = 1.0
    """The part of the limits, 0 to 1, that this process may use; other processes use the rest."""

    @property
    def limited(self) -> bool:
        """Whether any limit is known."""
        return bool(self.requests_per_minute or self.tokens_per_minute)

    def cost(self, tokens: int) -> float:
        """Seconds of the whole limit that a request of this many tokens takes."""
        requests = 60 / (self.requests_per_minute * HEADROOM) if self.requests_per_minute else 0.0
        return max(requests, 60 * tokens / (self.tokens_per_minute * HEADROOM) if self.tokens_per_minute else 0.0)

    def reserve(self, now: float, tokens: int) -> tuple[float, Schedule]:
        """When a request of this many tokens may be sent, and the schedule after it; infinity if the share is 0.

        Spacing every request by its cost is a token bucket without a burst. Providers divide their minute into
        seconds, so a burst at the start of a minute is refused even if the minute's limit would allow it.
        """
        if not self.share:
            return math.inf, self
        at = max(now, self.next_at)
        return at, replace(self, next_at=at + max(self.gap, self.cost(tokens) / self.share))

    def slower(self, complaint: str, recent_gap: float) -> Schedule:
        """The schedule after a complaint; ``recent_gap`` is the seconds between the requests that led to it."""
        gap = _FACTOR[complaint] * max(self.gap, recent_gap, _FIRST_GAP)
        return replace(self, gap=max(self.gap, min(gap, _LONGEST_GAP[complaint])))

    def faster(self) -> Schedule:
        """The schedule after a success."""
        gap = self.gap * _RECOVERY
        return replace(self, gap=gap if gap > _FIRST_GAP / 2 else 0.0)

    def learned(self, requests_per_minute: float | None, tokens_per_minute: float | None) -> Schedule:
        """The schedule with the limits that the provider named, for those that the pipeline does not name."""
        return replace(
            self,
            requests_per_minute=self.requests_per_minute or requests_per_minute,
            tokens_per_minute=self.tokens_per_minute or tokens_per_minute,
        )


@dataclass(frozen=True, slots=True)
class Turn:
    """Permission to send one request; ``epoch`` counts the rests before it."""

    epoch: int


class Pace:
    """One account's rate limiter, shared by all threads that send to it.

    Other processes use a part of the same limits if a ``LimitSharing`` says so.
    """

    def __init__(self, schedule: Schedule, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._schedule = schedule
        self._resumed_at = self._resting_until = self._paid_until = clock.now()
        self._sent = 0
        self._epoch = 0
        self._division = 0
        self._successes = 0
        self._shares: dict[LimitSharing, float] = {}
        self._waiting = 0
        self._spent = self._owed = 0.0
        self._never_idle = False

    @property
    def successes(self) -> int:
        """Requests of all threads that were answered so far."""
        return self._successes

    @property
    def gap(self) -> float:
        """Least seconds between requests after complaints; 0 if the provider has none."""
        return self._schedule.gap

    @property
    def limited(self) -> bool:
        """Whether a limit is known, from the pipeline or from the provider. Without one there is nothing to divide."""
        return self._schedule.limited

    @property
    def share(self) -> float:
        """The part of the account's limits, 0 to 1, that this process may use now."""
        return self._schedule.share

    def wait_turn(self, tokens: int, stop: threading.Event) -> Turn:
        """Block until a request of this many tokens may be sent. Raises ``Stopped`` if ``stop`` is set first."""
        for sharing in tuple(self._shares):
            sharing.before_request()
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
                # Infinite only if the share was 0, and the share may have changed since: check again soon.
                check_soon = bool(self._shares) or math.isinf(remaining)
                self._clock.wait(min(remaining, _CHECK_SECONDS) if check_soon else remaining, stop)
            if stop.is_set():
                raise Stopped
            with self._lock:
                if (epoch, division) == (self._epoch, self._division):
                    self._sent += 1
                    self._spent += self._schedule.cost(tokens)
                    self._paid_until = max(self._paid_until, until)
                    return Turn(epoch)
            # A rest or a new share came while this thread slept, so its place in the old schedule is void.

    def divide(self, sharing: LimitSharing, share: float | None) -> None:
        """Use at most this share of the limits from now on; None removes the restriction by ``sharing``.

        If several restrict it, the smallest share counts. Requests that were sent before are charged at the new share
        too.
        """
        with self._lock:
            if share is None:
                self._shares.pop(sharing, None)
            else:
                self._shares[sharing] = share
            before, now = self._schedule.share, self._clock.now()
            share = min(self._shares.values(), default=1.0)
            self._schedule = replace(self._schedule, share=share)
            if share < before or share > before * _WORTH_RESCHEDULING:
                # Places in the schedule were computed with the old share: each waiting thread takes a new one.
                # ``owed``: seconds of the whole limit that sent requests still take; while the share is 0, none pass.
                owed = max(0.0, self._paid_until - now) * before if before else self._owed
                self._owed, self._paid_until = owed, now + (owed / share if share else 0.0)
                self._schedule = replace(self._schedule, next_at=max(self._resting_until, self._paid_until))
                self._division += 1

    def take_usage(self) -> Usage:
        """How much of the limits was used since the last call."""
        with self._lock:
            usage = Usage(spent=self._spent, throttled=self._never_idle and self._waiting > 0)
            self._spent, self._never_idle = 0.0, self._waiting > 0
            return usage

    def succeeded(self) -> None:
        """Count a request that was answered, and lower the gap."""
        with self._lock:
            self._successes += 1
            self._schedule = self._schedule.faster()

    def complained(
        self, turn: Turn, complaint: str, seconds: float, limits: tuple[float | None, float | None] = (None, None)
    ) -> None:
        """The provider answered ``rate_limited`` or ``slow_down``: all threads rest, then send at a lower rate.

        Several complaints about requests that were sent before the same rest count as one. ``limits`` are requests and
        tokens per minute, as the provider named them.
        """
        with self._lock:
            now = self._clock.now()
            self._schedule = self._schedule.learned(*limits)
            if turn.epoch == self._epoch:
                recent_gap = (now - self._resumed_at) / self._sent if self._sent else 0.0
                self._schedule = self._schedule.slower(complaint, recent_gap)
            self._rest(now + seconds)
        for sharing in tuple(self._shares):
            sharing.provider_asked_to_rest(seconds)

    def pause(self, seconds: float) -> None:
        """No thread sends anything for this many seconds."""
        with self._lock:
            self._rest(self._clock.now() + seconds)

    def rest_with_others(self, seconds: float) -> None:
        """Like ``pause``, for a rest that the provider asked another process for; may be called repeatedly for one."""
        with self._lock:
            until = self._clock.now() + seconds
            if seconds and until > self._resting_until + _CHECK_SECONDS:
                self._rest(until)

    def _rest(self, until: float) -> None:
        self._epoch += 1
        # A short rest during a long one does not shorten it.
        self._resting_until = max(self._resting_until, until)
        self._schedule = replace(self._schedule, next_at=self._resting_until)
        self._resumed_at, self._sent = self._resting_until, 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimitAccount:
    """What a provider counts its rate limits by: the server, the model and the key."""

    address: str = field(repr=False)
    """With user and password, if the pipeline's address has them."""
    model: str
    secret: str = field(repr=False)
    """The key, or the word that stands for one. It is never stored."""

    def digest(self) -> bytes:
        """32 bytes that identify the account on every machine, and from which the key cannot be recovered."""
        return sha256("\0".join((self.address.rstrip("/"), self.model, self.secret)).encode()).digest()


_paces: dict[tuple[bytes, float | None, float | None], Pace] = {}
_making = threading.Lock()


def pace_of(account: RateLimitAccount, requests_per_minute: float | None, tokens_per_minute: float | None) -> Pace:
    """The account's pace in this process: all embedders of one account share its limits, whichever task opened them."""
    # The account's digest is the key, so that no secret is held here.
    key = (account.digest(), requests_per_minute, tokens_per_minute)
    with _making:
        if key not in _paces:
            schedule = Schedule(requests_per_minute=requests_per_minute, tokens_per_minute=tokens_per_minute)
            _paces[key] = Pace(schedule, SystemClock())
        return _paces[key]


@runtime_checkable
class Paced(Protocol):
    """An embedder that keeps within the rate limits of an account."""

    @property
    def account(self) -> RateLimitAccount:
        """The account whose limits apply."""
        ...

    @property
    def pace(self) -> Pace:
        """The rate limiter that its requests wait for."""
        ...
