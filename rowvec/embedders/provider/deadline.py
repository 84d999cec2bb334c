"""One deadline per request, whatever drips: connecting, TLS, the request's own bytes, the headers, the body.

The HTTP library limits each read and each write. A server that sends a byte a second keeps such a request for ever.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from ssl import SSLContext
from typing import Any, cast
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpcore2
import httpx2

# A socket that may be written to has room for at least as much, so that a write of it does not drip.
_PIECE_BYTES = 16_384


class _Until(threading.local):
    """When the request of this thread must have ended, by the monotonic clock; None between requests."""

    moment: float | None = None

    def left(self, limit: float | None) -> float | None:
        """Seconds that the next step may take. Raises ``TimeoutError`` if the time is over."""
        if self.moment is None:
            return limit
        seconds = self.moment - time.monotonic()
        if seconds <= 0:
            raise TimeoutError
        return seconds if limit is None else min(seconds, limit)


class _Stream(httpcore2.NetworkStream):
    """A connection each of whose steps ends by the deadline of the thread that takes it."""

    def __init__(self, inner: httpcore2.NetworkStream, until: _Until) -> None:
        self._inner, self._until = inner, until

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        try:
            left = self._until.left(timeout)
        except TimeoutError:
            raise httpcore2.ReadTimeout from None
        return self._inner.read(max_bytes, left)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        for start in range(0, len(buffer), _PIECE_BYTES):
            try:
                left = self._until.left(timeout)
            except TimeoutError:
                raise httpcore2.WriteTimeout from None
            self._inner.write(buffer[start : start + _PIECE_BYTES], left)

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        try:
            left = self._until.left(timeout)
        except TimeoutError:
            raise httpcore2.ConnectTimeout from None
        return _Stream(self._inner.start_tls(ssl_context, server_hostname, left), self._until)

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


class _Backend(httpcore2.SyncBackend):
    """Opens connections by the deadline."""

    def __init__(self, until: _Until) -> None:
        self._until = until

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.NetworkStream:
        """One address of the host after the other; the library would give each of them the whole time."""
        failure: Exception = httpcore2.ConnectError(f"{host} has no address")
        for address in _addresses(host, port):
            try:
                left = self._until.left(timeout)
            except TimeoutError:
                raise httpcore2.ConnectTimeout from None
            try:
                return _Stream(super().connect_tcp(address, port, left, local_address, socket_options), self._until)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failure = error
        raise failure


def _addresses(host: str, port: int) -> list[str]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise httpcore2.ConnectError(str(error)) from error
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class _Body(httpx2.SyncByteStream):
    """The body of an answer, read by the same deadline."""

    def __init__(self, inner: Iterable[bytes], until: _Until, moment: float | None) -> None:
        self._inner, self._until, self._moment = inner, until, moment

    def __iter__(self) -> Iterator[bytes]:
        blocks = iter(self._inner)
        while True:
            with _at(self._until, self._moment), _named_as_httpx():
                block = next(blocks, None)
            if block is None:
                return
            yield block

    def close(self) -> None:
        if callable(close := getattr(self._inner, "close", None)):
            close()


class DeadlineTransport(httpx2.BaseTransport):
    """Connections whose requests end, with their whole answer, within the longest of the request's time limits.

    It follows the proxies of the environment, as the library's own transport does. Used by many threads at once.
    """

    def __init__(self, *, limits: httpx2.Limits) -> None:
        self._until = _Until()
        self._limits = limits
        self._tls = httpx2.create_ssl_context()
        self._pools: dict[str, httpcore2.ConnectionPool] = {}
        self._opening = threading.Lock()

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """See ``httpx2.BaseTransport``. Raises ``httpx2.TimeoutException`` when the time is over."""
        timeouts = cast("dict[str, float | None]", request.extensions.get("timeout", {}))
        seconds = [limit for limit in timeouts.values() if limit is not None]
        moment = time.monotonic() + max(seconds) if seconds else None
        sent = httpcore2.Request(
            method=request.method,
            url=httpcore2.URL(
                scheme=request.url.raw_scheme,
                host=request.url.raw_host,
                port=request.url.port,
                target=request.url.raw_path,
            ),
            headers=request.headers.raw,
            content=cast("Iterable[bytes]", request.stream),
            extensions=request.extensions,
        )
        with _at(self._until, moment), _named_as_httpx():
            answer = self._pool(request.url).handle_request(sent)
        return httpx2.Response(
            answer.status,
            headers=answer.headers,
            stream=_Body(cast("Iterable[bytes]", answer.stream), self._until, moment),
            extensions=answer.extensions,
        )

    def close(self) -> None:
        """Close all connections."""
        for pool in self._pools.values():
            pool.close()

    def _pool(self, url: httpx2.URL) -> httpcore2.ConnectionPool:
        """The connections that lead to a URL: direct ones, or those through the environment's proxy."""
        proxies = getproxies()
        proxy = proxies.get(url.scheme) or proxies.get("all") or ""
        if proxy and proxy_bypass(f"{url.host}:{url.port}" if url.port else url.host):
            proxy = ""
        with self._opening:
            if proxy not in self._pools:
                self._pools[proxy] = self._open(proxy)
            return self._pools[proxy]

    def _open(self, proxy: str) -> httpcore2.ConnectionPool:
        pool, limits = httpcore2.ConnectionPool, self._limits
        parts: dict[str, Any] = {}
        if proxy:
            found = httpx2.Proxy(proxy if "://" in proxy else f"http://{proxy}")
            socks = urlsplit(str(found.url)).scheme.startswith("socks")
            pool = httpcore2.SOCKSProxy if socks else httpcore2.HTTPProxy
            parts = {"proxy_url": str(found.url), "proxy_auth": found.raw_auth}
            parts |= {} if socks else {"proxy_headers": found.headers.raw}
        return pool(
            **parts,
            ssl_context=self._tls,
            max_connections=limits.max_connections,
            max_keepalive_connections=limits.max_keepalive_connections,
            keepalive_expiry=limits.keepalive_expiry,
            network_backend=_Backend(self._until),
        )


def is_before_sending(error: BaseException | None) -> bool:
    """Whether a request failed before any of it was sent, so that nobody can have been paid for it."""
    return isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.PoolTimeout | httpx2.ProxyError)


@contextmanager
def _at(until: _Until, moment: float | None) -> Generator[None]:
    until.moment = moment
    try:
        yield
    finally:
        until.moment = None


@contextmanager
def _named_as_httpx() -> Generator[None]:
    """Turn the errors of the library's lower half into those of the same name in its upper half."""
    try:
        yield
    except (httpcore2.TimeoutException, httpcore2.NetworkError, httpcore2.ProtocolError) as error:
        raise cast("type[httpx2.TransportError]", getattr(httpx2, type(error).__name__))(str(error)) from error
    except (httpcore2.ProxyError, httpcore2.UnsupportedProtocol) as error:
        raise cast("type[httpx2.TransportError]", getattr(httpx2, type(error).__name__))(str(error)) from error
