"""Shares an account's rate limits among processes: each holds a lease on a share of them while it embeds."""

from __future__ import annotations

import atexit
import logging
import os
import socket
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from hashlib import sha256
from uuid import uuid4

import psycopg

from rowvec.embedders.rate_limit.leases import LEASE_SECONDS, Holder, leave, open_pace_ledger, renew
from rowvec.embedders.rate_limit.limiter import Pace, Paced, RateLimitAccount
from rowvec.embedders.rate_limit.shares import wanted
from rowvec.errors import RowvecError
from rowvec.postgres.connection import Connection, lost_connections_are_retriable, target_url

# Two renewals may fail, or be late on a busy machine, before the lease expires. The first two failures are therefore
# retried at the normal interval, later ones at _RETRY_SECONDS.
RENEW_SECONDS = LEASE_SECONDS / 4
_MAY_FAIL = 2
_RETRY_SECONDS = 5.0
# If our fair share is not free yet, renew soon: the others release theirs at their next renewal.
_SOON_SECONDS = 0.3
# How long a request waits for the first share. A run should not wait longer for a slow ledger.
_FIRST_SECONDS = 5.0
# How long the end of the process waits for its leases to be returned.
_CLOSE_SECONDS = 2.0

logger = logging.getLogger(__name__)


@contextmanager
def shared_pace(url: str | None, embedder: object) -> Generator[None]:
    """Share the embedder's rate limits with other processes on the same account, through the ledger of the target.

    ``url``: the pipeline's ``target.url``, resolved. ``ROWVEC_PACE_DATABASE_URL`` names another database, for pipelines
    with several targets. The database is not used before the first request, nor while no limit is known.

    A ledger that cannot be reached stops no request. This process then keeps its last share. If that was 0, because the
    others still held everything, it uses its fair share; if it never had a share, it uses the whole limit.
    """
    if not isinstance(embedder, Paced):
        yield
        return
    other_database = os.environ.get("ROWVEC_PACE_DATABASE_URL")
    renewer = _renewer_of(
        other_database or target_url(url), embedder.account, embedder.pace, installed=not other_database
    )
    renewer.begin()
    try:
        yield
    finally:
        renewer.end()


class LeaseRenewer:
    """Renews this process's lease on an account, in a thread that runs while an embedder sends, and a moment longer.

    It is the ``LimitSharing`` of the account's ``Pace``.
    """

    def __init__(self, url: str, account: RateLimitAccount, pace: Pace, *, installed: bool) -> None:
        self._url = url
        self._account = account
        self._pace = pace
        self._installed = installed
        self._lock = threading.Lock()
        self._users = 0
        self._used_at = 0.0
        self._thread: threading.Thread | None = None
        self._awaited_until = 0.0
        self._known = threading.Event()
        self._woken = threading.Event()
        self._closing = False
        self._resting_until = 0.0
        self._failures = 0

    def begin(self) -> None:
        """An embedder is going to send requests."""
        with self._lock:
            self._users += 1
            if self._users == 1 and self._thread is None:
                self._pace.divide(self, 1.0)

    def end(self) -> None:
        """An embedder has finished. The lease stays for a moment, because the next batch may be about to begin."""
        with self._lock:
            self._users -= 1
            self._used_at = time.monotonic()
            if not self._users and self._thread is None:
                self._pace.divide(self, None)

    def before_request(self) -> None:
        """See ``LimitSharing``. Requests of the first seconds wait for the first share."""
        if self._known.is_set() or self._closing or not self._pace.limited:
            return
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._renew_until_idle, name="rowvec pace", daemon=True)
                self._awaited_until = time.monotonic() + _FIRST_SECONDS
                self._thread.start()
        self._known.wait(max(0.0, self._awaited_until - time.monotonic()))

    def provider_asked_to_rest(self, seconds: float) -> None:
        """See ``LimitSharing``."""
        self._resting_until = max(self._resting_until, time.monotonic() + seconds)
        self._woken.set()

    def close(self) -> None:
        """Return the lease now, because the process is about to end."""
        self._closing = True
        self._woken.set()
        if (thread := self._thread) is not None:
            thread.join(_CLOSE_SECONDS)

    def _renew_until_idle(self) -> None:
        lease = _Lease(self._url, self._account, self._pace, installed=self._installed)
        try:
            while not self._is_over():
                self._woken.clear()
                pause = self._renew_once(lease)
                self._known.set()
                self._woken.wait(pause)
        except BaseException:
            # A bug: nothing renews the lease any more, and with a share of 0 requests would wait for ever.
            self._pace.divide(self, None)
            self._known.set()
            raise
        finally:
            lease.release()

    def _renew_once(self, lease: _Lease) -> float:
        """Renew the lease; returns the seconds until the next renewal."""
        rest = max(0.0, self._resting_until - time.monotonic())
        try:
            share, rest, whole = lease.renew(rest)
        except RowvecError as error:
            if not self._pace.share and lease.due:
                # The others held everything, and return our fair share at their next renewals.
                self._pace.divide(self, lease.due)
            if not self._failures:
                logger.warning(
                    "the pace of %s is not shared with other processes; this one keeps to %.0f %% of its limits: %s",
                    self._account.model,
                    100 * self._pace.share,
                    error,
                )
            self._failures += 1
            return RENEW_SECONDS if self._failures <= _MAY_FAIL else _RETRY_SECONDS
        if self._failures:
            logger.info("the pace of %s is shared with other processes again", self._account.model)
        self._failures = 0
        self._pace.divide(self, share)
        self._pace.rest_with_others(rest)
        return RENEW_SECONDS if whole else _SOON_SECONDS

    def _is_over(self) -> bool:
        with self._lock:
            idle = not self._users and time.monotonic() - self._used_at >= RENEW_SECONDS
            if not (idle or self._closing):
                return False
            self._thread = None
            self._known.clear()
            self._pace.divide(self, 1.0 if self._users else None)
            return True


class _Lease:
    """A lease from its first renewal to its end; a lost connection is opened again."""

    def __init__(self, url: str, account: RateLimitAccount, pace: Pace, *, installed: bool) -> None:
        self._url = url
        self._installed = installed
        self._pace = pace
        self._holder = Holder(id=uuid4(), process=f"{socket.gethostname()} {os.getpid()}", account=account)
        self._connection: Connection | None = None
        # A lease is taken when a request waits.
        self._wanted = 1.0
        self.due = 0.0
        """Our fair share, as of the last renewal that succeeded."""
        self._looked_at: float | None = None

    def renew(self, rest: float) -> tuple[float, float, bool]:
        """Renew it: the share, seconds of rest, and whether the share is all that is due. Raises ``RowvecError``."""
        now, usage = time.monotonic(), self._pace.take_usage()
        if self._looked_at is not None:
            self._wanted = wanted(usage, now - self._looked_at, self._pace.share, self._wanted)
        self._looked_at = now
        try:
            with lost_connections_are_retriable():
                if self._connection is None:
                    self._connection = open_pace_ledger(self._url, installed=self._installed)
                given, rest = renew(self._connection, self._holder, wanted=self._wanted, rest=rest)
        except RowvecError:
            self._close()
            raise
        self.due = given.due
        return given.granted, rest, given.is_whole

    def release(self) -> None:
        """End it if the ledger can be reached; if not, it expires."""
        if self._connection is not None:
            with suppress(psycopg.Error):
                leave(self._connection, self._holder)
        self._close()

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


_renewers: dict[tuple[bytes, int], LeaseRenewer] = {}
_making = threading.Lock()


def _renewer_of(url: str, account: RateLimitAccount, pace: Pace, *, installed: bool) -> LeaseRenewer:
    """The one renewer of this process for a ledger and a pace."""
    # A digest, because the address of a database may hold a password.
    key = (sha256(url.encode()).digest(), id(pace))
    with _making:
        if key not in _renewers:
            _renewers[key] = LeaseRenewer(url, account, pace, installed=installed)
        return _renewers[key]


@atexit.register
def _release_all() -> None:
    """Return the leases of a process that ends normally, so that the others need not wait until they expire."""
    for renewer in _renewers.values():
        renewer.close()
