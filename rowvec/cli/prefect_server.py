"""The Prefect server that a command starts for itself if none is configured; it keeps nothing outside ROWVEC_HOME.

Prefect would start one of its own: with the database in the user's Prefect home, which another Prefect may have made;
in the terminal's process group, so that Ctrl-C ends it before the run has reported its end; open to every user of the
machine; and it would survive a command that is killed.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from importlib.metadata import entry_points, version
from typing import IO, Any

from rowvec.cli.ending import ENDING
from rowvec.errors import MachineError
from rowvec.runtime.home import home_folder
from rowvec.runtime.memory import MIB, ONE_BATCH, require

_READY_SECONDS = 180.0
_LOOK_SECONDS = 0.1
_TRIES = 3
# Measured: 220 to 250 MiB.
_SERVER_BYTES = 250 * MIB
_LAST = 4000
_FAILURE = re.compile(r"^\w[\w.]*(?:Error|Exception|Exit)\b.*")


@contextmanager
def prefect_api() -> Generator[None]:
    """Within this context, flows report to the user's Prefect server or, if none is configured, to one of our own.

    The environment and the user's profile configure one. Raises ``MachineError`` if our own does not start. If it ends
    by itself later, so does the command.
    """
    tasks = _tasks()
    if tasks.is_configured():
        yield
        return
    require(_SERVER_BYTES + ONE_BATCH, "a command that starts a Prefect server for itself")
    server = _Server()
    try:
        server.start()
        ENDING.at_end(server.kill)
        server.watch()
        with tasks.reporting_to(server.api, server.secret):
            yield
    finally:
        server.stop()


def _tasks() -> Any:
    """The module that knows Prefect's settings; the core knows nothing of Prefect."""
    for point in entry_points(group="rowvec.server", name="prefect"):
        return point.load()
    raise MachineError("the tasks of rowvec are not installed; install rowvec again")


class _Server:
    def __init__(self) -> None:
        self.secret = f"rowvec:{secrets.token_urlsafe(24)}"
        self.api = ""
        self._folder = home_folder("prefect")
        # One database per version: another version's may have tables that this one does not know.
        self._database = self._folder / f"commands-{version('prefect')}.db"
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        self._users: int | None = None
        self._stopped = False

    def start(self) -> None:
        """Start the server and wait until it answers. Raises ``MachineError`` with its own words if it ends."""
        self._log = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 # closed by `stop`
        self._users = os.open(self._folder / "commands.users", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        starting = os.open(self._folder / "commands.starting", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            # Two servers must not create the tables of one database at once.
            fcntl.flock(starting, fcntl.LOCK_EX)
            for attempt in range(_TRIES):
                fcntl.flock(self._users, fcntl.LOCK_SH)
                said = self._start_once()
                if said is None:
                    return
                if attempt + 1 == _TRIES or not self._remove_database():
                    raise MachineError(
                        f"the Prefect server that this command starts for itself has ended: {said}; its files are in "
                        f"{self._folder}; PREFECT_API_URL names a server of yours instead"
                    )
        finally:
            os.close(starting)

    def _start_once(self) -> str | None:
        """Start it; returns its last words if it ends before it answers."""
        import httpx  # late: most commands need no server

        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.api = f"http://127.0.0.1:{port}/api"
        words = ["uvicorn", "--factory", "prefect.server.api.server:create_app", "--lifespan", "on"]
        words += ["--host", "127.0.0.1", "--port", str(port), "--log-level", "error"]
        self._process = process = subprocess.Popen(  # noqa: S603 # Prefect's own server
            [sys.executable, "-m", "rowvec.runtime.tethered", *words],
            cwd=self._folder,
            env=self._environment(),
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )
        end = time.monotonic() + _READY_SECONDS
        while process.poll() is None:
            with suppress(httpx.HTTPError):
                if httpx.get(f"{self.api}/health", timeout=5).is_success:
                    return None
            if time.monotonic() > end:
                self.kill()
                return f"it did not answer within {_READY_SECONDS:.0f} seconds"
            time.sleep(_LOOK_SECONDS)
        return self._last_words()

    def watch(self) -> None:
        """End the command as soon as the server ends by itself."""

        def wait() -> None:
            if self._process is not None:
                self._process.wait()
                if not self._stopped:
                    ENDING.because(
                        f"the Prefect server that this command started has ended: {self._last_words()}; what was paid "
                        "for is kept: run again"
                    )

        threading.Thread(target=wait, daemon=True).start()

    def kill(self) -> None:
        """End it without waiting."""
        self._stopped = True
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGKILL)

    def stop(self) -> None:
        """End it: with its standard input it ends at once."""
        self._stopped = True
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self.kill()
                self._process.wait()
        if self._log is not None:
            self._log.close()
        if self._users is not None:
            os.close(self._users)
            self._users = None

    def _environment(self) -> dict[str, str]:
        """Nothing of the user's Prefect: neither its settings nor its files."""
        others = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        return {
            **others,
            "PREFECT_HOME": str(self._folder),
            "PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{self._database}",
            "PREFECT_SERVER_API_AUTH_STRING": self.secret,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_UI_ENABLED": "0",
            "PREFECT__SERVER_EPHEMERAL": "1",
            "PREFECT__SERVER_FINAL": "1",
        }

    def _remove_database(self) -> bool:
        """Delete a database that the server cannot use, as a kill may leave one; False if others use it."""
        if self._users is None or not self._database.exists():
            return False
        try:
            fcntl.flock(self._users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        for file in self._folder.glob(f"{self._database.name}*"):
            with suppress(OSError):
                file.unlink(missing_ok=True)
        return not self._database.exists()

    def _last_words(self) -> str:
        if self._log is None or self._process is None:
            return "it said nothing"
        self._log.seek(0)
        lines = [line.strip() for line in self._log.read().decode(errors="replace").splitlines() if line.strip()]
        named = [line for line in lines if _FAILURE.match(line) and "SystemExit" not in line]
        status = self._process.returncode
        how = f"killed by signal {-status}" if status is not None and status < 0 else f"exit status {status}"
        return (named or lines or [how])[-1][:_LAST].rstrip(".")
