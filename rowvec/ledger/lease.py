"""The lease of a pipeline in the ledger: a number that only grows says which run may pay and write.

Each process that works for a run gets the lease as a value. Every transaction of the run checks it just before it
commits, so that nothing of a run is written once a newer lease exists. docs/decisions/0013-run-lease.md says why.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

from psycopg import errors as pg

from rowvec.errors import LeaseLost
from rowvec.ledger.pipelines import PipelineId
from rowvec.pipeline import Pipeline
from rowvec.postgres.connection import Connection, connect_target, lost_connections_are_retriable
from rowvec.postgres.locks import LockSpace
from rowvec.postgres.queries import query
from rowvec.runtime.process import Process, this_process


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """One run's right to a pipeline."""

    pipeline_id: PipelineId
    number: int
    """Greater than the number of each earlier lease of the pipeline."""
    seconds: float
    """How long another run must see no renewal before it may take the lease over."""
    pipeline: str
    """The pipeline's name, for messages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """A pipeline's lease as another process sees it."""

    number: int
    held: bool
    """False if its last owner has given it up."""
    renewals: int
    seconds: float
    owner: Process


@contextmanager
def open_owned(
    pipeline: Pipeline, lease: Lease, application: str = "rowvec", *, computes: bool = False
) -> Generator[Connection]:
    """As ``open_target``, with a connection that commits nothing once the lease is lost.

    If this process is stopped in a transaction, the server ends it, so that the next run need not wait for its locks;
    unless the client ``computes`` in its transactions.
    """
    target = pipeline.target
    limits = None if computes else {"idle_in_transaction_session_timeout": f"{round(lease.seconds * 1000)}ms"}
    with (
        lost_connections_are_retriable(),
        connect_target(target, application, limits) as connection,
        owned(connection, lease),
    ):
        yield connection


@contextmanager
def owned(connection: Connection, lease: Lease) -> Generator[None]:
    """Within this context no transaction of the connection commits a change unless the lease is held.

    Raises ``LeaseLost`` at the end of such a transaction.
    """
    before = connection.before_commit

    def check(on: Connection) -> None:
        if before:
            before(on)
        _check(on, lease)

    connection.before_commit = check
    try:
        yield
    finally:
        connection.before_commit = before


@contextmanager
def whoever_owns(connection: Connection) -> Generator[None]:
    """Within this context the connection writes without a lease: what was paid for is recorded in any case."""
    before, connection.before_commit = connection.before_commit, None
    try:
        yield
    finally:
        connection.before_commit = before


def check_owner(connection: Connection, lease: Lease) -> None:
    """Ask the ledger. Raises ``LeaseLost`` if the lease is not held any more."""
    values = {"pipeline_id": lease.pipeline_id, "number": lease.number}
    row = connection.execute(query("run_leases", "is_owner"), values).fetchone()
    if not (row and row[0]):
        raise lost(lease)


def lost(lease: Lease) -> LeaseLost:
    """The error of a run whose lease is gone."""
    return LeaseLost(
        f"this run has lost the pipeline {lease.pipeline}: another run took over after this one had not renewed its "
        f"lease for {lease.seconds:g} seconds, or the database was set back; nothing more is paid for or changed, and "
        "the next run uses what was paid for; see what stopped this process or kept it from the database"
    )


def look(connection: Connection, pipeline_id: PipelineId) -> Standing:
    """How the pipeline's lease stands."""
    values = {"pipeline_id": pipeline_id}
    row = connection.execute(query("run_leases", "look"), values).fetchone()
    if row is None:
        with connection.transaction():
            connection.execute(query("run_leases", "create"), values)
            connection.execute(query("run_leases", "create_renewals"), values)
        row = connection.execute(query("run_leases", "look"), values).fetchone()
    return _standing(row or ())


def take(connection: Connection, pipeline_id: PipelineId, seen: Standing, seconds: float) -> int | None:
    """Take the lease, if it still stands as it was seen; returns its number, or None if it does not stand so."""
    values = {"pipeline_id": pipeline_id, "seconds": seconds}
    me = this_process()
    process = {"machine": me.machine, "pid": me.pid, "started": me.started}
    try:
        with connection.transaction():
            if _standing(connection.execute(query("run_leases", "lock"), values).fetchone() or ()) != seen:
                return None
            row = connection.execute(query("run_leases", "take"), {**values, **process}).fetchone()
            number = int(row[0]) if row else 0
            connection.execute(query("run_leases", "start_renewals"), {**values, "number": number})
            return number
    except pg.LockNotAvailable:
        # A transaction of the owner is about to commit.
        return None


def is_run_by_old_version(connection: Connection, pipeline_id: PipelineId) -> bool:
    """Whether a run of a version of rowvec that knew no leases is at work on the pipeline."""
    values = {"space": LockSpace.RUN, "pipeline_id": pipeline_id}
    row = connection.execute(query("run_leases", "is_run_by_old_version"), values).fetchone()
    return bool(row and row[0])


def renew(connection: Connection, lease: Lease) -> bool:
    """Renew the lease; returns False if another run has it. Raises ``psycopg.Error``."""
    values = {"pipeline_id": lease.pipeline_id, "number": lease.number, "seconds": lease.seconds}
    return connection.execute(query("run_leases", "renew"), values).fetchone() is not None


def give_up(connection: Connection, lease: Lease) -> None:
    """Give the lease up, so that the next run need not wait. Raises ``psycopg.Error``."""
    values = {"pipeline_id": lease.pipeline_id, "number": lease.number}
    connection.execute(query("run_leases", "give_up"), values)


def _check(connection: Connection, lease: Lease) -> None:
    """The last statement of a transaction of the lease's owner."""
    (has_written,) = connection.execute(query("run_leases", "has_written")).fetchone() or (True,)
    if not has_written:
        return
    values = {"pipeline_id": lease.pipeline_id, "number": lease.number}
    try:
        row = connection.execute(query("run_leases", "check"), values).fetchone()
    except pg.SerializationFailure:
        # The lease was taken after this transaction had its snapshot.
        raise lost(lease) from None
    if row is None:
        raise lost(lease)


def _standing(row: tuple[int, bool, int, float, str, int, int] | tuple[()]) -> Standing:
    if not row:
        raise LookupError("the ledger has no lease of this pipeline")  # `look` has made one, and none is deleted
    number, held, renewals, seconds, machine, pid, started = row
    owner = Process(machine=machine, pid=pid, started=started)
    return Standing(number=number, held=held, renewals=renewals, seconds=seconds, owner=owner)
