"""What the servers that stand in for paid services have in common: faults on command, and a count of requests."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Generic, Protocol, TypeVar


class Befalling(Protocol):
    """A fault: what it does is its server's to know."""

    @property
    def times(self) -> int:
        """How many requests it befalls; -1: all."""
        ...

    @property
    def after(self) -> int:
        """How many requests go well before it."""
        ...


F = TypeVar("F", bound=Befalling)


class Faults(Generic[F]):
    """Those that wait for their time, and how often each has come."""

    def __init__(self, faults: Iterable[F] = ()) -> None:
        self._lock = threading.Lock()
        self._faults = list(faults)
        self._spent = [0] * len(self._faults)
        self._seen = [0] * len(self._faults)

    def add(self, *faults: F) -> None:
        """More faults, counted from now."""
        with self._lock:
            self._faults += faults
            self._spent += [0] * len(faults)
            self._seen += [0] * len(faults)

    def clear(self) -> None:
        """Forget them all."""
        with self._lock:
            self._faults, self._spent, self._seen = [], [], []

    def due(self, befalls: Callable[[F], bool]) -> F | None:
        """The first fault whose time has come, of those that befall a request."""
        with self._lock:
            for i, fault in enumerate(self._faults):
                if not befalls(fault):
                    continue
                self._seen[i] += 1
                if self._seen[i] <= fault.after or 0 <= fault.times <= self._spent[i]:
                    continue
                self._spent[i] += 1
                return fault
        return None


class StandIn(ThreadingHTTPServer):
    """A server on a port of this machine."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, port: int, handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(("127.0.0.1", port), handler)
        self.lock = threading.Lock()
        self.most_at_once = self._at_once = 0

    @property
    def origin(self) -> str:
        """``http://127.0.0.1:PORT``."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    @contextmanager
    def counted(self) -> Generator[None]:
        """Count a request while it is under way."""
        with self.lock:
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            yield
        finally:
            with self.lock:
                self._at_once -= 1

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no news."""


class Answering(BaseHTTPRequestHandler):
    """What answers one connection."""

    protocol_version = "HTTP/1.1"
    # An answer is written in two parts; with Nagle's algorithm the second would wait for the client's acknowledgement.
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def received(self) -> bytes:
        """The body of a request that says its length."""
        return self.rfile.read(int(self.headers.get("Content-Length", "0")))

    def answer(self, status: int, content: bytes, content_type: str, headers: dict[str, str] | None = None) -> None:
        """Send a whole answer."""
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(content)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def drip(self, seconds: float) -> None:
        """Send one byte after the other, with a pause before each, until the client goes away or a minute is over."""
        self.send_response(200)
        self.send_header("Content-Length", "100000")
        self.end_headers()
        end = time.monotonic() + 60
        with suppress(OSError):
            while time.monotonic() < end:
                time.sleep(seconds)
                self.wfile.write(b" ")

    def hang_up(self) -> None:
        """Cut the connection."""
        self.close_connection = True
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)


S = TypeVar("S", bound=StandIn)


@contextmanager
def running(server: S) -> Generator[S]:
    """The server at work in a thread."""
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), name=type(server).__name__, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
