"""An application that shares a pooler with rowvec, and looks at each session that the pooler gives it."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress

import psycopg

_CLIENTS = 3
_AS_IT_IS = """
    SELECT current_setting('lock_timeout'), current_setting('statement_timeout'), current_setting('search_path'),
        current_setting('DateStyle'), current_setting('maintenance_work_mem'), current_setting('client_min_messages'),
        (SELECT count(*) FROM pg_prepared_statements),
        (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()),
        (SELECT count(*) FROM pg_class WHERE relpersistence = 't' AND relnamespace = pg_my_temp_schema())
"""

Session = tuple[object, ...]

UNTOUCHED: Session = ("0", "0", '"$user", public', "ISO, MDY", "64MB", "notice", 0, 0, 0)
"""What a session is like that nobody has left anything in."""


class _Client(threading.Thread):
    """Takes a session from the pool, holds it for a moment, looks at it and gives it back, all the time."""

    def __init__(self, url: str, over: threading.Event, seen: set[Session]) -> None:
        super().__init__(daemon=True)
        self._url, self._over, self._seen = url, over, seen

    def run(self) -> None:
        while not self._over.is_set():
            # The pooler or the server may be restarted; psycopg may see that as two results of one command.
            with (
                suppress(psycopg.OperationalError, psycopg.InternalError),
                psycopg.connect(self._url, autocommit=True, prepare_threshold=None) as connection,
            ):
                self._look(connection)
            self._over.wait(0.05)

    def _look(self, connection: psycopg.Connection[Session]) -> None:
        while not self._over.wait(0.02):
            with connection.transaction():
                self._seen.add(connection.execute(_AS_IT_IS).fetchone() or ())
                self._over.wait(0.002)


@contextmanager
def beside(url: str) -> Generator[set[Session]]:
    """Clients at work while the context is open; what they have found their sessions to be like."""
    over, seen = threading.Event(), set[Session]()
    clients = [_Client(url, over, seen) for _ in range(_CLIENTS)]
    for client in clients:
        client.start()
    try:
        yield seen
    finally:
        over.set()
        for client in clients:
            client.join()
