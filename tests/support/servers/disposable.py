"""Servers that a test may cut off, starve or kill: a proxy on the way to a real one, a Postgres, a blob server."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import psutil
import psycopg
from psycopg.conninfo import make_conninfo

from rowvec.postgres.embedded import start_postgres
from tests.support.servers import azurite

_PATIENCE_SECONDS = 60
_CHUNK = 1 << 16

Where = Literal["before", "within", "answer"]


@dataclass(slots=True, kw_only=True)
class Stall:
    """A request that a proxy does not let through."""

    request: re.Pattern[bytes]
    """What the request's head begins with."""
    where: Where
    """Nothing of it passes; its head and half of its body pass; all of it passes and its answer does not."""
    reached: threading.Event = field(default_factory=threading.Event)
    over: threading.Event = field(default_factory=threading.Event)


class Proxy:
    """Passes bytes between clients and a server, until it is told to stall or to cut."""

    def __init__(self, port: int) -> None:
        """``port``: the server's, on this machine."""
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._stall: Stall | None = None
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def host(self) -> str:
        """``http://127.0.0.1:PORT``."""
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def stall(self, request: bytes, where: Where) -> Stall:
        """Hold the next request that begins so, and all like it after it."""
        self._stall = Stall(request=re.compile(request), where=where)
        return self._stall

    def cut(self) -> None:
        """Pull the cable: what was held arrives nowhere. New connections pass."""
        stall, self._stall = self._stall, None
        with self._lock:
            sockets, self._sockets = self._sockets, set()
        for one in sockets:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        if stall is not None:
            stall.over.set()

    def close(self) -> None:
        """No more connections, and none of those that are."""
        # A thread in accept keeps the port open until it is woken.
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, suppress(OSError), socket.create_connection(("127.0.0.1", self._target)) as server:
            with self._lock:
                self._sockets |= {client, server}
            held: list[Stall] = []
            back = threading.Thread(target=self._answer, args=(server, client, held), daemon=True)
            back.start()
            with suppress(OSError):
                self._ask(client, server, held)
            with suppress(OSError):
                server.shutdown(socket.SHUT_WR)
            back.join()
            with self._lock:
                self._sockets -= {client, server}

    def _ask(self, client: socket.socket, server: socket.socket, held: list[Stall]) -> None:
        while data := client.recv(_CHUNK):
            stall = self._stall
            if stall is not None and stall.request.match(data):
                if stall.where == "answer":
                    held.append(stall)
                else:
                    if stall.where == "within":
                        server.sendall(data)
                        data = client.recv(_CHUNK)
                        half = len(data) // 2
                        server.sendall(data[:half])
                        data = data[half:]
                    _hold(stall)
            server.sendall(data)

    def _answer(self, server: socket.socket, client: socket.socket, held: list[Stall]) -> None:
        with suppress(OSError):
            while data := server.recv(_CHUNK):
                if held:
                    _hold(held[0])
                client.sendall(data)


def _hold(stall: Stall) -> None:
    stall.reached.set()
    stall.over.wait()


@contextmanager
def proxy(port: int) -> Generator[Proxy]:
    """A proxy to a server on this machine."""
    made = Proxy(port)
    try:
        yield made
    finally:
        made.close()


class OwnPostgres:
    """A Postgres cluster of a test's own."""

    def __init__(self) -> None:
        # A short path: a Unix socket's may have 107 bytes.
        self._folder = Path(tempfile.mkdtemp(prefix="rvk"))
        self._server = start_postgres(self._folder / "pg")

    @property
    def url(self) -> str:
        """The DSN of its database ``postgres``; the same after a kill."""
        return make_conninfo(self._server.get_uri(), dbname="postgres")

    def kill(self) -> None:
        """SIGKILL of the postmaster; returns once the backends, which then end by themselves, are gone too."""
        postmaster = psutil.Process(self._server.get_pid())
        family = [postmaster, *postmaster.children(recursive=True)]
        postmaster.kill()
        _, alive = psutil.wait_procs(family, timeout=_PATIENCE_SECONDS)
        assert not alive, "a backend has outlived its postmaster"

    def start(self) -> None:
        """Up again; returns once it takes connections."""
        self._server.ensure_postgres_running()
        wait_for(self._answers)

    def remove(self) -> None:
        """Gone for good."""
        self._server.cleanup()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.url, connect_timeout=5).close()
        except psycopg.OperationalError:
            return False
        return True


@contextmanager
def own_postgres() -> Generator[OwnPostgres]:
    """A cluster that may be killed."""
    server = OwnPostgres()
    try:
        yield server
    finally:
        server.remove()


class OwnAzurite:
    """A blob server of a test's own, on one port throughout, which keeps what it has on disk."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.start()

    def container(self, name: str) -> azurite.Container:
        """A container that is not made yet."""
        return azurite.Container(host=f"http://127.0.0.1:{self.port}", name=name)

    def start(self) -> None:
        """Up (again); returns once it takes connections."""
        # The same server as the session's, on other terms.
        script = azurite._install()  # pyright: ignore[reportPrivateUsage] # tests' own
        node = azurite._node()  # pyright: ignore[reportPrivateUsage] # tests' own
        flags = ["--location", str(self._folder), "--skipApiVersionCheck", "--disableTelemetry", "--silent"]
        command = [str(node), str(script), "--blobHost", "127.0.0.1", "--blobPort", str(self.port), *flags]
        self._process = subprocess.Popen(  # noqa: S603 # ours
            command, cwd=self._folder, stdin=subprocess.DEVNULL, start_new_session=True
        )
        wait_for(self._answers)

    def kill(self) -> None:
        """SIGKILL."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def has_written(self, name: bytes) -> bool:
        """Whether its catalogue on disk has a name that matches: what it keeps in memory alone goes with a kill."""
        catalogue = self._folder / "__azurite_db_blob__.json"
        return catalogue.exists() and re.search(name, catalogue.read_bytes()) is not None

    def _answers(self) -> bool:
        assert self._process.poll() is None, f"Azurite ended at once with status {self._process.returncode}"
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port), 1).close()
            return True
        return False


@contextmanager
def own_azurite(folder: Path) -> Generator[OwnAzurite]:
    """A blob server that may be killed; it writes down what it has every few seconds."""
    server = OwnAzurite(folder)
    try:
        yield server
    finally:
        server.kill()


def wait_for(holds: Callable[[], object], seconds: float = _PATIENCE_SECONDS) -> None:
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "that never came to hold"
        time.sleep(0.02)
