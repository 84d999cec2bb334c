"""One pace for all processes that use an embedder's account: each keeps a lease on a share of it while it embeds."""

from __future__ import annotations

import atexit
import logging
import os
import socket
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from uuid import uuid4

import psycopg

from rowvec.embedders.rate_limit.leases import LEASE_SECONDS, Holder, leave, open_pace_ledger, renew
from rowvec.embedders.rate_limit.limiter import Account, Pace, Paced
from rowvec.embedders.rate_limit.shares import wanted
from rowvec.errors import RowvecError
from rowvec.postgres.connection import Connection, lost_connections_are_retriable, target_url

# Two may fail, or come late on a busy machine, before a lease ends: so many are tried again as soon.
RENEW_SECONDS = LEASE_SECONDS / 4
_MAY_FAIL = 2
# Whoever is due more than is free looks again soon; the others give back at their next renewal.
_SOON_SECONDS = 0.3
# A request waits so long for the first share. A ledger that takes longer is not worth keeping a run for.
_FIRST_SECONDS = 5.0
_AGAIN_SECONDS = 5.0
_GOODBYE_SECONDS = 2.0

logger = logging.getLogger(__name__)


@contextmanager
def shared_pace(url: str | None, embedder: object) -> Generator[None]:
    """Share the embedder's limits with all that use its account meanwhile, by the ledger of the target's database.

    ``url``: the pipeline's ``target.url``, resolved. ``ROWVEC_PACE_DATABASE_URL`` names another database, where
    pipelines have several targets. Nothing is asked of it before the first request, nor where no limit is known. A
    ledger that cannot be reached stops nobody: the last share holds; where others still had it all, what is due; and
    before there was one the whole limit.
    """
    if not isinstance(embedder, Paced):
        yield
        return
    apart = os.environ.get("ROWVEC_PACE_DATABASE_URL")
    keeper = _keeper(apart or target_url(url), embedder.account, embedder.pace, installed=not apart)
    keeper.begin()
    try:
        yield
    finally:
        keeper.end()


class Keeper:
    """Keeps this process's lease on an account, in a thread that lives as long as somebody asks, and a moment longer.

    It is the ``Sharing`` of the account's ``Pace``.
    """

    def __init__(self, url: str, account: Account, pace: Pace, *, installed: bool) -> None:
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
        """Somebody is going to send requests."""
        with self._lock:
            self._users += 1
            if self._users == 1 and self._thread is None:
                self._pace.divide(self, 1.0)

    def end(self) -> None:
        """Somebody is through. The lease stays for a moment: the next batch may be about to begin."""
        with self._lock:
            self._users -= 1
            self._used_at = time.monotonic()
            if not self._users and self._thread is None:
                self._pace.divide(self, None)

    def asked(self) -> None:
        """See ``Sharing``. Requests of the first seconds wait for the first share."""
        if self._known.is_set() or self._closing or not self._pace.limited:
            return
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._keep, name="rowvec pace", daemon=True)
                self._awaited_until = time.monotonic() + _FIRST_SECONDS
                self._thread.start()
        self._known.wait(max(0.0, self._awaited_until - time.monotonic()))

    def rested(self, seconds: float) -> None:
        """See ``Sharing``."""
        self._resting_until = max(self._resting_until, time.monotonic() + seconds)
        self._woken.set()

    def close(self) -> None:
        """Give the lease back now: the process is about to end."""
        self._closing = True
        self._woken.set()
        if (thread := self._thread) is not None:
            thread.join(_GOODBYE_SECONDS)

    def _keep(self) -> None:
        lease = _Lease(self._url, self._account, self._pace, installed=self._installed)
        try:
            while not self._is_over():
                self._woken.clear()
                pause = self._renewed(lease)
                self._known.set()
                self._woken.wait(pause)
        except BaseException:
            # A mistake of ours: nobody renews any more, and without a share requests would wait for ever.
            self._pace.divide(self, None)
            self._known.set()
            raise
        finally:
            lease.give_back()

    def _renewed(self, lease: _Lease) -> float:
        """Renew the lease; seconds until it is to be done again."""
        rest = max(0.0, self._resting_until - time.monotonic())
        try:
            share, rest, whole = lease.renewed(rest)
        except RowvecError as error:
            if not self._pace.share and lease.due:
                # Others held it all, and give back what is due within their next renewals.
                self._pace.divide(self, lease.due)
            if not self._failures:
                logger.warning(
                    "the pace of %s is not shared with other processes; this one keeps to %.0f %% of its limits: %s",
                    self._account.model,
                    100 * self._pace.share,
                    error,
                )
            self._failures += 1
            return RENEW_SECONDS if self._failures <= _MAY_FAIL else _AGAIN_SECONDS
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
    """A lease from its first renewal to its end, on a connection that is made again when it was lost."""

    def __init__(self, url: str, account: Account, pace: Pace, *, installed: bool) -> None:
        self._url = url
        self._installed = installed
        self._pace = pace
        self._holder = Holder(id=uuid4(), process=f"{socket.gethostname()} {os.getpid()}", account=account)
        self._connection: Connection | None = None
        # Whoever begins has a request that waits.
        self._wanted = 1.0
        self.due = 0.0
        """What others were to leave us when the ledger was last reached."""
        self._looked_at: float | None = None

    def renewed(self, rest: float) -> tuple[float, float, bool]:
        """Share, seconds of rest, and whether the share is all that is due. Raises ``RowvecError``."""
        now, use = time.monotonic(), self._pace.use()
        if self._looked_at is not None:
            self._wanted = wanted(use, now - self._looked_at, self._pace.share, self._wanted)
        self._looked_at = now
        try:
            with lost_connections_are_retriable():
                if self._connection is None:
                    self._connection = open_pace_ledger(self._url, installed=self._installed)
                given, rest = renew(self._connection, self._holder, wanted=self._wanted, rest=rest)
        except RowvecError:
            self._let_go()
            raise
        self.due = given.due
        return given.granted, rest, given.is_whole

    def give_back(self) -> None:
        """End it, where the ledger can be reached: else it ends by itself."""
        if self._connection is not None:
            with suppress(psycopg.Error):
                leave(self._connection, self._holder)
        self._let_go()

    def _let_go(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


_keepers: dict[tuple[str, int], Keeper] = {}
_making = threading.Lock()


def _keeper(url: str, account: Account, pace: Pace, *, installed: bool) -> Keeper:
    """One a process, a ledger and a pace."""
    with _making:
        name = (url, id(pace))
        if name not in _keepers:
            _keepers[name] = Keeper(url, account, pace, installed=installed)
        return _keepers[name]


@atexit.register
def _give_back() -> None:
    """Others need not wait for the leases of a process that ends in peace to end by themselves."""
    for keeper in _keepers.values():
        keeper.close()
