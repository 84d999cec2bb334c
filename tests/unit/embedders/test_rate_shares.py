"""How limits are divided: never more than the limit, a fair part for each process, and dead processes lose theirs."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rowvec.embedders.rate_limit.limiter import HEADROOM, Pace, RateLimitAccount, Schedule, Usage
from rowvec.embedders.rate_limit.shares import Grant, Lease, grant, max_min_fair, wanted
from tests.support.fake_clock import JumpingClock

LEASE = 6.0
SMALL = 1e-9
PARTS = st.floats(0, 1)


@given(st.lists(PARTS, min_size=1, max_size=20))
def test_parts_add_up_and_are_max_min_fair(wants: list[float]) -> None:
    parts = max_min_fair(wants)
    assert sum(parts) == pytest.approx(1)
    for part, want in zip(parts, wants, strict=True):
        assert part >= min(want, 1 / len(wants)) - SMALL
        if part < want - SMALL:
            # A process with less than it wants has as much as any other.
            assert part >= max(parts) - SMALL


@given(st.lists(PARTS, max_size=10), PARTS)
def test_a_process_that_wants_more_never_gets_less(others: list[float], want: float) -> None:
    assert max_min_fair([1.0, *others])[0] >= max_min_fair([want, *others])[0] - SMALL


def test_a_process_alone_has_all_and_an_idle_one_costs_little() -> None:
    assert max_min_fair([]) == []
    assert max_min_fair([0.02]) == [1.0]
    assert max_min_fair([1.0, 0.02]) == pytest.approx([0.98, 0.02])
    assert max_min_fair([1.0, 1.0, 0.1]) == pytest.approx([0.45, 0.45, 0.1])
    assert grant(1.0, []) == Grant(due=1.0, granted=1.0)
    newcomer = grant(1.0, [Lease(wanted=1.0, granted=1.0)])
    assert newcomer == Grant(due=0.5, granted=0.0)
    assert not newcomer.is_whole


@dataclass(slots=True)
class Process:
    """A process that uses an account, as it sees itself."""

    share: float = 0.0
    renewed_at: float = -LEASE
    alive: bool = True


@given(
    st.lists(
        st.tuples(st.floats(0, 3), st.integers(0, 5), PARTS, st.sampled_from(["renew", "renew", "renew", "kill"])),
        max_size=60,
    )
)
def test_processes_never_hold_more_than_the_limit_and_reach_their_fair_share(
    events: list[tuple[float, int, float, str]],
) -> None:
    """For its holder a lease ends a little earlier, because the holder's clock starts before the ledger's."""
    now, processes, ledger = 0.0, [Process() for _ in range(6)], dict[int, tuple[float, Lease]]()

    def renew(i: int, want: float) -> Grant:
        others = [lease for j, (ends, lease) in ledger.items() if j != i and ends > now]
        given = grant(want, others)
        ledger[i] = (now + LEASE, Lease(wanted=want, granted=given.granted))
        processes[i].share, processes[i].renewed_at = given.granted, now
        return given

    for seconds, i, want, action in events:
        now += seconds
        if action == "kill":
            processes[i].alive = False
        elif processes[i].alive:
            renew(i, want)
        holding = [p.share for p in processes if p.alive and now < p.renewed_at + LEASE]
        assert sum(holding) <= 1 + SMALL
    # The shares of dead processes become free when their leases expire. Two rounds later, all others have their part.
    now += LEASE
    alive = [i for i, process in enumerate(processes) if process.alive]
    given: list[Grant] = []
    for _ in range(3):
        given = [renew(i, 1.0) for i in alive]
    if alive:
        assert all(one.is_whole for one in given)
        assert sum(one.granted for one in given) == pytest.approx(1)


def test_a_throttled_process_wants_all_and_another_what_it_used() -> None:
    assert wanted(Usage(spent=0.1, throttled=True), 1.0, 0.5, 0.0) == 1.0
    assert wanted(Usage(spent=0.5, throttled=False), 1.0, 0.5, 0.0) == 1.0, "one thread alone never waits for another"
    modest = wanted(Usage(spent=0.2, throttled=False), 1.0, 0.5, 0.0)
    assert 0.2 < modest < 0.3
    assert wanted(Usage(spent=0.2, throttled=False), 1.0, modest, modest) == pytest.approx(modest)
    assert wanted(Usage(spent=0.0, throttled=False), 2.0, 1.0, 1.0) == pytest.approx(0.5)
    assert 0 < wanted(Usage(spent=0.0, throttled=False), 60.0, 1.0, 1.0) < 0.05


class Divider:
    """A ``LimitSharing`` that sets the shares a test gives it, and records rests."""

    def __init__(self) -> None:
        self.rests: list[float] = []

    def before_request(self) -> None:
        """Do nothing."""

    def provider_asked_to_rest(self, seconds: float) -> None:
        """Record the rest."""
        self.rests.append(seconds)


class ChangingClock(JumpingClock):
    """Changes the share while a thread waits, and sums up what the shares have allowed."""

    def __init__(self, shares: list[float]) -> None:
        super().__init__()
        self.shares, self.divider, self.allowed = shares, Divider(), 0.0
        self.pace: Pace | None = None

    def wait(self, seconds: float, stop: threading.Event) -> None:
        """Wait, then set the next share."""
        super().wait(seconds, stop)
        assert self.pace is not None
        self.allowed += seconds * self.pace.share
        if self.shares:
            self.pace.divide(self.divider, self.shares.pop())


@given(
    st.integers(60, 6000),
    st.lists(st.one_of(st.just(0.0), st.floats(0.01, 1)), max_size=100),
    st.lists(st.integers(1, 5000), min_size=5, max_size=60),
)
def test_a_changing_share_is_never_exceeded(per_minute: int, shares: list[float], requests: list[int]) -> None:
    schedule = Schedule(requests_per_minute=per_minute, tokens_per_minute=100_000)
    clock = ChangingClock([1.0, *shares])
    clock.pace = pace = Pace(schedule, clock)
    pace.divide(clock.divider, 1.0)
    spent = 0.0
    for tokens in requests:
        pace.wait_turn(tokens, threading.Event())
        assert spent <= clock.allowed + 1e-6
        spent += schedule.cost(tokens)


def test_a_share_of_a_limit_is_kept_and_used() -> None:
    clock = JumpingClock()
    pace, divider = Pace(Schedule(requests_per_minute=600), clock), Divider()
    pace.divide(divider, 0.25)
    for _ in range(101):
        pace.wait_turn(1, threading.Event())
    assert clock.time == pytest.approx(100 * 0.1 / HEADROOM / 0.25)
    usage = pace.take_usage()
    assert usage.spent / clock.time == pytest.approx(0.25, rel=0.02)
    assert not usage.throttled, "no thread waits"
    pace.divide(divider, None)
    assert pace.share == 1.0


def test_the_smallest_of_two_shares_counts() -> None:
    pace, one, other = Pace(Schedule(requests_per_minute=600), JumpingClock()), Divider(), Divider()
    pace.divide(one, 0.5)
    pace.divide(other, 0.2)
    assert pace.share == 0.2
    pace.divide(other, None)
    assert pace.share == 0.5


def test_a_complaint_is_passed_on_and_a_repeated_one_counts_once() -> None:
    clock = JumpingClock()
    pace, divider = Pace(Schedule(requests_per_minute=600), clock), Divider()
    pace.divide(divider, 1.0)
    pace.complained(pace.wait_turn(1, threading.Event()), "rate_limited", 7.0)
    assert divider.rests == [7.0]
    pace.rest_with_others(30.0)
    pace.rest_with_others(30.0)
    pace.wait_turn(1, threading.Event())
    assert clock.time == pytest.approx(30.0)


def test_accounts_differ_by_their_key_and_never_show_it() -> None:
    account = RateLimitAccount(address="https://host/v1", model="m", secret="sk-secret")  # noqa: S106 # not one
    assert "sk-secret" not in repr(account)
    assert "word" not in repr(RateLimitAccount(address="https://user:word@host/v1", model="m", secret=""))
    assert account.digest() == RateLimitAccount(address="https://host/v1/", model="m", secret="sk-secret").digest()  # noqa: S106
    others = [
        ("https://host/v2", "m", "sk-secret"),
        ("https://host/v1", "n", "sk-secret"),
        ("https://host/v1", "m", ""),
    ]
    digests = {RateLimitAccount(address=a, model=m, secret=s).digest() for a, m, s in others}
    assert len(digests | {account.digest()}) == 4
