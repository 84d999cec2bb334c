"""Leases of an embedder's account in the ledger: what each process may use of its limits for the next seconds."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit
from uuid import UUID

from rowvec.embedders.rate_limit.limiter import Account
from rowvec.embedders.rate_limit.shares import Grant, Lease, grant
from rowvec.postgres.connection import Connection, connect
from rowvec.postgres.migrations import install
from rowvec.postgres.queries import query

LEASE_SECONDS = 6.0
"""How long the share of a process is kept for it that was killed, or that the network has cut off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """One process that asks one account."""

    id: UUID
    process: str
    """Machine and process number, for people."""
    account: Account


def open_pace_ledger(url: str, *, installed: bool) -> Connection:
    """A connection whose statements give up soon. ``installed``: whether the schema is known to be there.

    Raises ``DatabaseUnavailable`` or ``TargetError``.
    """
    connection = connect(url, application="rowvec pace")
    try:
        if not installed:
            install(connection)
        connection.execute(query("pace", "session"))
    except BaseException:
        connection.close()
        raise
    return connection


def renew(connection: Connection, holder: Holder, *, wanted: float, rest: float) -> tuple[Grant, float]:
    """Take or prolong a lease, in one short transaction; processes that share an account take turns at it.

    ``wanted``: of the account's limits, 0 to 1. ``rest``: seconds that the provider has asked this process to wait
    from now. Returns what is granted, and the seconds to wait that the provider has asked any process for.
    """
    values = {"account": holder.account.digest(), "holder": holder.id}
    named = {"address": urlsplit(holder.account.address).hostname or "", "model": holder.account.model}
    with connection.transaction():
        row = connection.execute(query("pace", "account"), {**values, **named, "rest": rest}).fetchone()
        others = [Lease(wanted=w, granted=g) for w, g in connection.execute(query("pace", "others"), values)]
        given = grant(wanted, others)
        lease = {"process": holder.process, "wanted": wanted, "granted": given.granted, "seconds": LEASE_SECONDS}
        connection.execute(query("pace", "renew"), {**values, **lease})
    return given, float(row[0]) if row else 0.0


def leave(connection: Connection, holder: Holder) -> None:
    """Give a lease back."""
    connection.execute(query("pace", "leave"), {"account": holder.account.digest(), "holder": holder.id})
