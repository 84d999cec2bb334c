"""Two Postgres servers: the second is a standby of the first, and takes over when the first is killed."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import psycopg
from psycopg.conninfo import make_conninfo

from rowvec.postgres.embedded.cluster import DATABASE_USER, Cluster, program
from tests.support.waiting import PATIENCE_SECONDS, wait_for

_SETTINGS = (
    # The machine itself does not crash: what a killed process has written is there.
    "fsync = off",
    "wal_receiver_status_interval = '1s'",
    "wal_retrieve_retry_interval = '100ms'",
)
_STANDBYS = "SELECT sync_state = 'sync', replay_lsn = sent_lsn FROM pg_stat_replication"


class Server:
    """One of the two."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._beside = folder.with_name(f"{folder.name}.run")
        self._beside.mkdir()
        self._cluster = Cluster(folder)

    @property
    def url(self) -> str:
        """The DSN of its database ``postgres``."""
        return make_conninfo(host=str(self.folder), user=DATABASE_USER, dbname="postgres")

    def start(self) -> None:
        """Start it, the first time or again; returns once it accepts connections."""
        self._cluster.prepare(self._beside)
        with (self._beside / "log").open("ab") as log:
            status = self._cluster.start(self.folder, log)
        assert status == 0, (self._beside / "log").read_text()[-2000:]
        wait_for(self._answers)

    def restart(self) -> None:
        """End all sessions, stop and start: what an update of the server does."""
        self._cluster.stop()
        self.start()

    def kill(self) -> None:
        """SIGKILL of the postmaster; returns once its backends, which then end by themselves, are gone too."""
        found = self._cluster.postmaster()
        if found is None:
            return
        postmaster = psutil.Process(found.pid)
        family = [postmaster, *postmaster.children(recursive=True)]
        postmaster.kill()
        _, alive = psutil.wait_procs(family, timeout=PATIENCE_SECONDS)
        assert not alive, "a backend has outlived its postmaster"

    def ask(self, *statements: str) -> list[tuple[Any, ...]]:
        """Execute statements on a connection of their own; returns the rows of the last one."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            found: list[tuple[Any, ...]] = []
            for statement in statements:
                cursor = connection.execute(statement.encode())
                found = cursor.fetchall() if cursor.description else []
        return found

    def copy_to(self, folder: Path) -> Server:
        """A standby of this server, which is not started yet."""
        words = ["-D", folder, "-h", self.folder, "-U", DATABASE_USER, "-R", "-c", "fast", "--no-sync"]
        subprocess.run([program("pg_basebackup"), *words], check=True, capture_output=True)  # noqa: S603 # the wheel's
        # The socket of this server is in its folder, and is locked.
        for socket in folder.glob(".s.PGSQL.*"):
            socket.unlink()
        for path in (folder, *folder.rglob("*")):
            os.chown(path, self.folder.stat().st_uid, -1)
        return Server(folder)

    def _answers(self) -> bool:
        with suppress(psycopg.OperationalError):
            self.ask("SELECT 1")
            return True
        return False


class Replicated:
    """A primary and its standby."""

    def __init__(self, folder: Path, *, synchronous: bool) -> None:
        self._folder, self._synchronous = folder, synchronous
        self._made = 0
        self.primary = Server(self._next())
        self.primary.start()
        self.primary.ask(*(f"ALTER SYSTEM SET {setting}" for setting in _SETTINGS), "SELECT pg_reload_conf()")
        self.standby: Server | None = None

    def add_standby(self) -> None:
        """A new standby of the primary; returns once it has all that the primary has committed."""
        self.standby = self.primary.copy_to(self._next())
        if self._synchronous:
            self.primary.ask("ALTER SYSTEM SET synchronous_standby_names = '*'", "SELECT pg_reload_conf()")
        self.standby.start()
        wait_for(self.is_caught_up)

    def is_caught_up(self) -> bool:
        """Whether the standby has all that the primary has committed."""
        return (self._synchronous, True) in self.primary.ask(_STANDBYS)

    def cut_off(self) -> None:
        """From now on the standby gets nothing of what the primary commits."""
        assert self.standby is not None
        self.standby.ask("ALTER SYSTEM SET primary_conninfo = ''", "SELECT pg_reload_conf()")
        wait_for(lambda: self.primary.ask(_STANDBYS) == [])

    def promote(self) -> None:
        """The primary is killed, and its standby becomes the primary; there is no standby then."""
        assert self.standby is not None
        self.primary.kill()
        shutil.rmtree(self.primary.folder)
        self.primary, self.standby = self.standby, None
        # Written by the former primary; nothing would be committed until there is a standby.
        self.primary.ask(
            "SELECT pg_promote()",
            "ALTER SYSTEM RESET synchronous_standby_names",
            "SELECT pg_reload_conf()",
        )

    def remove(self) -> None:
        """Stop both."""
        for server in (self.primary, self.standby):
            if server is not None:
                server.kill()

    def _next(self) -> Path:
        self._made += 1
        return self._folder / f"pg{self._made}"


@contextmanager
def replicated(*, synchronous: bool) -> Generator[Replicated]:
    """A primary with a standby, in folders that PgBouncer may enter."""
    # A short path: the path of a Unix socket may have 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="rvr"))
    folder.chmod(0o755)
    servers = Replicated(folder, synchronous=synchronous)
    try:
        servers.add_standby()
        yield servers
    finally:
        servers.remove()
        shutil.rmtree(folder, ignore_errors=True)
