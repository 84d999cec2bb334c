"""Asks a Prefect server by its API, as a test does that looks at what a run has shown there."""

from __future__ import annotations

import time
from functools import cache
from http import HTTPStatus
from typing import Any

import httpx

from tests.support.waiting import PATIENCE_SECONDS


@cache
def _client() -> httpx.Client:
    """One client for all requests: a new one reads the certificates of the machine, which takes longer than most.

    It keeps no connection, because the server closes one that is idle, perhaps while a request is on its way.
    """
    limits = httpx.Limits(max_keepalive_connections=0)
    return httpx.Client(timeout=PATIENCE_SECONDS, limits=limits, follow_redirects=True)


def answered(method: str, url: str, body: Any = None, auth: tuple[str, str] | None = None) -> Any:
    """The server's answer; asked again while its SQLite is locked, as by the runs of other tests."""
    end = time.monotonic() + PATIENCE_SECONDS
    while True:
        found = _client().request(method, url, json=body, auth=auth)
        if found.status_code != HTTPStatus.SERVICE_UNAVAILABLE or time.monotonic() > end:
            found.raise_for_status()
            return found.json() if found.content else None
        time.sleep(0.2)
