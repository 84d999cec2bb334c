"""How an account's limits are divided among the processes that use it: by need, and never more than there is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rowvec.embedders.rate_limit.limiter import Use

# A process that is not held up wants what it has used and a bit, so that it may want more; and who has asked for
# nothing yet may do so at any moment.
_ROOM = 1.15
_STANDBY = 0.02
# Of its share, what a process has used that is held up by nothing else.
_USED_UP = 0.95
# Seconds in which half of what was wanted is forgotten: a request of many tokens comes once in many looks.
_HALF_LIFE = 2.0


@dataclass(frozen=True, slots=True)
class Lease:
    """What a process wants of an account, and what it was granted until its lease is renewed or ends."""

    wanted: float
    """Of the whole limit, 0 to 1; 1: all that can be had."""
    granted: float


@dataclass(frozen=True, slots=True)
class Grant:
    """What a process gets."""

    due: float
    """Its part, once everybody keeps to theirs."""
    granted: float
    """What of it nobody else holds at the moment."""

    @property
    def is_whole(self) -> bool:
        """Whether that is all that is due: else somebody has yet to give back."""
        return self.granted >= self.due - 1e-9


def wanted(use: Use, seconds: float, share: float, before: float) -> float:
    """What a process wants now, by what it made of its share in the last ``seconds``, and by what it wanted before."""
    used = use.spent / seconds if seconds > 0 else 0.0
    if use.throttled or (used > 0 and used >= _USED_UP * share):
        return 1.0
    return min(1.0, max(used * _ROOM + _STANDBY, before * 0.5 ** (seconds / _HALF_LIFE)))


def divided(wants: Sequence[float]) -> list[float]:
    """The parts of those who want so much each: nobody gets more than is wanted while another has less than that.

    What nobody wants is dealt out evenly, so that who suddenly needs it has it. The parts add up to 1.
    """
    if not wants:
        return []
    parts = [0.0] * len(wants)
    left, open_ = 1.0, len(wants)
    # Water finds its level: the most modest first.
    for i in sorted(range(len(wants)), key=wants.__getitem__):
        parts[i] = min(wants[i], left / open_)
        left -= parts[i]
        open_ -= 1
    return [part + max(0.0, left) / len(wants) for part in parts]


def grant(wants: float, others: Sequence[Lease]) -> Grant:
    """What a process that wants so much gets beside the leases of others.

    What others were granted is theirs until they renew: whoever is new waits for that, and nobody's word is needed.
    """
    due = divided([wants, *(other.wanted for other in others)])[0]
    return Grant(due=due, granted=max(0.0, min(due, 1.0 - sum(other.granted for other in others))))
