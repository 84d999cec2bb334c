"""Watches queues of changes, and syncs a pipeline as soon as one of its rows has changed."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field

from rowvec.errors import RowvecError
from rowvec.operations.changes import Look, OpenQueue, opened_queue
from rowvec.pipeline import Pipeline
from rowvec.postgres.kept import connections_kept
from rowvec.runtime import telemetry_export
from rowvec.runtime.display import one_line
from rowvec.stages.alarms import Alarm, of_waiting
from rowvec.stages.report import SyncReport, record_waiting

LONGEST_PAUSE = 300.0
"""Seconds; a pipeline whose runs fail is tried again after pauses that double up to this."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """A pipeline to watch."""

    read: Callable[[], Pipeline]
    """Reads its file: when the watcher begins, and before each sync, so that an edited file is followed."""
    sync: Callable[[Pipeline], SyncReport]


@dataclass(slots=True)
class _State:
    watched: Watched
    pipeline: Pipeline
    queue: OpenQueue | None = None
    """Open from one look to the next."""
    open: ExitStack = field(default_factory=ExitStack)
    failures: int = 0
    not_before: float = 0.0
    """When it is tried again, on the monotonic clock."""
    quiet_until: float = 0.0
    """When the next alarm that changes wait may be sent, on the monotonic clock."""

    def look(self) -> Look:
        """Look at the queue, by a connection that stays open."""
        if self.queue is None:
            self.queue = self.open.enter_context(opened_queue(self.pipeline))
        return self.queue.look()

    def close(self) -> None:
        """Close the connection; the next look opens another."""
        self.queue = None
        self.open.close()

    def sync(self) -> SyncReport:
        """Sync the pipeline as its file is now."""
        read = self.watched.read()
        if read != self.pipeline:
            # Another table or key has another queue.
            self.close()
            self.pipeline = read
        return self.watched.sync(read)

    def failed(self, error: Exception, every: float) -> str:
        """Note a failure; returns a sentence with the pause until the next try."""
        if not isinstance(error, RowvecError):
            logger.exception("%s: the watcher goes on after a defect", self.pipeline.name, exc_info=error)
        self.failures += 1
        pause = min(LONGEST_PAUSE, max(every, 1.0) * 2**self.failures)
        self.not_before = time.monotonic() + pause
        why = one_line(str(error)) or type(error).__name__
        return f"{self.pipeline.name}: {why}; it is tried again in {pause:.0f} s"

    def due_alarms(self, found: Look) -> list[Alarm]:
        """The alarm that changes wait too long: at most once in ``freshness.alarm_after``."""
        alarms = of_waiting(self.pipeline, found.waiting, found.oldest_seconds)
        if not alarms or time.monotonic() < self.quiet_until:
            return []
        self.quiet_until = time.monotonic() + (self.pipeline.freshness.alarm_seconds or 0)
        return alarms


def watch(
    pipelines: Iterable[Watched],
    stop: threading.Event,
    *,
    tell: Callable[[str], None],
    alarm: Callable[[Pipeline, list[Alarm]], None],
    every: float = 1.0,
    seconds: float | None = None,
) -> int:
    """Sync each pipeline whose rows have changed, until ``stop`` is set; returns the number of syncs.

    Each queue is looked at once in ``every`` seconds, and right after a sync that took longer. One sync is for all that
    has come until it begins, and there is never more than one at a time. While another process syncs a pipeline, it is
    left to that one. If a sync fails, ``tell`` gets its sentence, the other pipelines go on, and the next try comes
    after a pause that grows. ``alarm`` gets what is wrong with a queue. ``seconds``: after so long it ends by itself.

    Raises what ``read`` raises at the beginning, and what ``opened_queue`` raises for a pipeline that has no queue.
    """
    telemetry_export.start()
    states = [_State(one, one.read()) for one in pipelines]
    syncs, end = 0, None if seconds is None else time.monotonic() + seconds
    # The next sync takes over the sessions of the one before: to open one, and its first statements, take a tenth of a
    # second, and more on a server that is far away.
    with connections_kept():
        try:
            for state in states:
                state.look()
            while not stop.is_set() and (end is None or time.monotonic() < end):
                began, before = time.monotonic(), syncs
                for state in states:
                    if not stop.is_set():
                        syncs += _work(state, tell, alarm, every)
                # What has come during a sync has waited already. A look that takes long gets its pause.
                stop.wait(max(0.0, began + every - time.monotonic()) if syncs > before else every)
        finally:
            for state in states:
                state.close()
    return syncs


def _work(
    state: _State, tell: Callable[[str], None], alarm: Callable[[Pipeline, list[Alarm]], None], every: float
) -> int:
    """One look, and the sync that is due; returns the number of syncs."""
    pauses = time.monotonic() < state.not_before
    if pauses and state.queue is None:
        return 0
    try:
        found = state.look()
        record_waiting(state.pipeline.name, found.waiting, found.oldest_seconds)
        if alarms := state.due_alarms(found):
            tell(f"{state.pipeline.name}: {alarms[0].sentence}")
            alarm(state.pipeline, alarms)
    except Exception as error:  # noqa: BLE001 # one pipeline's failure, whatever it is, must not end the others
        state.close()
        tell(state.failed(error, every))
        return 0
    if found.reason is None:
        state.failures = 0
    if found.reason is None or pauses:
        return 0
    try:
        report = state.sync()
    except Exception as error:  # noqa: BLE001 # as above; the queue stays open, so that its alarms go on
        tell(state.failed(error, every))
        return 0
    state.failures = 0
    seconds = report.seconds.get("total", 0.0)
    tell(f"{report.pipeline}: {found.reason}; run {report.run_id}, {seconds:.1f} s: {report.verdict()}")
    return 1
