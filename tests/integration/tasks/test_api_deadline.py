"""A request to Prefect's API ends by its deadline, whatever drips: its own bytes, the headers, or the body."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any, cast

import httpx
import pytest
import rowvec_tasks
from prefect import get_client
from prefect.settings import (
    PREFECT_API_REQUEST_TIMEOUT,
    PREFECT_API_URL,
    PREFECT_CLIENT_MAX_RETRIES,
    temporary_settings,
)

from tests.support.servers.dripping import DrippingServer, Drips, dripping

SECONDS = 0.3
LARGE = 15 << 20

assert rowvec_tasks.__doc__  # its import bounds the requests


def by_thread(server: DrippingServer, content: bytes) -> None:
    """As Prefect's engine asks in a flow of ours."""
    with get_client(sync_client=True) as client:
        cast("Any", client)._client.post("/hello", content=content)


def by_loop(server: DrippingServer, content: bytes) -> None:
    """As Prefect sends logs and runs of workers."""

    async def ask() -> None:
        async with get_client() as client:
            await cast("Any", client)._client.post("/hello", content=content)

    asyncio.run(ask())


@pytest.fixture(params=["headers", "body", "upload"])
def server(request: pytest.FixtureRequest) -> Iterator[DrippingServer]:
    """A Prefect server that drips."""
    with dripping(cast("Drips", request.param)) as found:
        settings = {PREFECT_API_URL: f"{found.origin}/api", PREFECT_API_REQUEST_TIMEOUT: SECONDS}
        with temporary_settings(settings | {PREFECT_CLIENT_MAX_RETRIES: 0}):
            yield found


@pytest.mark.parametrize("ask", [by_thread, by_loop])
def test_a_request_to_prefects_api_ends_by_its_deadline(
    ask: Callable[[DrippingServer, bytes], None], server: DrippingServer
) -> None:
    started = time.monotonic()
    with pytest.raises(httpx.TimeoutException):
        ask(server, bytes(LARGE if server.drips == "upload" else 100))
    assert time.monotonic() - started < 20 * SECONDS
