"""The Prefect server that a command reports to."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import certifi
import httpx
import pytest
from prefect import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings
from rowvec_tasks import server

from rowvec.cli.prefect_server import prefect_api
from rowvec.errors import MachineError


def test_a_server_that_does_not_answer_is_named_without_its_secrets() -> None:
    address = "http://user:hunter2@127.0.0.1:1/api"
    with temporary_settings({PREFECT_API_URL: address}):
        assert server.is_configured()
        with pytest.raises(MachineError, match=r"no Prefect server answers at 127\.0\.0\.1 .* unset it") as refused:
            prefect_api().__enter__()
    assert "hunter2" not in str(refused.value)


def test_only_clients_of_the_commands_own_server_do_without_the_usual_authorities(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []
    make = ssl.create_default_context

    def noted(*arguments: Any, cafile: str, **named: Any) -> ssl.SSLContext:
        loaded.append(cafile)
        return make(*arguments, cafile=usual, **named)

    usual = certifi.where()
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(ssl, "create_default_context", noted)
    ours = tmp_path / "authority.pem"
    with server.reporting_to("http://127.0.0.1:1/api", None, authorities=ours):
        get_client(sync_client=True)
        httpx.Client().close()
    with server.reporting_to("http://127.0.0.1:1/api", None):
        get_client(sync_client=True)
    assert [file == str(ours) for file in loaded] == [True, False, False]
