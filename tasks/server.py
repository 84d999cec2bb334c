"""Which Prefect server a command reports to: what the command line asks of Prefect's settings."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager

from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogHandler
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, get_current_settings, temporary_settings


def is_configured() -> bool:
    """Whether the environment, a profile or a file of settings names a server."""
    return bool(get_current_settings().api.url)


@contextmanager
def reporting_to(api: str, secret: str) -> Generator[None]:
    """Within this context, this process reports to the server at this address; ``secret`` is USER:PASSWORD."""
    # Prefect's own threads do not have the settings of this context; they read the environment.
    set_by_us = {"PREFECT_API_URL": api, "PREFECT_API_AUTH_STRING": secret}
    before = {name: os.environ.get(name) for name in set_by_us}
    os.environ.update(set_by_us)
    try:
        with temporary_settings({PREFECT_API_URL: api, PREFECT_API_AUTH_STRING: secret}):
            try:
                yield
            except Exception:
                _send_the_rest()
                raise
            _send_the_rest()
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _send_the_rest() -> None:
    """Send logs and events while the server answers; at the exit of the process they would go to one that has ended.

    Not after an interrupt, which is no ``Exception``: the command has a few seconds for its end then.
    """
    APILogHandler().flush()
    EventsWorker.drain_all()
