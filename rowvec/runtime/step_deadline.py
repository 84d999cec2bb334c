"""Gives each step of an HTTP request no more time than is left until the request's deadline.

A step is to connect to an address, TLS, a piece of the request, or a read. ``httpcore``, below Prefect's client, and
``httpcore2``, below the embedders', take a network backend. They limit each step by itself, so a server that sends a
byte a second keeps a request for ever.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from ssl import SSLContext
from typing import Any, Protocol

# A socket that may be written to has room for at least as much, so that a write of it does not drip.
_PIECE_BYTES = 16_384


class Until(threading.local):
    """When the request of this thread must have ended, by the monotonic clock; None between requests."""

    moment: float | None = None

    @contextmanager
    def at(self, moment: float | None) -> Generator[None]:
        """Within this context, the steps of this thread end by this moment."""
        self.moment = moment
        try:
            yield
        finally:
            self.moment = None

    def left(self, limit: float | None) -> float | None:
        """Seconds that the next step may take. Raises ``TimeoutError`` if the time is over."""
        if self.moment is None:
            return limit
        seconds = self.moment - time.monotonic()
        if seconds <= 0:
            raise TimeoutError
        return seconds if limit is None else min(seconds, limit)


@dataclass(frozen=True, slots=True, kw_only=True)
class Core:
    """The errors of one of the two libraries."""

    connect_error: type[Exception]
    connect_timeout: type[Exception]
    read_timeout: type[Exception]
    write_timeout: type[Exception]


class Stream(Protocol):
    """The library's ``NetworkStream``."""

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes: ...

    def write(self, buffer: bytes, timeout: float | None = None) -> None: ...

    def close(self) -> None: ...

    def start_tls(
        self, ssl_context: SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> Any: ...

    def get_extra_info(self, info: str) -> Any: ...


class Backend(Protocol):
    """The library's ``SyncBackend``."""

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> Any: ...

    def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> Any: ...

    def sleep(self, seconds: float) -> None: ...


class DeadlineStream:
    """A connection each of whose steps ends by the deadline of the thread that takes it."""

    def __init__(self, inner: Stream, until: Until, core: Core) -> None:
        self._inner, self._until, self._core = inner, until, core

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """See ``NetworkStream``."""
        try:
            left = self._until.left(timeout)
        except TimeoutError:
            raise self._core.read_timeout from None
        return self._inner.read(max_bytes, left)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """See ``NetworkStream``."""
        for start in range(0, len(buffer), _PIECE_BYTES):
            try:
                left = self._until.left(timeout)
            except TimeoutError:
                raise self._core.write_timeout from None
            self._inner.write(buffer[start : start + _PIECE_BYTES], left)

    def close(self) -> None:
        """See ``NetworkStream``."""
        self._inner.close()

    def start_tls(
        self, ssl_context: SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> DeadlineStream:
        """See ``NetworkStream``."""
        try:
            left = self._until.left(timeout)
        except TimeoutError:
            raise self._core.connect_timeout from None
        return DeadlineStream(self._inner.start_tls(ssl_context, server_hostname, left), self._until, self._core)

    def get_extra_info(self, info: str) -> Any:
        """See ``NetworkStream``."""
        return self._inner.get_extra_info(info)


class DeadlineBackend:
    """Opens connections by the deadline."""

    def __init__(self, inner: Backend, until: Until, core: Core) -> None:
        self._inner, self._until, self._core = inner, until, core

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> DeadlineStream:
        """One address of the host after the other; the library would give each of them the whole time."""
        core = self._core
        failure: Exception = core.connect_error(f"{host} has no address")
        for address in self._addresses(host, port):
            try:
                left = self._until.left(timeout)
            except TimeoutError:
                raise core.connect_timeout from None
            try:
                stream = self._inner.connect_tcp(address, port, left, local_address, socket_options)
            except (core.connect_error, core.connect_timeout) as error:
                failure = error
            else:
                return DeadlineStream(stream, self._until, core)
        raise failure

    def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> DeadlineStream:
        """See ``NetworkBackend``."""
        return DeadlineStream(self._inner.connect_unix_socket(path, timeout, socket_options), self._until, self._core)

    def sleep(self, seconds: float) -> None:
        """See ``NetworkBackend``."""
        self._inner.sleep(seconds)

    def _addresses(self, host: str, port: int) -> list[str]:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise self._core.connect_error(str(error)) from error
        return list(dict.fromkeys(str(entry[4][0]) for entry in found))
