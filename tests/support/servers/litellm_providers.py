"""The server of ``openai_server``, which speaks Ollama's and Cohere's protocols too: what litellm translates to."""

from __future__ import annotations

import json
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from tests.support.servers.fault_injection import running
from tests.support.servers.openai_server import Handler, OpenAIServer


class ProvidersServer(OpenAIServer):
    """``bodies`` are the requests as they came in."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.bodies: list[dict[str, Any]] = []
        self.RequestHandlerClass = _Handler


class _Handler(Handler):
    server: ProvidersServer  # pyright: ignore[reportIncompatibleVariableOverride] # no other server has this handler

    form = "openai"

    def do_POST(self) -> None:
        path = urlsplit(self.path).path
        body = json.loads(self.received() or b"{}")
        self.server.bodies.append(body)
        self.form = "ollama" if path == "/api/embed" else "cohere" if path.endswith("/embed") else "openai"
        texts, dimensions = body.get("texts", body.get("input")), body.get("dimensions", body.get("output_dimension"))
        self._embeddings(
            path, {"input": texts, "dimensions": dimensions, "encoding_format": "float"}, str(body["model"])
        )

    def _send(self, status: int, body: dict[str, Any] | str, headers: dict[str, str] | None = None) -> None:
        if isinstance(body, dict) and self.form != "openai":
            body = self._translated(status, body)
        super()._send(status, body, headers)

    def _translated(self, status: int, body: dict[str, Any]) -> dict[str, Any]:
        if status != 200:
            message = body["error"]["message"]
            return {"error": message} if self.form == "ollama" else {"message": message}
        rows, tokens = [one["embedding"] for one in body["data"]], body["usage"]["prompt_tokens"]
        if self.form == "ollama":
            return {"model": body["model"], "embeddings": rows, "prompt_eval_count": tokens}
        return {"id": "x", "embeddings": {"float": rows}, "meta": {"billed_units": {"input_tokens": tokens}}}


@contextmanager
def serve(**options: Any) -> Generator[ProvidersServer]:
    """A server in a thread, on a port of its own; ``options`` are those of ``OpenAIServer``."""
    with running(ProvidersServer(**options)) as server:
        yield server
