"""Connections to Postgres: where they lead, and the settings that make text and hashes the same for everybody."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from typing import Any, LiteralString, TypeVar

import psycopg
from psycopg import errors as pg
from psycopg.conninfo import conninfo_to_dict

from rowvec.errors import DatabaseUnavailable, TargetError
from rowvec.pipeline import Pipeline
from rowvec.postgres.embedded import embedded_database_url
from rowvec.postgres.queries import query

Connection = psycopg.Connection[tuple[Any, ...]]

# How a value turns into text must not depend on who connects: role and database settings are overridden. Nor may limits
# that are meant for a web server's queries end a long merge; but nobody waits without end for a lock, for a run that
# does says nothing and holds up its successors.
PINNED: LiteralString = """
    SET client_encoding = 'UTF8';
    SET DateStyle = 'ISO, YMD'; SET IntervalStyle = 'postgres'; SET TimeZone = 'UTC'; SET extra_float_digits = 1;
    SET bytea_output = 'hex'; SET lc_monetary = 'C'; SET lc_numeric = 'C'; SET client_min_messages = 'warning';
    SET lock_timeout = '30s'; SET statement_timeout = 0; SET idle_in_transaction_session_timeout = 0
"""

# How long a transaction is tried for its locks. Each try waits a second for a lock (sql/transaction.sql) and
# then gives up its snapshot, because every CREATE INDEX CONCURRENTLY in the database waits for old snapshots to end.
LOCK_PATIENCE_SECONDS = 30.0

# On a machine with much to do a millisecond passes quickly, and nobody sets less.
_PIN_TRIES = 10

# 0.8.2 to 0.8.4 mended HNSW: an overflow in parallel builds, vacuum corruption, an unrepaired graph.
MINIMUM_PGVECTOR = (0, 8, 4)

T = TypeVar("T")

logger = logging.getLogger(__name__)


def target_url(url: str | None) -> str:
    """The DSN of the vector table's database: the pipeline's, else ROWVEC_DATABASE_URL, else the embedded Postgres."""
    return url or os.environ.get("ROWVEC_DATABASE_URL") or embedded_database_url()


def connect(url: str, *, application: str = "rowvec") -> Connection:
    """An autocommit connection with pinned settings.

    Raises ``DatabaseUnavailable`` where the server does not answer, ``TargetError`` where it says no. Neither repeats
    the DSN, which may hold a password, nor a piece of one that was not percent-encoded and so taken for a host.
    """
    try:
        connection = psycopg.connect(url, autocommit=True, application_name=application, connect_timeout=15)
    except (psycopg.ProgrammingError, UnicodeError):
        raise TargetError("the database URL cannot be read; write postgresql://user@host:port/database") from None
    except psycopg.OperationalError as error:
        raise _refused(error, url) from None
    try:
        _pin(connection)
    except psycopg.OperationalError as error:
        connection.close()
        raise DatabaseUnavailable(f"the connection to the database was lost: {_first_line(error)}") from None
    return connection


def _pin(connection: Connection) -> None:
    """Fix the session's settings. A role's own statement_timeout holds until then, and may be too short even for that.

    As startup options they would not pass every pooler.
    """
    for _ in range(_PIN_TRIES):
        with suppress(pg.QueryCanceled):
            connection.execute(PINNED)
            return
    connection.execute(PINNED)


@contextmanager
def lost_connections_are_retriable() -> Generator[None]:
    """Turn what a restarted, overloaded or locked server raises into ``DatabaseUnavailable``, all else into
    ``TargetError``."""
    try:
        yield
    except psycopg.Error as error:
        raise _translated(error) from error


def without_blocking(attempt: Callable[[], T]) -> T:
    """Try a transaction for as long as somebody else has a lock it needs, without keeping other pipelines waiting."""
    end = time.monotonic() + LOCK_PATIENCE_SECONDS
    while True:
        try:
            return attempt()
        except pg.LockNotAvailable as error:
            if time.monotonic() > end:
                raise
            logger.info("the database kept us waiting: %s; trying again", _first_line(error))


def use_one_snapshot(connection: Connection) -> None:
    """Settle a transaction, which has just begun, for comparing whole tables; see ``sql/transaction.sql``.

    The snapshot is that of the transaction's next query. A statement that waits a second for a lock fails, for
    ``without_blocking`` to try the transaction again.
    """
    connection.execute(query("transaction", "begin"))


def _translated(error: psycopg.Error) -> DatabaseUnavailable | TargetError:
    """What a statement that failed means for the run."""
    sentence = _first_line(error)
    match error:
        case pg.LockNotAvailable() | pg.QueryCanceled() | pg.DeadlockDetected() | pg.SerializationFailure():
            return DatabaseUnavailable(f"the database kept us waiting: {sentence}; who holds a lock is in pg_locks")
        # What a server that sheds load or heals by itself says passes; a full disk does not.
        case pg.DiskFull() | pg.OutOfMemory() | pg.ConfigurationLimitExceeded():
            return TargetError(f"the database is out of room: {sentence}; free some and run again")
        case pg.ProgramLimitExceeded():
            return TargetError(f"the database refused what is beyond its limits: {sentence}")
        case pg.ReadOnlySqlTransaction():
            return TargetError(
                f"the target database takes no writes: {sentence}; it is a standby, it is out of room, or "
                "default_transaction_read_only is set: give rowvec the primary, or mend that, and run again"
            )
        case pg.InsufficientPrivilege():
            return TargetError(f"{sentence}; docs/operations.md lists the grants a role needs")
        case psycopg.OperationalError() | psycopg.InterfaceError():
            return DatabaseUnavailable(f"the connection to the database was lost: {sentence}")
        case _:
            # A trigger or constraint of the user's own, a type that cannot be cast: their SQL state says it best.
            return TargetError(f"the database refused: {sentence} (SQLSTATE {error.sqlstate})")


def _refused(error: psycopg.OperationalError, url: str) -> DatabaseUnavailable | TargetError:
    if _torn(url):
        # libpq and the resolver quote what they took for a host or a port, and it is a piece of the password.
        return TargetError(
            "the database URL leads nowhere: @ : / ? # in its user or password must be written as %40 %3A %2F %3F %23"
        )
    text = _first_line(error)
    if any(word in text for word in ("authentication failed", "does not exist", "no password", "no pg_hba.conf")):
        return TargetError(f"the database refused the connection: {text}")
    if "too many" in text or "remaining connection slots" in text:
        return DatabaseUnavailable(
            f"the database has no connection free: {text}; a run holds one and opens one more for each stage at work"
        )
    return DatabaseUnavailable(
        f"the database does not answer: {text}; see that it runs and that target.url or ROWVEC_DATABASE_URL leads to it"
    )


def _torn(url: str) -> bool:
    """Whether a password that was not percent-encoded makes the rest of a DSN mean something else."""
    parts = conninfo_to_dict(url)
    hosts, ports, names = (str(parts.get(name) or "").split(",") for name in ("host", "port", "dbname"))
    # An abstract socket's name begins with @, and has no other.
    return any("@" in name[1:] for name in (*hosts, *names)) or any(port and not port.isdecimal() for port in ports)


def _first_line(error: psycopg.Error) -> str:
    return (error.diag.message_primary or str(error)).strip().splitlines()[0] if str(error) else type(error).__name__


@contextmanager
def open_target(pipeline: Pipeline, application: str = "rowvec") -> Generator[Connection]:
    """A connection to the vector table's database; the pipeline's references must be resolved.

    What the database raises meanwhile becomes one of our errors.
    """
    with (
        lost_connections_are_retriable(),
        connect(target_url(pipeline.target.url), application=application) as connection,
    ):
        yield connection
