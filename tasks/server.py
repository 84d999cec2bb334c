"""Which Prefect server a command reports to: what the command line asks of Prefect's settings."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

import httpx
from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogHandler
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_URL,
    PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
    PREFECT_LOGGING_TO_API_ENABLED,
    Settings,
    get_current_settings,
    temporary_settings,
)

_ANSWER_SECONDS = 15.0


def is_configured() -> bool:
    """Whether the environment, a profile or a file of settings names a server."""
    return bool(get_current_settings().api.url)


def settings_of_client() -> dict[str, str | None]:
    """Address, key and login of the server that the environment, a profile or a file of settings names now."""
    found = Settings().api
    key, login = (value.get_secret_value() if value else None for value in (found.key, found.auth_string))
    return {"api": found.url, "key": key, "login": login}


def unreachable() -> str | None:
    """One sentence if the configured server does not answer; None if it does, whatever it says.

    Prefect itself would end a run with the tracebacks of its retries.
    """
    url = get_current_settings().api.url
    try:
        httpx.get(f"{url}/health", timeout=_ANSWER_SECONDS)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        where = urlsplit(str(url)).hostname or "PREFECT_API_URL"
        return (
            f"no Prefect server answers at {where} ({type(error).__name__}), and nothing was done: start it, correct "
            "PREFECT_API_URL or the profile, or unset it, and the command starts a server for itself"
        )
    return None


def deployments() -> ModuleType:
    """What makes deployments; few commands need it, and it is slow to import."""
    from rowvec_tasks import deployments

    return deployments


def automations() -> ModuleType:
    """What makes automations; as above."""
    from rowvec_tasks import automations

    return automations


def cancellation() -> ModuleType:
    """What knows of cancelled runs; as above."""
    from rowvec_tasks import cancellation

    return cancellation


def events() -> ModuleType:
    """What sends events; as above."""
    from rowvec_tasks import events

    return events


@contextmanager
def reporting_to(api: str, login: str | None, *, authorities: Path | None = None) -> Generator[None]:
    """Within this context, this process reports to the server at this address.

    ``login`` is USER:PASSWORD. ``authorities`` is for a server that this command has started, and takes the place of
    all authorities that Prefect's clients trust. Such a server ends with the command: nobody reads its logs or waits
    for a sign of life, so neither is sent. A flow waits for the thread of its heartbeat, up to a second.
    """
    settings: dict[Any, Any] = {PREFECT_API_URL: api, PREFECT_API_AUTH_STRING: login}
    # Prefect's own threads do not have the settings of this context; they read the environment.
    set_by_us = {"PREFECT_API_URL": api}
    if login is not None:
        set_by_us |= {"PREFECT_API_AUTH_STRING": login}
    if authorities is not None:
        settings |= {PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None, PREFECT_LOGGING_TO_API_ENABLED: False}
        set_by_us |= {"PREFECT_LOGGING_TO_API_ENABLED": "false", "PREFECT_API_SSL_CERT_FILE": str(authorities)}
    before = {name: os.environ.get(name) for name in set_by_us}
    os.environ.update(set_by_us)
    try:
        with temporary_settings(settings):
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
