"""The Prefect server that a command starts for itself if none is configured; it keeps nothing outside ROWVEC_HOME.

Prefect would start one of its own: with the database in the user's Prefect home, which another Prefect may have made;
in the terminal's process group, so that Ctrl-C ends it before the run has reported its end; open to every user of the
machine; and it would survive a command that is killed.

Nobody looks at this server after the command. So it has a database of its own, a copy of an empty one, which is deleted
at the end; and it runs without the UI and without background services. This module imports little, because the server
is the first thing that such a command starts.

Neither the server nor its clients in the command speak TLS. Prefect would still load all authorities of certifi for
each client, in 23 ms. So it gets a file with one authority, the least that OpenSSL takes.
"""

from __future__ import annotations

import fcntl
import http.client
import os
import re
import secrets
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from importlib.metadata import version
from pathlib import Path
from typing import IO

from rowvec.errors import MachineError
from rowvec.runtime.home import home_folder
from rowvec.runtime.memory import MIB, ONE_BATCH, require
from rowvec.runtime.prefect_server import one_authority
from rowvec.runtime.private import FILE_MODE

_READY_SECONDS = 180.0
# Measured: 220 to 250 MiB.
_SERVER_BYTES = 250 * MIB
_LAST = 4000
_FAILURE = re.compile(r"^\w[\w.]*(?:Error|Exception|Exit)\b.*")
_FOLDERS = "server-"
_LOCK = "lock"
# A folder without a lock is one that a command makes at this moment, or that a command which was killed has left.
_MAKING_SECONDS = 60.0


class OwnServer:
    """One server, from its start to its end."""

    def __init__(self) -> None:
        """Start the server without waiting for it.

        Raises ``MachineError`` if there is too little memory, or if ROWVEC_HOME cannot be used.
        """
        require(_SERVER_BYTES + ONE_BATCH, "a command that starts a Prefect server for itself")
        self.secret = f"rowvec:{secrets.token_urlsafe(24)}"
        self._home = home_folder("prefect")
        # One per version: the tables of another version may differ.
        self._empty = self._home / f"empty-{version('prefect')}.db"
        _remove_leftovers(self._home)
        self._folder, self._lock = _locked_folder(self._home)
        self.authority = one_authority(self._folder)
        """The file of authorities for its clients, which speak no TLS."""
        self._log: IO[bytes] = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 # closed by `stop`
        self._stopped = False
        self._process, self._port, self._copied = self._launch()

    @property
    def api(self) -> str:
        """Its address, for PREFECT_API_URL."""
        return f"http://127.0.0.1:{self._port}/api"

    def wait(self) -> None:
        """Wait until the server answers. Raises ``MachineError`` with its own words if it ends before."""
        reason = self._answer()
        if reason is not None:
            raise MachineError(
                f"the Prefect server that this command starts for itself has ended: {reason}; its files are in "
                f"{self._home}; PREFECT_API_URL names a server of yours instead"
            )
        if not self._copied:
            self._keep_empty()

    def watch(self, on_end: Callable[[str], None]) -> None:
        """Call ``on_end`` with the server's last words as soon as it ends by itself."""

        def wait() -> None:
            self._process.wait()
            if not self._stopped:
                on_end(self._last_words())

        threading.Thread(target=wait, daemon=True).start()

    def kill(self) -> None:
        """End it without waiting."""
        self._stopped = True
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGKILL)

    def stop(self) -> None:
        """End it and delete its database: with its standard input it ends at once. A second call does nothing."""
        self._stopped = True
        if self._log.closed:
            return
        self._end_process()
        self._log.close()
        shutil.rmtree(self._folder, ignore_errors=True)
        os.close(self._lock)

    @property
    def _database(self) -> Path:
        return self._folder / "prefect.db"

    def _launch(self) -> tuple[subprocess.Popen[bytes], int, bool]:
        """Start the process; returns it, its port, and whether its database is a copy of an empty one."""
        copied = _has_tables(self._empty)
        if copied:
            shutil.copyfile(self._empty, self._database)
        words = [
            "uvicorn",
            "--factory",
            "prefect.server.api.server:create_app",
            "--lifespan",
            "on",
            "--log-level",
            "error",
        ]
        # The socket listens before the server runs: a client connects at once and waits for the answer, and no other
        # process can take the port.
        with socket.create_server(("127.0.0.1", 0), backlog=128) as listening:
            process = subprocess.Popen(  # noqa: S603 # Prefect's own server
                [sys.executable, "-m", "rowvec.runtime.tethered", *words, "--fd", str(listening.fileno())],
                cwd=self._folder,
                env=self._environment(migrate=not copied),
                stdin=subprocess.PIPE,
                stdout=self._log,
                stderr=self._log,
                start_new_session=True,
                pass_fds=(listening.fileno(),),
                umask=0o077,
            )
            return process, listening.getsockname()[1], copied

    def _answer(self) -> str | None:
        """Wait for an answer; returns the server's last words if it ends before."""
        with closing(http.client.HTTPConnection("127.0.0.1", self._port, timeout=_READY_SECONDS)) as connection:
            try:
                connection.request("GET", "/api/health")
                if connection.getresponse().status == http.client.OK:
                    return None
            except TimeoutError:
                self._end_process()
                return f"it did not answer within {_READY_SECONDS:.0f} seconds"
            except (OSError, http.client.HTTPException):
                pass  # the connection ends with the server, whose own words say more
        self._end_process()
        return self._last_words()

    def _end_process(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _environment(self, *, migrate: bool) -> dict[str, str]:
        """Nothing of the user's Prefect: neither its settings nor its files."""
        others = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        return {
            **others,
            "PREFECT_HOME": str(self._folder),
            "PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{self._database}",
            "PREFECT_API_DATABASE_MIGRATE_ON_START": str(migrate),
            "PREFECT_API_BLOCKS_REGISTER_ON_START": str(migrate),
            "PREFECT_SERVER_API_AUTH_STRING": self.secret,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_UI_ENABLED": "0",
            "PREFECT__SERVER_EPHEMERAL": "1",
            "PREFECT__SERVER_WEBSERVER_ONLY": "1",
            "PREFECT__SERVER_FINAL": "1",
            "SSL_CERT_FILE": str(self.authority),
            "DO_NOT_TRACK": "1",
        }

    def _keep_empty(self) -> None:
        """Keep the tables that this server has made, for the next command: making them takes a second."""
        copy = self._folder / "empty.db"
        copy.touch(FILE_MODE)
        with closing(sqlite3.connect(self._database)) as made, closing(sqlite3.connect(copy)) as kept:
            made.backup(kept)
        copy.replace(self._empty)

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = [line.strip() for line in self._log.read().decode(errors="replace").splitlines() if line.strip()]
        named = [line for line in lines if _FAILURE.match(line) and "SystemExit" not in line]
        status = self._process.returncode
        how = f"killed by signal {-status}" if status is not None and status < 0 else f"exit status {status}"
        return (named or lines or [how])[-1][:_LAST].rstrip(".")


def _has_tables(database: Path) -> bool:
    """Whether a database can be copied; a machine that lost power while it was written may have left half of it."""
    try:
        with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as found:
            return found.execute("SELECT count(*) FROM block_type").fetchone() != (0,)
    except sqlite3.Error:
        return False


def _locked_folder(home: Path) -> tuple[Path, int]:
    """A new folder, and the lock that says that it is in use; the system releases it with the process."""
    folder = Path(tempfile.mkdtemp(prefix=_FOLDERS, dir=home))
    lock = os.open(folder / "making", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
    fcntl.flock(lock, fcntl.LOCK_EX)
    (folder / "making").rename(folder / _LOCK)
    return folder, lock


def _remove_leftovers(home: Path) -> None:
    """Delete the folders of commands that were killed."""
    for folder in home.glob(f"{_FOLDERS}*"):
        try:
            lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            with suppress(OSError):
                if time.time() - folder.stat().st_mtime > _MAKING_SECONDS:
                    shutil.rmtree(folder, ignore_errors=True)
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        else:
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(lock)
