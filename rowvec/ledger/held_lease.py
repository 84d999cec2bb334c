"""A lease that this process holds: how it is taken, and renewed by a thread until the run ends."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Literal

from rowvec.errors import DatabaseUnavailable, PipelineBusy, RetriableError, RowvecError
from rowvec.ledger.lease import (
    Lease,
    Standing,
    check_owner,
    give_up,
    is_run_by_old_version,
    look,
    lost,
    owned,
    renew,
    take,
)
from rowvec.ledger.pipelines import PipelineId
from rowvec.postgres.connection import Connection, lost_connections_are_retriable, session, target_url

LEASE_SECONDS = 20.0
"""How long the owner of a lease may be stopped, or cut off from the database, before another run takes over. A killed
run on another machine makes the next one wait as long."""

# In shares of the lease's length.
_RENEW_EVERY = 0.15
# No request begins in the last part of a lease: what comes between this check and the request has time.
_SAFE = 0.75
# A run that has watched for so long, and has seen a renewal, says that another run is at work.
_BUSY_AFTER = 0.15
_LOOK_EVERY = 0.01
# A process without the lease's thread asks the ledger once in this time.
_ASK_EVERY = 0.05

# Of the transactions that take and renew leases. The server ends what they are waiting for.
_LIMITS = {"lock_timeout": "2s", "statement_timeout": "5s", "idle_in_transaction_session_timeout": "5s"}
_APPLICATION = "rowvec lease"

# Unlike time.monotonic, it goes on while the machine is suspended: others may take the lease over meanwhile.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

Verdict = Literal["take", "busy", "look again"]

logger = logging.getLogger(__name__)


def elapsed() -> float:
    """Seconds since some moment, on a clock of this machine that cannot be set."""
    return time.clock_gettime(_CLOCK)


class Watch:
    """Decides from what one process sees of a lease, on its own clock ``elapsed``, whether it may take the lease over.

    No clock of another machine matters, and none that can be set: only for how long the renewals have stood still.
    """

    def __init__(self) -> None:
        self._seen: Standing | None = None
        self._looked = self._watched = self._unchanged = 0.0
        self._renewed = False

    @property
    def watched(self) -> float:
        """For how many seconds the lease was watched."""
        return self._watched

    def look(self, now: Standing, at: float) -> Verdict:
        """What to do after a look at the lease, at ``at`` by ``elapsed``."""
        if not now.held or now.owner.is_gone():
            return "take"
        if self._seen is not None:
            # A gap between two looks may be a time in which no renewal could reach the database either.
            gap = min(at - self._looked, 4 * _LOOK_EVERY * now.seconds)
            self._watched += gap
            self._unchanged += gap
            if now != self._seen:
                self._unchanged, self._renewed = 0.0, True
        self._seen, self._looked = now, at
        if self._unchanged >= now.seconds:
            return "take"
        return "busy" if self._renewed and self._watched >= _BUSY_AFTER * now.seconds else "look again"


class HeldLease:
    """Renews a lease in a thread, on a connection that is opened when it is needed, and again when it was cut."""

    def __init__(self, url: str, lease: Lease, taken: float) -> None:
        """``taken``: when the taking began, by ``elapsed``."""
        self.lease = lease
        self._url = url
        self._ended = threading.Event()
        self._changed = threading.Condition()
        self._renewed = taken
        self._lost = False
        self._trouble: RowvecError | None = None
        self._thread = threading.Thread(target=self._keep, name=_APPLICATION, daemon=True)

    def start(self) -> None:
        """Begin to renew."""
        self._thread.start()

    def end(self) -> None:
        """Stop renewing, and give the lease up; if the database does not answer, the next run waits for its end."""
        self._ended.set()
        # It may wait for an answer that never comes, from a network that was cut.
        self._thread.join(timeout=_BUSY_AFTER * self.lease.seconds)
        if not self._lost:
            with suppress(RowvecError), _opened(self._url) as connection:
                give_up(connection, self.lease)

    def ensure(self) -> None:
        """Return if the lease is certainly held now; while it may not be, wait for its next renewal.

        Raises ``LeaseLost`` if another run has it, and ``DatabaseUnavailable`` if no renewal reaches the database.
        """
        if not self._lost and not self.is_over(elapsed()):
            return
        until = elapsed() + self.lease.seconds
        with self._changed:
            while not self._lost and self.is_over(elapsed()):
                if elapsed() >= until:
                    raise DatabaseUnavailable(
                        f"the lease of the pipeline {self.lease.pipeline} was not renewed in time, so nothing is sent "
                        f"to the embedder: {self._trouble or 'the database does not answer'}"
                    )
                self._changed.wait(timeout=until - elapsed())
            if self._lost:
                raise lost(self.lease)

    def is_over(self, now: float) -> bool:
        """Whether another run may have taken the lease over by ``now``, by ``elapsed``."""
        return now > self._renewed + _SAFE * self.lease.seconds

    def _keep(self) -> None:
        # The taking was as good as a renewal. Many a run is over before the next one is due.
        self._ended.wait(_RENEW_EVERY * self.lease.seconds)
        while not self._ended.is_set() and not self._lost:
            try:
                with _opened(self._url) as connection:
                    self._renew_on(connection)
            except RowvecError as error:
                if not isinstance(error, RetriableError) and str(error) != str(self._trouble):
                    logger.warning("the lease of the pipeline %s cannot be renewed: %s", self.lease.pipeline, error)
                self._trouble = error
            self._ended.wait(_LOOK_EVERY * self.lease.seconds)

    def _renew_on(self, connection: Connection) -> None:
        while not self._lost and not self._ended.is_set():
            began = elapsed()
            held = renew(connection, self.lease)
            with self._changed:
                self._renewed, self._lost = began, not held
                self._changed.notify_all()
            self._ended.wait(_RENEW_EVERY * self.lease.seconds)


_HELD: dict[Lease, HeldLease] = {}
"""The leases of this process."""


@contextmanager
def exclusively(url: str, name: str, pipeline_id: PipelineId) -> Generator[Lease]:
    """Hold the pipeline's lease, so that no other run pays or writes for it.

    Raises ``PipelineBusy`` if another run renews it. If a run was killed, on another machine or in another container,
    this waits until the lease has seen no renewal for its whole length.
    """
    held = _take(url, name, pipeline_id)
    _HELD[held.lease] = held
    try:
        held.start()
        yield held.lease
    finally:
        held.end()
        del _HELD[held.lease]


@contextmanager
def exclusively_on(connection: Connection, url: str, name: str, pipeline_id: PipelineId) -> Generator[Lease]:
    """As ``exclusively``; within this context the connection commits nothing once the lease is lost."""
    with exclusively(url, name, pipeline_id) as lease, owned(connection, lease):
        yield lease


@dataclass(frozen=True, slots=True)
class Ownership:
    """Looks, before a request or a change of the store, whether a lease is held; in any process and any thread."""

    lease: Lease
    url: str | None
    """The pipeline's ``target.url``, resolved: where a process that does not renew the lease asks for it."""

    def ensure(self) -> None:
        """Return if the lease is held. Raises ``LeaseLost``, or ``DatabaseUnavailable``; see ``HeldLease.ensure``."""
        held = _HELD.get(self.lease)
        if held is not None:
            held.ensure()
            return
        with _asking:
            began = elapsed()
            if began - _asked.get(self.lease, float("-inf")) > _ASK_EVERY * self.lease.seconds:
                with _opened(target_url(self.url)) as connection:
                    check_owner(connection, self.lease)
                _asked[self.lease] = began


_asked: dict[Lease, float] = {}
"""When the ledger was last asked about a lease that another process renews, by ``elapsed``."""
_asking = threading.Lock()


def _take(url: str, name: str, pipeline_id: PipelineId) -> HeldLease:
    with _opened(url) as connection:
        lease, taken = _taken(connection, name, pipeline_id)
    return HeldLease(url, lease, taken)


def _taken(connection: Connection, name: str, pipeline_id: PipelineId) -> tuple[Lease, float]:
    """The lease, and when its taking began."""
    seconds = _length()
    watch, told = Watch(), False
    while True:
        seen, began = look(connection, pipeline_id), elapsed()
        verdict = watch.look(seen, began)
        if verdict == "take" and is_run_by_old_version(connection, pipeline_id):
            verdict = "busy"
        if verdict == "take" and (number := take(connection, pipeline_id, seen, seconds)) is not None:
            if seen.held:
                # The old owner's workers in other processes have asked the ledger by then.
                time.sleep(_ASK_EVERY * seen.seconds)
            return Lease(pipeline_id=pipeline_id, number=number, seconds=seconds, pipeline=name), began
        if verdict == "busy":
            raise PipelineBusy(f"another run of the pipeline {name} is at work; wait for it, or stop it first")
        if not told and watch.watched > _BUSY_AFTER * seen.seconds:
            told = True
            logger.info("%s: an earlier run does not renew its lease; this run takes it over in a moment", name)
        time.sleep(_LOOK_EVERY * max(seen.seconds, 1.0))


@contextmanager
def _opened(url: str) -> Generator[Connection]:
    with lost_connections_are_retriable(), session(url, _APPLICATION, _LIMITS) as connection:
        yield connection


def _length() -> float:
    """The length of a lease in seconds. Tests set the variable, to wait less; it is no option of rowvec."""
    return float(os.environ.get("ROWVEC_LEASE_SECONDS") or LEASE_SECONDS)
