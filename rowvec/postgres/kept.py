"""Connections that a run keeps open between its stages, because a new one costs more than most statements.

A session holds nothing between two transactions (``rowvec.postgres.session``), so the next stage can use the one that
the stage before has ended with.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress

import psycopg

from rowvec.postgres.session import Connection

_lock = threading.Lock()
_users = 0
"""How many contexts of ``connections_kept`` this process is in, in all its threads."""
_idle: list[tuple[str, Connection]] = []
"""Connections that nobody uses, and the DSN of each."""
_changes = 0
"""How often names have changed since this process began."""


@contextmanager
def connections_kept() -> Generator[None]:
    """Within this context, a session that ends stays open for the next one; at its end all of them are closed."""
    global _users
    with _lock:
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            last = not _users
        if last:
            forget()


def changes_of_names() -> int:
    """How often names have changed so far: ask before a connection is taken or opened, for ``keep_or_close``."""
    return _changes


def take(url: str) -> Connection | None:
    """A kept connection, if there is one to this server; it may have been lost meanwhile, and then opens again."""
    with _lock:
        for place, (known, connection) in enumerate(_idle):
            if known == url:
                del _idle[place]
                return connection
    return None


def keep_or_close(url: str, connection: Connection, changes: int) -> None:
    """Keep a connection, whose user has ended well, for the next one.

    It is closed if nobody will come, or if names have changed since there were so many ``changes`` of them.
    """
    with suppress(psycopg.Error):
        connection.end_session()
    with _lock:
        keeps = bool(_users) and changes == _changes and connection.is_at_rest
        if keeps:
            _idle.append((url, connection))
    if not keeps:
        connection.close()


def forget() -> None:
    """Close the kept connections, and those in use once their users have ended.

    Nobody will come for them, or names have changed, such as the schema of pgvector.
    """
    global _changes
    with _lock:
        _changes += 1
        over = [connection for _, connection in _idle]
        _idle.clear()
    for connection in over:
        connection.close()


def _begin_in_child() -> None:
    """A forked process neither uses nor closes the connections of its parent."""
    global _lock, _users
    _lock, _users = threading.Lock(), 0
    _idle.clear()


os.register_at_fork(after_in_child=_begin_in_child)
