"""A request to Prefect's API ends by its deadline, whether the headers or the body of the answer drip."""

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

assert rowvec_tasks.__doc__  # its import bounds the requests


def by_thread() -> None:
    """As Prefect's engine asks in a flow of ours."""
    with get_client(sync_client=True) as client:
        cast("Any", client)._client.post("/hello", content=b"hello")


def by_loop() -> None:
    """As Prefect sends logs and runs of workers."""

    async def ask() -> None:
        async with get_client() as client:
            await cast("Any", client)._client.post("/hello", content=b"hello")

    asyncio.run(ask())


@pytest.fixture(params=["headers", "body"])
def server(request: pytest.FixtureRequest) -> Iterator[DrippingServer]:
    """A Prefect server that drips."""
    with dripping(cast("Drips", request.param)) as found:
        settings = {PREFECT_API_URL: f"{found.origin}/api", PREFECT_API_REQUEST_TIMEOUT: SECONDS}
        with temporary_settings(settings | {PREFECT_CLIENT_MAX_RETRIES: 0}):
            yield found


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("ask", [by_thread, by_loop])
def test_a_request_to_prefects_api_ends_by_its_deadline(ask: Callable[[], None]) -> None:
    started = time.monotonic()
    with pytest.raises(httpx.TimeoutException):
        ask()
    assert time.monotonic() - started < 20 * SECONDS
