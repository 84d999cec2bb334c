"""One trial: a command meets a fault at one point and is run again; what it leaves is compared with a run without."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from typing import Literal

from tests.support.crash_points.cases import TEXTS_PER_REQUEST
from tests.support.crash_points.points import At, Fault, Seen
from tests.support.crash_points.scene import Scene, Text
from tests.support.crash_points.state import State, differences

Verdict = Literal["same", "differs", "not reached"]


Tier = Literal[1, 2, 3, 4, 5]
"""The order in which faults are tried: kills at which others see what they did not see at the kill before; full disks;
connections that are cut where something would be changed; the other kills; the other cut connections."""


@dataclass(frozen=True, slots=True)
class Uninterrupted:
    """A run that nothing has interrupted: its points, what it left, and what it paid for."""

    seen: tuple[Seen, ...]
    state: State
    paid: Counter[Text]

    def faults(self, tier: Tier) -> list[At]:
        """The faults of a tier, in the order of the run."""
        found: list[At] = []
        is_new = True
        for seen in self.seen:
            tiers = _tiers(seen, is_new=is_new)
            found.extend((seen.point, fault) for fault in tiers if tiers[fault] == tier)
            # A kill after a statement shows the same as one before the next.
            is_new = seen.changes if seen.point.kind != "statement" else False
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What became of a command that met a fault at one point."""

    at: At
    outcome: str
    """How the run ended that met the fault."""
    verdict: Verdict
    findings: tuple[str, ...]
    seconds: float


def uninterrupted(scene: Scene) -> Uninterrupted:
    """Run the command of a scene to its end. Raises ``AssertionError`` if it fails."""
    ended = scene.must(scene.run("run", watched=True))
    scene.must(scene.run("audit"))
    found = Uninterrupted(ended.seen, scene.state(), scene.paid())
    assert max(found.paid.values(), default=1) == 1, found.paid
    return found


def attempt(scene: Scene, wanted: Uninterrupted, at: At) -> Trial:
    """Let the fault happen to the command, run it again, and compare."""
    began = time.monotonic()
    scene.reset()
    hit = scene.run("run", at=at)
    outcome = f"{hit.state} {hit.message}".strip()
    if hit.state != "killed" and not hit.met:
        return _trial(at, outcome, "not reached", [], began)
    unkept = scene.unkept()
    again = scene.run("again")
    findings = [] if hit.expected else [f"the run failed with an error that is not for people: {hit.message}"]
    findings += [] if again.state == "done" else [f"the next run has {again.state}: {again.message}"]
    findings += differences(wanted.state, scene.state())
    findings += _overpaid(scene.paid(), wanted.paid, unkept)
    return _trial(at, outcome, "differs" if findings else "same", findings, began)


def _tiers(seen: Seen, *, is_new: bool) -> dict[Fault, Tier]:
    """What is tried at a point. ``is_new``: others see something new before it."""
    before: Tier = 1 if is_new else 4
    if seen.point.kind == "request":
        return {"before": before, "after": 1}
    if seen.point.kind == "statement":
        return {"before": before, "after": 1 if seen.changes else 4, "cut": 3 if seen.changes else 5}
    takes_room = not seen.point.what.startswith(("os.remove", "os.rmdir"))
    return {"before": before, "full": 2} if takes_room else {"before": before}


def _overpaid(paid: Counter[Text], wanted: Counter[Text], unkept: set[Text]) -> list[str]:
    """What a run without a fault does not pay for; a request in flight at the fault may be sent again."""
    over = paid - wanted - Counter(dict.fromkeys(unkept, 1))
    said = [f"paid for again: {sorted(over)[:3]}, {over.total()} in all"] if over else []
    if len(unkept) > TEXTS_PER_REQUEST:
        said.append(f"{len(unkept)} texts were paid for and not kept, more than one request has")
    return said


def _trial(at: At, outcome: str, verdict: Verdict, findings: list[str], began: float) -> Trial:
    seconds = time.monotonic() - began
    return Trial(at=at, outcome=outcome, verdict=verdict, findings=tuple(findings), seconds=seconds)
