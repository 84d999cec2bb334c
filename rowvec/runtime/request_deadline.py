"""One deadline for each request by the library ``requests``, whatever drips; Azure's client and OpenTelemetry use it.

The library limits each read and each write. A service that sends a byte a second keeps such a request for ever. At the
deadline the request's socket is shut down, which ends whatever waits for it; the client tries again, as after any lost
connection.
"""

from __future__ import annotations

import heapq
import itertools
import re
import socket
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar, cast

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection
from urllib3.util.retry import Retry

_RANGE = re.compile(r"bytes=(\d+)-(\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadlines:
    """How long requests may take; one that moves more bytes may take longer."""

    grace_seconds: float
    """For a request that moves nothing."""
    slowest: float
    """Bytes per second, of the slowest line that should do."""
    answer_bytes: int
    """The longest answer to a request that names no range."""

    def seconds(self, headers: Mapping[str, str]) -> float:
        """For a request with these headers."""
        lower = {name.lower(): str(value) for name, value in headers.items()}
        asked = _RANGE.fullmatch(lower.get("x-ms-range") or lower.get("range") or "")
        answer = int(asked[2]) - int(asked[1]) + 1 if asked else self.answer_bytes
        sent = lower.get("content-length", "0")
        return self.grace_seconds + (answer + (int(sent) if sent.isdecimal() else 0)) / self.slowest


def bounded_session(deadlines: Deadlines) -> requests.Session:
    """A session whose requests end by their deadlines. It tries nothing again; it follows the environment's proxies."""
    session = requests.Session()
    adapter = _Adapter(deadlines)
    for scheme in ("http://", "https://"):
        session.mount(scheme, adapter)
    return session


@dataclass(slots=True)
class _Exchange:
    """A request and its answer, with the socket that carries them."""

    carrier: Callable[[], socket.socket | None]
    """Gives the socket while anybody holds it."""
    over: bool = False
    ended: bool = False
    """Whether the deadline has ended it."""

    def end(self) -> None:
        """Shut the socket down: reads and writes that wait for it end at once."""
        carrier = None if self.over else self.carrier()
        if carrier is not None:
            self.ended = True
            with suppress(OSError):
                carrier.shutdown(socket.SHUT_RDWR)


class _Connection(HTTPConnection):
    """Mixed into the classes of connections: it tells which socket carries the present request."""

    deadlines: ClassVar[Deadlines]
    exchange: _Exchange | None = None

    def connect(self) -> None:
        super().connect()
        if self.exchange is not None:
            self.exchange.carrier = _weakly(self.sock)

    def request(self, *arguments: Any, **named: Any) -> None:
        if self.exchange is not None:
            self.exchange.over = True
        headers = cast("Mapping[str, str]", named.get("headers") or {})
        self.exchange = _Exchange(_weakly(self.sock))
        _watcher().watch(self.exchange, self.deadlines.seconds(headers))
        super().request(*arguments, **named)

    def getresponse(self) -> Any:
        response = super().getresponse()
        if self.exchange is not None and self.exchange.ended:
            # The library takes headers that were cut off for all there are.
            response.close()
            raise TimeoutError("the request's deadline")
        return response


class _Adapter(HTTPAdapter):
    """Uses connections that can be ended."""

    def __init__(self, deadlines: Deadlines) -> None:
        self._deadlines = deadlines
        super().__init__(max_retries=Retry(total=False, redirect=False, raise_on_status=False))

    def get_connection_with_tls_context(self, *arguments: Any, **named: Any) -> Any:
        """See ``HTTPAdapter``."""
        pool = cast("Any", super().get_connection_with_tls_context(*arguments, **named))
        if not issubclass(pool.ConnectionCls, _Connection):
            pool.ConnectionCls = _ended(pool.ConnectionCls, self._deadlines)
        # As Azure's own adapter sets it, for faster uploads.
        pool.conn_kw["blocksize"] = 32 << 10
        return pool


@cache
def _ended(connections: type[HTTPConnection], deadlines: Deadlines) -> type[HTTPConnection]:
    return cast(
        "type[HTTPConnection]", type(connections.__name__, (_Connection, connections), {"deadlines": deadlines})
    )


def _weakly(carrier: socket.socket | None) -> Callable[[], socket.socket | None]:
    return (lambda: None) if carrier is None else weakref.ref(carrier)


@dataclass(slots=True)
class _Watcher:
    """One thread of the process that ends exchanges whose time is over."""

    due: list[tuple[float, int, _Exchange]] = field(default_factory=list[tuple[float, int, _Exchange]])
    changed: threading.Condition = field(default_factory=threading.Condition)
    numbers: Callable[[], int] = field(default_factory=lambda: itertools.count().__next__)

    def watch(self, exchange: _Exchange, seconds: float) -> None:
        """End the exchange after so many seconds, unless its connection carries another one by then."""
        with self.changed:
            heapq.heappush(self.due, (time.monotonic() + seconds, self.numbers(), exchange))
            self.changed.notify()

    def run(self) -> None:
        """End what is due, for ever."""
        while True:
            with self.changed:
                wait = self.due[0][0] - time.monotonic() if self.due else None
                if wait is None or wait > 0:
                    self.changed.wait(wait)
                    continue
                exchange = heapq.heappop(self.due)[2]
            exchange.end()


@cache
def _watcher() -> _Watcher:
    watcher = _Watcher()
    threading.Thread(target=watcher.run, name="rowvec deadlines", daemon=True).start()
    return watcher
