"""Leases in the ledger: what each process may use of an account's limits for the next seconds."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit
from uuid import UUID

from rowvec.embedders.rate_limit.limiter import LONGEST_REST, RateLimitAccount
from rowvec.embedders.rate_limit.shares import Grant, Lease, grant
from rowvec.postgres.connection import Connection, connect
from rowvec.postgres.migrations import install
from rowvec.postgres.queries import query

# A process that holds an account's row must not block the others that use the account.
_LIMITS = {"lock_timeout": "2s", "statement_timeout": "3s", "idle_in_transaction_session_timeout": "5s"}

LEASE_SECONDS = 6.0
"""How long a share stays reserved for a process that was killed, or that lost its network."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """One process that sends requests by one account."""

    id: UUID
    process: str
    """Machine and process number, for people to read."""
    account: RateLimitAccount


def open_pace_ledger(url: str, *, installed: bool) -> Connection:
    """A connection with short time-outs. ``installed``: whether the schema is known to exist; if not, it is installed.

    Raises ``DatabaseUnavailable`` or ``TargetError``.
    """
    connection = connect(url, application="rowvec pace", limits=_LIMITS)
    try:
        if not installed:
            install(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def renew(connection: Connection, holder: Holder, *, wanted: float, rest: float) -> tuple[Grant, float]:
    """Take or extend a lease, in one short transaction. Processes that share an account do this one after the other.

    ``wanted``: of the account's limits, 0 to 1. ``rest``: for how many seconds from now the provider has asked this
    process to send nothing. Returns the grant, and the longest such rest of any process, in seconds from now.
    Raises ``psycopg.Error``, ``LockNotAvailable`` for example if another process holds the account for too long.
    """
    values = {"account": holder.account.digest(), "holder": holder.id, "seconds": LEASE_SECONDS}
    named = {"address": urlsplit(holder.account.address).hostname or "", "model": holder.account.model}
    rests = {"rest": rest, "longest": LONGEST_REST}
    with connection.transaction():
        row = connection.execute(query("leases", "account"), {**values, **named, **rests}).fetchone()
        others = [Lease(wanted=w, granted=g) for w, g in connection.execute(query("leases", "others"), values)]
        given = grant(wanted, others)
        lease = {"process": holder.process, "wanted": wanted, "granted": given.granted}
        connection.execute(query("leases", "renew"), {**values, **lease})
    return given, float(row[0]) if row else 0.0


def leave(connection: Connection, holder: Holder) -> None:
    """Return a lease. Raises ``psycopg.Error``."""
    connection.execute(query("leases", "leave"), {"account": holder.account.digest(), "holder": holder.id})
