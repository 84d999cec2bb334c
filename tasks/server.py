"""Which Prefect server a command reports to: what the command line asks of Prefect's settings."""

from __future__ import annotations

import os
import ssl
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

import certifi
import httpx
from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogHandler
from prefect.settings import Settings, get_current_settings
from pydantic import SecretStr
from rowvec_tasks.changed_settings import changed_settings
from rowvec_tasks.heartbeat import own_heartbeats

from rowvec.errors import MachineError
from rowvec.runtime.prefect_server import one_authority

_ANSWER_SECONDS = 15.0
_ATTEMPTS = 4
"""How often a server that is there, and has much to do, is asked; one that refuses the connection is asked once."""


def is_configured() -> bool:
    """Whether the environment, a profile or a file of settings names a server."""
    return bool(get_current_settings().api.url)


def settings_of_client() -> dict[str, str | None]:
    """Address, key and login of the server that the environment, a profile or a file of settings names now."""
    found = Settings().api
    key, login = (value.get_secret_value() if value else None for value in (found.key, found.auth_string))
    return {"api": found.url, "key": key, "login": login}


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
def reporting() -> Generator[None]:
    """Within this context, this process reports to the configured server.

    Raises ``MachineError`` if it does not answer, whatever it says: Prefect itself would end a run with the tracebacks
    of its retries.
    """
    with tempfile.TemporaryDirectory(prefix="rowvec") as folder:
        authority = one_authority(Path(folder))
        api = _answered(authority)
        with changed_settings({"api": api}), own_heartbeats():
            yield


@contextmanager
def reporting_to(api: str, login: str | None, *, authority: Path, ends_with_command: bool) -> Generator[None]:
    """Within this context, this process reports to the server at this address of this machine, which speaks no TLS.

    ``login`` is USER:PASSWORD. ``authority`` takes the place of all authorities that Prefect's clients trust. If the
    server ends with the command, nobody reads its logs or waits for a sign of life, so neither is sent.
    """
    # Prefect's own threads do not have the settings of this context; they read the environment.
    set_by_us = {"PREFECT_API_URL": api, "PREFECT_API_SSL_CERT_FILE": str(authority)}
    if login is not None:
        set_by_us |= {"PREFECT_API_AUTH_STRING": login}
    if ends_with_command:
        set_by_us |= {"PREFECT_LOGGING_TO_API_ENABLED": "false"}
    secret = None if login is None else SecretStr(login)
    settings: dict[str, dict[str, Any]] = {"api": {"url": api, "auth_string": secret, "ssl_cert_file": str(authority)}}
    if ends_with_command:
        to_api = get_current_settings().logging.to_api.model_copy(update={"enabled": False})
        settings["logging"] = {"to_api": to_api}
    before = {name: os.environ.get(name) for name in set_by_us}
    os.environ.update(set_by_us)
    try:
        with changed_settings(settings), own_heartbeats(are_sent=not ends_with_command):
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


def _answered(authority: Path) -> dict[str, Any]:
    """Settings for clients of the configured server, which has answered. Raises ``MachineError`` if it has not.

    A server that answers without TLS needs no authorities, and Prefect would load all of them for each of five clients:
    0.02 s of processor time each. So its clients get ``authority`` alone.
    """
    found = get_current_settings().api
    url = str(found.url)
    speaks_tls = not url.startswith("http://")
    usual = found.ssl_cert_file or certifi.where()
    trusted = ssl.create_default_context(cafile=usual if speaks_tls else str(authority))
    if speaks_tls and found.tls_insecure_skip_verify:
        trusted.check_hostname, trusted.verify_mode = False, ssl.CERT_NONE
    try:
        answer = _health(url, trusted)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        where = urlsplit(url).hostname or "PREFECT_API_URL"
        raise MachineError(
            f"no Prefect server answers at {where} ({type(error).__name__}), and nothing was done: start it, correct "
            "PREFECT_API_URL or the profile, or unset it, and the command starts a server for itself"
        ) from None
    return {} if speaks_tls or answer.is_redirect else {"ssl_cert_file": str(authority)}


def _health(url: str, trusted: ssl.SSLContext) -> httpx.Response:
    """What the server answers to the question whether it is well. Raises ``httpx.HTTPError`` if there is no answer."""
    for _ in range(_ATTEMPTS - 1):
        with suppress(httpx.ReadTimeout):
            return httpx.get(f"{url}/health", timeout=_ANSWER_SECONDS, verify=trusted)
    return httpx.get(f"{url}/health", timeout=_ANSWER_SECONDS, verify=trusted)


def _send_the_rest() -> None:
    """Send logs and events while the server answers; at the exit of the process they would go to one that has ended.

    Not after an interrupt, which is no ``Exception``: the command has a few seconds for its end then.
    """
    APILogHandler().flush()
    EventsWorker.drain_all()
