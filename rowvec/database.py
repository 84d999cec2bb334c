"""Connections to Postgres: where they lead, and the settings that make text and hashes the same for everybody."""

from __future__ import annotations

import logging
import os
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, LiteralString

import psycopg
from psycopg import errors as pg

from rowvec.errors import DatabaseUnavailable, TargetError
from rowvec.home import embedded_database_url

Connection = psycopg.Connection[tuple[Any, ...]]

# How a value turns into text must not depend on who connects: role and database settings are overridden.
PINNED: LiteralString = """
    SET client_encoding = 'UTF8';
    SET DateStyle = 'ISO, YMD'; SET IntervalStyle = 'postgres'; SET TimeZone = 'UTC'; SET extra_float_digits = 1;
    SET bytea_output = 'hex'; SET lc_monetary = 'C'; SET lc_numeric = 'C'; SET client_min_messages = 'warning'
"""

# 0.8.2 to 0.8.4 mended HNSW: an overflow in parallel builds, vacuum corruption, an unrepaired graph.
MINIMUM_PGVECTOR = (0, 8, 4)

logger = logging.getLogger(__name__)


def target_url(url: str | None) -> str:
    """The DSN of the vector table's database: the pipeline's, else ROWVEC_DATABASE_URL, else the embedded Postgres."""
    return url or os.environ.get("ROWVEC_DATABASE_URL") or embedded_database_url()


def connect(url: str, *, application: str = "rowvec") -> Connection:
    """An autocommit connection with pinned settings.

    Raises ``DatabaseUnavailable`` where the server does not answer, ``TargetError`` where it says no. Neither repeats
    the DSN, which may hold a password.
    """
    try:
        connection = psycopg.connect(url, autocommit=True, application_name=application, connect_timeout=15)
    except psycopg.ProgrammingError:
        raise TargetError("the database URL cannot be read; write postgresql://user@host:port/database") from None
    except psycopg.OperationalError as error:
        raise _refused(error) from None
    connection.execute(PINNED)
    return connection


@contextmanager
def lost_connections_are_retriable() -> Generator[None]:
    """Turn what a restarted, overloaded or locked server raises into ``DatabaseUnavailable``, all else into
    ``TargetError``."""
    try:
        yield
    except (pg.LockNotAvailable, pg.QueryCanceled, pg.DeadlockDetected, pg.SerializationFailure) as error:
        raise DatabaseUnavailable(f"the database kept us waiting: {_first_line(error)}") from error
    except (pg.DiskFull, pg.OutOfMemory) as error:
        raise TargetError(f"the database is out of room: {_first_line(error)}; free some and run again") from error
    except pg.InsufficientPrivilege as error:
        raise TargetError(f"{_first_line(error)}; docs/operations.md lists the grants a role needs") from error
    except (psycopg.OperationalError, psycopg.InterfaceError) as error:
        raise DatabaseUnavailable(f"the connection to the database was lost: {_first_line(error)}") from error
    except psycopg.Error as error:
        # A trigger or constraint of the user's own, a type that cannot be cast: their SQL state says it best.
        raise TargetError(f"the database refused: {_first_line(error)} (SQLSTATE {error.sqlstate})") from error


def _refused(error: psycopg.OperationalError) -> DatabaseUnavailable | TargetError:
    text = _first_line(error)
    if any(word in text for word in ("authentication failed", "does not exist", "no password", "no pg_hba.conf")):
        return TargetError(f"the database refused the connection: {text}")
    return DatabaseUnavailable(f"the database does not answer: {text}")


def _first_line(error: psycopg.Error) -> str:
    return (error.diag.message_primary or str(error)).strip().splitlines()[0] if str(error) else type(error).__name__
