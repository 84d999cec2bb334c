"""One deadline per request, whatever drips: connecting, TLS, the request's own bytes, the headers, the body.

The HTTP library limits each read and each write. A server that sends a byte a second keeps such a request for ever.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpcore2
import httpx2

from rowvec.runtime.step_deadline import Core, DeadlineBackend, Until

# What raises these when the time of a step is over is below the library's upper half, whose names they carry.
_CORE = Core(
    connect_error=httpcore2.ConnectError,
    connect_timeout=httpcore2.ConnectTimeout,
    read_timeout=httpcore2.ReadTimeout,
    write_timeout=httpcore2.WriteTimeout,
)


class _Body(httpx2.SyncByteStream):
    """The body of an answer, read by the same deadline."""

    def __init__(self, inner: Iterable[bytes], until: Until, moment: float | None) -> None:
        self._inner, self._until, self._moment = inner, until, moment

    def __iter__(self) -> Iterator[bytes]:
        blocks = iter(self._inner)
        while True:
            with self._until.at(self._moment), _named_as_httpx():
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
        self._until = Until()
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
        with self._until.at(moment), _named_as_httpx():
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
            network_backend=cast(
                "httpcore2.NetworkBackend", DeadlineBackend(httpcore2.SyncBackend(), self._until, _CORE)
            ),
        )


def is_before_sending(error: BaseException | None) -> bool:
    """Whether a request failed before any of it was sent, so that nobody can have been paid for it."""
    return isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.PoolTimeout | httpx2.ProxyError)


@contextmanager
def _named_as_httpx() -> Generator[None]:
    """Turn the errors of the library's lower half into those of the same name in its upper half."""
    try:
        yield
    except (httpcore2.TimeoutException, httpcore2.NetworkError, httpcore2.ProtocolError) as error:
        raise cast("type[httpx2.TransportError]", getattr(httpx2, type(error).__name__))(str(error)) from error
    except (httpcore2.ProxyError, httpcore2.UnsupportedProtocol) as error:
        raise cast("type[httpx2.TransportError]", getattr(httpx2, type(error).__name__))(str(error)) from error
