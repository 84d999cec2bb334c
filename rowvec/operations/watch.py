"""Watches queues of changes, and syncs a pipeline as soon as one of its rows has changed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from rowvec.errors import RowvecError
from rowvec.operations.changes import look
from rowvec.pipeline import Pipeline
from rowvec.runtime.display import one_line

LONGEST_PAUSE = 300.0
"""Seconds; a pipeline whose runs fail is tried again after pauses that double up to this."""


@dataclass(slots=True)
class _Watched:
    pipeline: Pipeline
    failures: int = 0
    not_before: float = field(default=0.0)
    """On the monotonic clock."""

    def failed(self, every: float) -> float:
        """Note a failure; returns the seconds until the next try."""
        self.failures += 1
        pause = min(LONGEST_PAUSE, max(every, 1.0) * 2**self.failures)
        self.not_before = time.monotonic() + pause
        return pause


def watch(
    pipelines: Iterable[Pipeline],
    sync: Callable[[Pipeline], object],
    stop: threading.Event,
    *,
    tell: Callable[[str], None],
    every: float = 1.0,
    until: float | None = None,
) -> int:
    """Call ``sync`` for each pipeline whose rows have changed, until ``stop`` is set; returns the number of runs.

    Each queue is looked at once in ``every`` seconds. One run is for all that has come until it begins, and there is
    never more than one at a time. If a run fails, ``tell`` gets its sentence, the other pipelines go on, and the next
    try comes after a pause that grows. ``until``: the seconds after which it ends by itself.
    """
    watched = [_Watched(pipeline) for pipeline in pipelines]
    runs, end = 0, None if until is None else time.monotonic() + until
    while not stop.is_set() and (end is None or time.monotonic() < end):
        for one in watched:
            if stop.is_set() or time.monotonic() < one.not_before:
                continue
            runs += _look(one, sync, tell, every)
        stop.wait(every)
    return runs


def _look(one: _Watched, sync: Callable[[Pipeline], object], tell: Callable[[str], None], every: float) -> int:
    try:
        reason = look(one.pipeline).reason
        if reason is None:
            return 0
        tell(f"{one.pipeline.name}: {reason}")
        sync(one.pipeline)
    except RowvecError as error:
        pause = one.failed(every)
        tell(f"{one.pipeline.name}: {one_line(str(error))}; it is tried again in {pause:.0f} s")
        return 0
    one.failures = 0
    return 1
