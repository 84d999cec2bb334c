"""Connections to Postgres: how they are opened, and the errors of rowvec that a failure becomes."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from typing import TypeVar

import psycopg
from psycopg import errors as pg
from psycopg.conninfo import conninfo_to_dict

from rowvec.errors import DatabaseUnavailable, TargetError
from rowvec.pipeline import Pipeline
from rowvec.pipeline.model import Target
from rowvec.postgres.embedded import embedded_database_url
from rowvec.postgres.kept import changes_of_names, keep_or_close, take
from rowvec.postgres.migrations import refuse_newer
from rowvec.postgres.queries import query
from rowvec.postgres.session import Connection

# How long a transaction that cannot get its locks is tried again. Each try waits a second for a lock
# (sql/transaction.sql) and then gives up its snapshot, for which every CREATE INDEX CONCURRENTLY in the database waits.
LOCK_PATIENCE_SECONDS = 30.0

T = TypeVar("T")

logger = logging.getLogger(__name__)


def target_url(url: str | None) -> str:
    """The DSN of the vector table's database: the pipeline's, else ROWVEC_DATABASE_URL, else the embedded Postgres."""
    return url or os.environ.get("ROWVEC_DATABASE_URL") or embedded_database_url()


def connect(url: str, *, application: str = "rowvec", limits: Mapping[str, str] | None = None) -> Connection:
    """An autocommit connection whose transactions make the settings of ``rowvec.postgres.settings``.

    ``limits``: other values than there, by name. Raises ``DatabaseUnavailable`` if the server does not answer,
    ``TargetError`` if it refuses. Neither message repeats the DSN, which may hold a password, nor a piece of a password
    that was not percent-encoded and so taken for a host.
    """
    try:
        connection = Connection.connect(
            url,
            autocommit=True,
            # A pooler gives the session to others, who do not know what was prepared in it.
            prepare_threshold=None,
            client_encoding="utf8",
            # Each transaction says what it is for.
            application_name="rowvec",
            connect_timeout=15,
        )
    except (psycopg.ProgrammingError, UnicodeError):
        raise TargetError("the database URL cannot be read; write postgresql://user@host:port/database") from None
    except psycopg.OperationalError as error:
        raise _refused(error, url) from None
    try:
        connection.settle(application, limits or {})
    except psycopg.OperationalError as error:
        connection.close()
        raise DatabaseUnavailable(f"the connection to the database was lost: {_first_line(error)}") from None
    return connection


@contextmanager
def connect_target(target: Target, application: str, limits: Mapping[str, str] | None = None) -> Generator[Connection]:
    """As ``session``, with the vector table's database; the references of ``target`` must be resolved."""
    with session(target_url(target.url), application, limits) as connection:
        if target.direct_url is not None:
            connection.open_direct = partial(_connect_directly, target.direct_url, application, limits)
        yield connection


@contextmanager
def session(url: str, application: str, limits: Mapping[str, str] | None = None) -> Generator[Connection]:
    """As ``connect``, for the time of the context.

    Within ``connections_kept`` the session is one that has served others, and stays open for the next.
    """
    changes = changes_of_names()
    connection = take(url)
    if connection is None:
        connection = connect(url, application=application, limits=limits)
    else:
        connection.settle_again(application, limits or {})
    try:
        yield connection
    except BaseException:
        with suppress(psycopg.Error):
            connection.rollback()
        connection.close()
        raise
    keep_or_close(url, connection, changes)


def _connect_directly(url: str, application: str, limits: Mapping[str, str] | None) -> Connection:
    try:
        return connect(url, application=application, limits=limits)
    except TargetError as error:
        raise TargetError(f"target.direct_url: {error}") from None
    except DatabaseUnavailable as error:
        raise DatabaseUnavailable(f"target.direct_url: {error}") from None


@contextmanager
def lost_connections_are_retriable() -> Generator[None]:
    """Turn psycopg's errors into those of rowvec.

    Raises ``DatabaseUnavailable`` if the server was restarted, is overloaded, or another session holds a lock, and
    ``TargetError`` for every other error of the database.
    """
    try:
        yield
    except psycopg.Error as error:
        raise _translated(error) from error


def without_blocking(attempt: Callable[[], T]) -> T:
    """Try a transaction again, for up to 30 seconds, while another session holds a lock that it needs.

    Between the tries it holds no snapshot and no lock, so that other pipelines do not wait for it. Raises psycopg's
    ``LockNotAvailable`` when the time is over, and what ``attempt`` raises.
    """
    end = time.monotonic() + LOCK_PATIENCE_SECONDS
    while True:
        try:
            return attempt()
        except pg.LockNotAvailable as error:
            if time.monotonic() > end:
                raise
            logger.info("the database did not give a lock in time: %s; trying again", _first_line(error))


def use_one_snapshot(connection: Connection) -> None:
    """Settle a transaction, which has just begun, for comparing whole tables; see ``sql/transaction.sql``.

    The snapshot is that of the transaction's next query. A statement that waits a second for a lock fails, for
    ``without_blocking`` to try the transaction again.
    """
    connection.execute(query("transaction", "begin"))


def expect_few_keys(connection: Connection) -> None:
    """Let the rest of a transaction look up a few keys of large tables by index; see ``sql/transaction.sql``."""
    connection.execute(query("transaction", "few_keys"))


def _translated(error: psycopg.Error) -> DatabaseUnavailable | TargetError:
    """The error of rowvec for a statement that failed."""
    sentence = _first_line(error)
    match error:
        case pg.LockNotAvailable() | pg.QueryCanceled() | pg.DeadlockDetected() | pg.SerializationFailure():
            return DatabaseUnavailable(f"the database kept us waiting: {sentence}; pg_locks shows who holds a lock")
        # A server that sheds load recovers by itself; a full disk does not.
        case pg.DiskFull() | pg.OutOfMemory() | pg.ConfigurationLimitExceeded():
            return TargetError(f"the database is out of room: {sentence}; free some and run again")
        case pg.ProgramLimitExceeded():
            return TargetError(f"the database refused what is beyond its limits: {sentence}")
        case pg.ReadOnlySqlTransaction():
            return TargetError(
                f"the target database takes no writes: {sentence}; it is a standby, it is out of room, or "
                "default_transaction_read_only is set: give rowvec the primary, or fix that, and run again"
            )
        case pg.InsufficientPrivilege():
            return TargetError(f"{sentence}; docs/how-to/operations.md lists the grants a role needs")
        case psycopg.OperationalError() | psycopg.InterfaceError():
            return DatabaseUnavailable(f"the connection to the database was lost: {sentence}")
        case _:
            # A trigger or constraint of the user, or a type that cannot be cast: the SQL state describes it best.
            return TargetError(f"the database refused: {sentence} (SQLSTATE {error.sqlstate})")


def _refused(error: psycopg.OperationalError, url: str) -> DatabaseUnavailable | TargetError:
    if _torn(url):
        # libpq and the resolver quote what they took for a host or a port: here a piece of the password.
        return TargetError(
            "the database URL leads nowhere: @ : / ? # in its user or password must be written as %40 %3A %2F %3F %23"
        )
    text = _first_line(error)
    if any(word in text for word in ("authentication failed", "does not exist", "no password", "no pg_hba.conf")):
        return TargetError(f"the database refused the connection: {text}")
    if "too many" in text or "remaining connection slots" in text:
        return DatabaseUnavailable(
            f"the database has no connection free: {text}; a run holds two and opens one more for each stage at work"
        )
    return DatabaseUnavailable(
        f"the database does not answer: {text}; see that it runs and that target.url or ROWVEC_DATABASE_URL leads to it"
    )


def _torn(url: str) -> bool:
    """Whether a DSN seems cut in the wrong places, by a password that was not percent-encoded."""
    parts = conninfo_to_dict(url)
    hosts, ports, names = (str(parts.get(name) or "").split(",") for name in ("host", "port", "dbname"))
    # The name of an abstract socket begins with @, and has no other @.
    return any("@" in name[1:] for name in (*hosts, *names)) or any(port and not port.isdecimal() for port in ports)


def _first_line(error: psycopg.Error) -> str:
    return (error.diag.message_primary or str(error)).strip().splitlines()[0] if str(error) else type(error).__name__


@contextmanager
def open_target(pipeline: Pipeline, application: str = "rowvec") -> Generator[Connection]:
    """A connection to the vector table's database; the pipeline's references must be resolved.

    Raises what ``connect`` raises, and ``TargetError`` if a newer rowvec has made the ledger; errors of the database in
    the ``with`` block become ``DatabaseUnavailable`` or ``TargetError``.
    """
    with (
        lost_connections_are_retriable(),
        connect_target(pipeline.target, application) as connection,
    ):
        refuse_newer(connection)
        yield connection
