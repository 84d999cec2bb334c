"""The Prefect server that a command reports to."""

from __future__ import annotations

import socket
import ssl
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import certifi
import httpx
import pytest
from prefect import get_client
from prefect.settings import PREFECT_API_SSL_CERT_FILE, PREFECT_API_URL, get_current_settings, temporary_settings
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


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files of authorities that clients load."""
    found: list[str] = []
    make, usual = ssl.create_default_context, certifi.where()

    def noted(*arguments: Any, cafile: str, **named: Any) -> ssl.SSLContext:
        found.append(cafile)
        return make(*arguments, cafile=usual, **named)

    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(ssl, "create_default_context", noted)
    return found


def test_clients_of_the_commands_own_server_do_without_the_usual_authorities(tmp_path: Path, loaded: list[str]) -> None:
    ours = tmp_path / "authority.pem"
    with server.reporting_to("http://127.0.0.1:1/api", None, authority=ours, ends_with_command=True):
        get_client(sync_client=True)
        httpx.Client().close()
    assert [file == str(ours) for file in loaded] == [True, False]


class _Answering(BaseHTTPRequestHandler):
    """A server that answers, or one that sends its clients to another, which speaks TLS."""

    moved = False

    def do_GET(self) -> None:
        self.send_response(308 if self.moved else 200)
        self.send_header("Location", "https://127.0.0.1:1/api/health")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.mark.parametrize("moved", [False, True])
def test_clients_of_a_configured_server_do_without_them_only_if_it_answers_without_tls(
    moved: bool, loaded: list[str]
) -> None:
    handler = type("_Handler", (_Answering,), {"moved": moved})
    with HTTPServer(("127.0.0.1", 0), handler) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        try:
            with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{listening.server_port}/api"}), prefect_api():
                loaded.clear()
                get_client(sync_client=True)
        finally:
            listening.shutdown()
    (file,) = loaded
    assert (Path(file).name == "authority.pem") is not moved


def test_a_server_whose_authority_the_user_has_named_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefect's own clients trust it; so does the question whether it answers."""
    asked: list[Any] = []
    theirs = tmp_path / "theirs.pem"
    theirs.write_bytes(Path(certifi.where()).read_bytes())

    def answer(_url: str, *, verify: ssl.SSLContext, **_named: Any) -> httpx.Response:
        asked.append(verify)
        return httpx.Response(200)

    made: list[str] = []
    make = ssl.create_default_context

    def noted(*, cafile: str) -> ssl.SSLContext:
        made.append(cafile)
        return make(cafile=cafile)

    monkeypatch.setattr(ssl, "create_default_context", noted)
    monkeypatch.setattr(httpx, "get", answer)
    named: dict[Any, str] = {PREFECT_API_URL: "https://prefect.example/api", PREFECT_API_SSL_CERT_FILE: str(theirs)}
    with temporary_settings(named), prefect_api():
        kept = get_current_settings().api.ssl_cert_file
    assert kept == str(theirs)
    assert made == [str(theirs)]
    assert asked[0].verify_mode == ssl.CERT_REQUIRED


def test_a_server_that_has_much_to_do_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_ANSWER_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"http://127.0.0.1:{listening.getsockname()[1]}/api"
        accepted = threading.Event()

        def answer() -> None:
            silent, _ = listening.accept()
            with silent, listening.accept()[0] as second:
                accepted.set()
                second.recv(4096)
                second.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ntrue")

        thread = threading.Thread(target=answer)
        thread.start()
        with temporary_settings({PREFECT_API_URL: address}), prefect_api():
            assert accepted.is_set()
        thread.join()


def test_a_server_that_never_answers_is_not_waited_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_ANSWER_SECONDS", 0.02)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/api"
        with temporary_settings({PREFECT_API_URL: address}), pytest.raises(MachineError, match=r"\(ReadTimeout\)"):
            prefect_api().__enter__()
