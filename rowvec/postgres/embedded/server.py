"""The embedded Postgres server: its start, its address, and its end. Only the user that started it can reach it."""

from __future__ import annotations

import atexit
import fcntl
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import ClassVar
from urllib.parse import quote

from rowvec.errors import TargetError
from rowvec.postgres.embedded.cluster import DATABASE_USER, Cluster, last_words
from rowvec.postgres.embedded.socket_folder import remove_socket_folder, socket_folder
from rowvec.runtime.home import home
from rowvec.runtime.private import is_private, open_private, private_folder

_READY_SECONDS = 120.0
_LOOK_SECONDS = 0.05


def embedded_database_url() -> str:
    """The DSN of the embedded Postgres. Starts it if it does not run; it stops with the last process that uses it.

    Raises ``TargetError`` if it does not start, and ``MachineError`` if ROWVEC_HOME cannot be used.
    """
    return start_postgres(home() / "postgres").get_uri()


def start_postgres(folder: Path, memory: int | None = None) -> EmbeddedPostgres:
    """A Postgres whose data is in ``folder``; only a Unix socket reaches it, and only as its owner.

    ``memory``: the bytes of memory that its settings are for; left out, those of the machine or the container. A server
    that runs already keeps its settings.

    Raises ``TargetError`` if it does not start, and ``MachineError`` if the folder belongs to another user.
    """
    place = folder.absolute()
    server = EmbeddedPostgres.running.get(place)
    if server is None or server.process != os.getpid():
        server = EmbeddedPostgres(place, memory)
        server.start()
    return server


def release_postgres(server: EmbeddedPostgres) -> None:
    """Stop using a Postgres, which stops if no other process uses it; processes that were killed are not counted."""
    server.cleanup()


def release_all() -> None:
    """Stop using every Postgres that this process uses: for an end that runs no exit handlers."""
    for server in list(EmbeddedPostgres.running.values()):
        server.cleanup()


class EmbeddedPostgres:
    """One process's use of the Postgres in a folder.

    Every process that uses it holds a shared lock, which the system releases with the process, however it ends. The
    process that gets the lock alone is the last one, and stops the server.
    """

    running: ClassVar[dict[Path, EmbeddedPostgres]] = {}
    """The servers that this process uses, by the folder of their data."""

    def __init__(self, folder: Path, memory: int | None = None) -> None:
        self._memory = memory
        self.process = os.getpid()
        """The process that uses the server: a fork of it must not stop the server."""
        # Not in the folder of the data, which may belong to another user.
        self._beside = folder.with_name(f"{folder.name}.run")
        self._cluster = Cluster(folder)
        self._users: int | None = None
        self._sockets = folder

    def start(self) -> None:
        """Start the server if it does not run, and use it until ``cleanup``."""
        private_folder(self._beside)
        self._users = _lock(self._beside / "users", fcntl.LOCK_SH)
        try:
            self.ensure_postgres_running()
        except BaseException:
            os.close(self._users)
            self._users = None
            raise
        EmbeddedPostgres.running[self._cluster.folder] = self
        atexit.register(self.cleanup)

    def ensure_postgres_running(self) -> None:
        """Start the server if it does not run; returns once it accepts connections."""
        starting = _lock(self._beside / "starting", fcntl.LOCK_EX)
        try:
            self._cluster.prepare(self._beside)
            if self._is_served():
                return
            self._cluster.stop()
            self._cluster.settle(self._memory)
            self._sockets = socket_folder(self._cluster, self._beside)
            with open_private(self._beside / "log", "ab") as log:
                begins = log.tell()
                status = self._cluster.start(self._sockets, log)
            self._wait_until_ready(status, begins)
        finally:
            os.close(starting)

    def get_uri(self, database: str = "postgres") -> str:
        """The DSN of a database of the server."""
        return f"postgresql://{DATABASE_USER}@/{quote(database)}?host={quote(str(self._sockets))}"

    def get_pid(self) -> int:
        """The process id of the server. Raises ``TargetError`` if it does not run."""
        found = self._cluster.postmaster()
        if found is None:
            raise TargetError(f"the embedded Postgres in {self._cluster.folder} does not run")
        return found.pid

    def cleanup(self) -> None:
        """Stop using the server, and stop it if no other process uses it. A second call does nothing."""
        if self._users is None or self.process != os.getpid():
            return
        EmbeddedPostgres.running.pop(self._cluster.folder, None)
        atexit.unregister(self.cleanup)
        users, self._users = self._users, None
        try:
            with suppress(BlockingIOError):
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._cluster.stop()
                remove_socket_folder(self._beside)
        finally:
            os.close(users)

    def _is_served(self) -> bool:
        """Whether the server runs, with a socket that nobody else reaches; one of an earlier version may be open."""
        found = self._cluster.postmaster()
        if found is None or found.sockets is None or not found.ready:
            return False
        self._sockets = found.sockets
        return is_private(found.sockets, self._cluster.owner)

    def _wait_until_ready(self, status: int, begins: int) -> None:
        end = time.monotonic() + _READY_SECONDS
        while status == 0 and time.monotonic() < end:
            found = self._cluster.postmaster()
            if found is None:
                break
            if found.ready:
                return
            time.sleep(_LOOK_SECONDS)
        log = self._beside / "log"
        with log.open("rb") as file:
            file.seek(begins)
            said = last_words(file.read().decode(errors="replace"))
        raise TargetError(f"the embedded Postgres in {self._cluster.folder} does not start: {said}; its log is {log}")


def _lock(file: Path, how: int) -> int:
    """A descriptor that holds the file's lock. A process that a fork starts would share it; an exec closes it."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, how)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
