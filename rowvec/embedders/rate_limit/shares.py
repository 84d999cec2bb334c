"""Divides an account's limits among the processes that use it: by need, and never more than there is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rowvec.embedders.rate_limit.limiter import Usage

# A process that is not throttled wants what it used and 15 % more, so that its demand can grow; and at least 2 %,
# because an idle process may need some at any moment.
_ROOM = 1.15
_STANDBY = 0.02
# A process that uses this much of its share is limited by nothing else.
_USED_UP = 0.95
# Earlier demand halves in this many seconds: a request of many tokens may come only once in many looks.
_HALF_LIFE = 2.0


@dataclass(frozen=True, slots=True)
class Lease:
    """What a process wants of an account, and what it may use until its lease is renewed or expires."""

    wanted: float
    """Of the whole limit, 0 to 1; 1 means as much as possible."""
    granted: float
    """Of the whole limit, 0 to 1."""


@dataclass(frozen=True, slots=True)
class Grant:
    """What a process gets, of the whole limit, 0 to 1."""

    due: float
    """Its fair part, which it has once all others have returned what exceeds theirs."""
    granted: float
    """As much of ``due`` as no other process holds now."""

    @property
    def is_whole(self) -> bool:
        """Whether the process has all that is due. If not, another process still has to return some."""
        return self.granted >= self.due - 1e-9


def wanted(usage: Usage, seconds: float, share: float, before: float) -> float:
    """What a process wants now, 0 to 1, from its usage in the last ``seconds`` and from what it wanted ``before``."""
    used = usage.spent / seconds if seconds > 0 else 0.0
    if usage.throttled or (used > 0 and used >= _USED_UP * share):
        return 1.0
    return min(1.0, max(used * _ROOM + _STANDBY, before * 0.5 ** (seconds / _HALF_LIFE)))


def max_min_fair(wants: Sequence[float]) -> list[float]:
    """Max-min fair parts: no process gets more than it wants while another with a smaller part wants more.

    What remains is divided evenly, so that a process has some at hand if it suddenly needs more. The parts sum to 1.
    """
    if not wants:
        return []
    parts = [0.0] * len(wants)
    left, open_ = 1.0, len(wants)
    # Progressive filling, the smallest demand first.
    for i in sorted(range(len(wants)), key=wants.__getitem__):
        parts[i] = min(wants[i], left / open_)
        left -= parts[i]
        open_ -= 1
    return [part + max(0.0, left) / len(wants) for part in parts]


def grant(wants: float, others: Sequence[Lease]) -> Grant:
    """What a process that wants this much gets, given the leases of the other processes.

    What another process was granted stays its own until it renews: a new process waits for that, so that no process
    has to be asked.
    """
    due = max_min_fair([wants, *(other.wanted for other in others)])[0]
    return Grant(due=due, granted=max(0.0, min(due, 1.0 - sum(other.granted for other in others))))
