"""The rate limiter is as fast as the provider allows and almost never faster, in simulations of several hours."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rowvec.embedders.provider.refusal import retry_after
from rowvec.embedders.rate_limit import limiter
from rowvec.embedders.rate_limit.limiter import Pace, RateLimitAccount, Schedule, Stopped, pace_of
from tests.support.examples import examples
from tests.support.fake_clock import JumpingClock


class Bucket:
    """A provider's limit per minute, in simulated time; a burst of one second's worth is allowed."""

    def __init__(self, per_minute: float, capacity: float) -> None:
        self.per_minute, self.capacity, self.level, self.at = per_minute, capacity, capacity, 1000.0

    def refuses(self, now: float, amount: float) -> float:
        self.level = min(self.capacity, self.level + (now - self.at) * self.per_minute / 60)
        self.at = now
        if self.level + 1e-6 < amount:
            return (amount - self.level) * 60 / self.per_minute
        self.level -= amount
        return 0.0


@settings(deadline=None)
@given(st.integers(3, 30_000))
def test_a_known_request_limit_is_used_and_never_exceeded(per_minute: int) -> None:
    clock, bucket = JumpingClock(1000.0), Bucket(per_minute, max(1.0, per_minute / 60))
    pace = Pace(Schedule(requests_per_minute=per_minute), clock)
    for _ in range(200):
        pace.wait_turn(1, threading.Event())
        assert not bucket.refuses(clock.time, 1)
        pace.succeeded()
    assert 199 / (clock.time - 1000) * 60 >= 0.9 * per_minute


@settings(max_examples=examples(40))
@given(st.integers(10_000, 10_000_000), st.lists(st.floats(0.01, 1.0), min_size=50, max_size=200))
def test_a_known_token_limit_is_used_and_never_exceeded(per_minute: int, shares: list[float]) -> None:
    largest = per_minute / 4
    clock, bucket = JumpingClock(1000.0), Bucket(per_minute, largest)
    pace = Pace(Schedule(tokens_per_minute=per_minute), clock)
    sent = 0.0
    for share in shares:
        pace.wait_turn(int(largest * share), threading.Event())
        assert not bucket.refuses(clock.time, int(largest * share))
        pace.succeeded()
        sent += int(largest * share)
    last = int(largest * shares[-1])
    assert sent - last >= 0.9 * per_minute * (clock.time - 1000) / 60 - 1


@settings(max_examples=examples(25))
@given(st.integers(300, 6000))
def test_an_unknown_limit_is_found(per_minute: int) -> None:
    clock, bucket = JumpingClock(1000.0), Bucket(per_minute, per_minute / 60)
    pace = Pace(Schedule(), clock)
    sent = refused = 0
    while sent < 2000:
        turn = pace.wait_turn(1, threading.Event())
        clock.time += 0.001
        wait = bucket.refuses(clock.time, 1)
        if wait:
            refused += 1
            pace.complained(turn, "rate_limited", wait)
        else:
            sent += 1
            pace.succeeded()
    assert refused <= 0.1 * sent
    assert sent / (clock.time - 1000) * 60 >= 0.7 * per_minute


def test_limits_named_by_the_provider_are_adopted() -> None:
    clock = JumpingClock(1000.0)
    pace = Pace(Schedule(), clock)
    pace.complained(pace.wait_turn(1, threading.Event()), "rate_limited", 0.0, (60.0, None))
    for _ in range(10):
        pace.wait_turn(1, threading.Event())
    assert clock.time - 1000 >= 9


def test_a_complaint_pauses_all_threads_and_a_shorter_one_does_not_shorten_it() -> None:
    clock = JumpingClock(1000.0)
    pace = Pace(Schedule(), clock)
    first, second = (pace.wait_turn(1, threading.Event()) for _ in range(2))
    pace.complained(first, "rate_limited", 300.0)
    gap = pace.gap
    pace.complained(second, "rate_limited", 1.0)
    assert pace.gap == gap, "requests of one burst are one complaint"
    pace.wait_turn(1, threading.Event())
    assert clock.time == pytest.approx(1300.0)


def test_slow_down_lowers_the_rate_and_successes_raise_it_again() -> None:
    clock = JumpingClock(1000.0)
    pace = Pace(Schedule(), clock)
    turns = [pace.wait_turn(1, threading.Event()) for _ in range(10)]
    clock.time += 1.0
    pace.complained(turns[-1], "slow_down", 0.0)
    assert pace.gap == pytest.approx(0.2)
    slowed = pace.gap
    for _ in range(70):
        pace.succeeded()
    assert 0 < pace.gap < slowed / 2 + 0.01
    for _ in range(700):
        pace.succeeded()
    assert pace.gap == 0


def test_a_pause_also_delays_threads_that_wait_already() -> None:
    clock = JumpingClock(1000.0)
    pace = Pace(Schedule(requests_per_minute=60), clock)
    pace.wait_turn(1, threading.Event())
    jump = clock.wait

    def pause_meanwhile(seconds: float, stop: threading.Event) -> None:
        jump(seconds, stop)
        if len(clock.waits) == 1:
            pace.pause(50.0)

    clock.wait = pause_meanwhile
    pace.wait_turn(1, threading.Event())
    assert clock.time >= 1050


def test_stop_wakes_a_waiting_thread() -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(Stopped):
        Pace(Schedule(), JumpingClock(1000.0)).wait_turn(1, stop)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "150"}, 150.0),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after": "150", "retry-after-ms": "20"}, 0.02),
        ({"retry-after": "150", "retry-after-ms": "soon"}, 150.0),
        ({"retry-after": "-1"}, 0.0),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "later"}, None),
        ({"retry-after": "Thu, 01 Jan 1970 00:16:50 GMT"}, 10.0),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}, 0.0),
        # The clock of this machine is an hour ahead of the provider's.
        ({"retry-after": "Thu, 01 Jan 1970 00:16:50 GMT", "date": "Thu, 01 Jan 1970 00:16:30 GMT"}, 20.0),
    ],
)
def test_retry_after(headers: Mapping[str, str], seconds: float | None) -> None:
    assert retry_after(headers, now=1000.0) == seconds


def test_embedders_of_one_account_share_a_pace_that_is_found_without_the_secret() -> None:
    account = RateLimitAccount(address="https://host/v1", model="m", secret="sk-word")  # noqa: S106 # not one
    other = RateLimitAccount(address="https://host/v1", model="m", secret="sk-other")  # noqa: S106 # not one
    pace = pace_of(account, 60, None)
    assert pace_of(replace(account), 60, None) is pace
    assert pace_of(other, 60, None) is not pace
    assert pace_of(account, 120, None) is not pace
    assert "sk-word" not in repr(limiter._paces)  # pyright: ignore[reportPrivateUsage] # the cache itself
