"""Servers that a test may cut off, stall or kill: a proxy in front of a real server, a Postgres, a blob server."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import psutil
import psycopg
from psycopg.conninfo import make_conninfo

from rowvec.postgres.embedded import start_postgres
from tests.support.servers import azurite
from tests.support.servers.lines import SMALL
from tests.support.waiting import PATIENCE_SECONDS, wait_for

_CHUNK = 1 << 16

Where = Literal["before", "within", "answer"]


@dataclass(slots=True, kw_only=True)
class Stall:
    """A request that a proxy holds back."""

    request: re.Pattern[bytes]
    """Matches the start of the request's head."""
    where: Where
    """``before``: nothing passes. ``within``: head and half of the body pass. ``answer``: only the answer is held."""
    reached: threading.Event = field(default_factory=threading.Event)
    over: threading.Event = field(default_factory=threading.Event)


class Proxy:
    """Passes bytes between clients and a server until a test calls ``stall`` or ``cut``."""

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
        """Hold the next request that begins like this, and all such requests after it."""
        self._stall = Stall(request=re.compile(request), where=where)
        return self._stall

    def cut(self) -> None:
        """Close all connections: what was held is lost. New connections pass."""
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
        """Close all connections and accept no more."""
        # A thread in accept() keeps the port open until shutdown() wakes it.
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
    """A Postgres cluster that belongs to one test."""

    def __init__(self) -> None:
        # A short path: the path of a Unix socket may have 107 bytes.
        self._folder = Path(tempfile.mkdtemp(prefix="rvk"))
        self._server = start_postgres(self._folder / "pg", memory=SMALL)

    @property
    def url(self) -> str:
        """The DSN of its database ``postgres``; the same after a kill."""
        return make_conninfo(self._server.get_uri(), dbname="postgres")

    def kill(self) -> None:
        """SIGKILL of the postmaster; returns once the backends, which then end by themselves, are gone too."""
        postmaster = psutil.Process(self._server.get_pid())
        family = [postmaster, *postmaster.children(recursive=True)]
        postmaster.kill()
        _, alive = psutil.wait_procs(family, timeout=PATIENCE_SECONDS)
        assert not alive, "a backend has outlived its postmaster"

    def start(self) -> None:
        """Start it again; returns once it accepts connections."""
        self._server.ensure_postgres_running()
        wait_for(self._answers)

    def remove(self) -> None:
        """Stop it and delete its data."""
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
    """A blob server that belongs to one test. It keeps its port after a restart, and its data on disk."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.start()

    def container(self, name: str) -> azurite.Container:
        """A container that is not created yet."""
        return azurite.Container(host=f"http://127.0.0.1:{self.port}", name=name)

    def start(self) -> None:
        """Start it, the first time or again; returns once it accepts connections."""
        # The same program as the session's server, with other flags.
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
        """Whether its catalogue on disk has a matching name; what is only in memory is lost by a kill."""
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
    """A blob server that may be killed; it writes its catalogue to disk every few seconds."""
    server = OwnAzurite(folder)
    try:
        yield server
    finally:
        server.kill()
