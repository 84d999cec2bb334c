"""A server that is never silent for long and never done: it drips, or takes what it is sent in drops."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Literal

Drips = Literal["headers", "body", "upload"]

_BEFORE = {
    "headers": b"HTTP/1.1 200 OK\r\nX-Padding: ",
    "body": (
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n"
        b"Content-Range: bytes 0-99999/100000\r\nLast-Modified: Mon, 30 Nov 2026 08:00:00 GMT\r\nETag: x\r\n\r\n"
    ),
    "upload": b"",
}

# Long after every deadline of a test.
_LONGEST_SECONDS = 60.0


@dataclass(slots=True)
class DrippingServer:
    """Each connection lasts until its client ends it, or a minute."""

    drips: Drips
    every: float
    listener: socket.socket
    seconds: list[float] = field(default_factory=list[float])
    """How long each connection lasted."""
    taken: int = 0
    """Bytes of the request that ``upload`` has read."""

    @property
    def origin(self) -> str:
        """``http://127.0.0.1:PORT``."""
        return f"http://127.0.0.1:{self.listener.getsockname()[1]}"

    def serve(self) -> None:
        """Accept connections until the listener is closed."""
        with suppress(OSError):
            while True:
                threading.Thread(target=self._drip, args=self.listener.accept()[:1], daemon=True).start()

    def _drip(self, client: socket.socket) -> None:
        started = time.monotonic()
        with client, suppress(OSError):
            if self.drips != "upload":
                client.recv(1 << 20)
                client.sendall(_BEFORE[self.drips])
            while time.monotonic() < started + _LONGEST_SECONDS:
                time.sleep(self.every)
                if self.drips == "upload":
                    taken = len(client.recv(65_536))
                    self.taken += taken
                    if not taken:
                        break
                else:
                    client.sendall(b"x")
        self.seconds.append(time.monotonic() - started)


@contextmanager
def dripping(drips: Drips, every: float = 0.05) -> Generator[DrippingServer]:
    """The server at work in a thread, with the smallest buffers there are."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        server = DrippingServer(drips, every, listener)
        threading.Thread(target=server.serve, name="dripping server", daemon=True).start()
        try:
            yield server
        finally:
            # A mere close would leave the thread waiting for one more connection, and the system taking it.
            listener.shutdown(socket.SHUT_RDWR)
