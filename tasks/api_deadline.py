"""Bounds each request to Prefect's API, whatever drips, in all processes that run our flows and tasks.

Prefect gives its HTTP client a time limit for each read and each write (``PREFECT_API_REQUEST_TIMEOUT``). A server that
sends a byte a second would keep a run for ever. The same limit now holds for the whole request; Prefect tries a request
that was ended again, like any lost connection.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, cast

import httpcore
import httpx
from prefect.client import orchestration
from prefect.client.base import PrefectHttpxAsyncClient, PrefectHttpxSyncClient

from rowvec.runtime.step_deadline import Core, DeadlineBackend, Until

_CORE = Core(
    connect_error=httpcore.ConnectError,
    connect_timeout=httpcore.ConnectTimeout,
    read_timeout=httpcore.ReadTimeout,
    write_timeout=httpcore.WriteTimeout,
)
_UNTIL = Until()


class _Bounded(httpx.Client):
    """Sends one request, with its whole answer, within the longest of its time limits."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        # A transport takes no backend, and a transport of ours would ignore the environment's proxies.
        for transport in (self._transport, *self._mounts.values()):
            if isinstance(transport, httpx.HTTPTransport):
                pool = cast("Any", transport)._pool
                pool._network_backend = DeadlineBackend(pool._network_backend, _UNTIL, _CORE)

    def send(self, request: httpx.Request, *arguments: Any, **named: Any) -> httpx.Response:
        """See ``httpx.Client``. Raises ``httpx.TimeoutException`` when the time is over."""
        seconds = _seconds(request)
        with _UNTIL.at(None if seconds is None else time.monotonic() + seconds):
            return super().send(request, *arguments, **named)


class _BoundedAsync(httpx.AsyncClient):
    """The same for clients of an event loop."""

    async def send(self, request: httpx.Request, *arguments: Any, **named: Any) -> httpx.Response:
        """See ``httpx.AsyncClient``. Raises ``httpx.TimeoutException`` when the time is over."""
        try:
            async with asyncio.timeout(_seconds(request)):
                return await super().send(request, *arguments, **named)
        except TimeoutError:
            raise httpx.ReadTimeout("the request's deadline", request=request) from None


class _SyncClient(PrefectHttpxSyncClient, _Bounded):
    """Prefect's client, which tries again, above ours, which ends each try."""


class _AsyncClient(PrefectHttpxAsyncClient, _BoundedAsync):
    """As ``_SyncClient``."""


def bound_requests() -> None:
    """Let Prefect's clients that are opened from now on in this process end each request by its deadline."""
    parts = cast("Any", orchestration)
    parts.PrefectHttpxSyncClient, parts.PrefectHttpxAsyncClient = _SyncClient, _AsyncClient


def _seconds(request: httpx.Request) -> float | None:
    timeouts = cast("dict[str, float | None]", request.extensions.get("timeout", {}))
    return max((limit for limit in timeouts.values() if limit is not None), default=None)
