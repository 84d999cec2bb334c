"""The paid provider that all syncers of a benchmark use: one server of OpenAI's protocol in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

KEY = "sk-contest"
MODEL = "text-embedding-3-small"
"""With this name a client sends the same requests as to OpenAI; the vectors are drawn from the text's hash."""

_BURST_SECONDS = 6.0
_PATIENCE_SECONDS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """How fast the provider answers, and what it allows."""

    latency: float = 0.2
    """Seconds of every answer."""
    latency_per_text: float = 0.001
    """Seconds more for each text of a request."""
    requests_per_minute: int = 5_000
    tokens_per_minute: int = 5_000_000
    """Both limits are those of an OpenAI account of tier 3; a tenth of a minute's may be used at once."""
    poison: str | None = None
    """A request with a text that contains this string is answered with 400."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    """What a syncer has requested."""

    requests: int = 0
    refused: int = 0
    """Requests that were not answered with 200."""
    paid: int = 0
    """Texts in requests that were answered with 200."""
    distinct: int = 0
    """Distinct texts among them."""
    tokens: int = 0
    in_flight: int = 0


@dataclass(frozen=True, slots=True)
class Provider:
    """A running server."""

    origin: str

    @property
    def url(self) -> str:
        """The ``base_url`` for a client."""
        return f"{self.origin}/v1"

    def bill(self) -> Bill:
        """What was requested since the last reset."""
        with urllib.request.urlopen(f"{self.origin}/stats", timeout=_PATIENCE_SECONDS) as answer:  # noqa: S310 # ours
            stats: dict[str, Any] = json.loads(answer.read())
        return Bill(
            requests=stats["requests"],
            refused=stats["requests"] - stats["statuses"].get("200", 0),
            paid=stats["paid"],
            distinct=stats["distinct_paid"],
            tokens=stats["tokens"],
            in_flight=stats["in_flight"],
        )

    def reset(self) -> None:
        """Start a new bill."""
        request = urllib.request.Request(f"{self.origin}/reset", data=b"{}", method="POST")  # noqa: S310 # ours
        urllib.request.urlopen(request, timeout=_PATIENCE_SECONDS).close()  # noqa: S310 # ours


@contextmanager
def serving(account: Account) -> Generator[Provider]:
    """Run the server for as long as the block lasts."""
    words = [
        f"--key={KEY}",
        f"--latency={account.latency}",
        f"--latency-per-text={account.latency_per_text}",
        f"--requests-per-minute={account.requests_per_minute}",
        f"--tokens-per-minute={account.tokens_per_minute}",
        f"--burst-seconds={_BURST_SECONDS}",
        *([f"--poison={account.poison}"] if account.poison else []),
    ]
    command = [sys.executable, "-m", "tests.support.servers.openai_server", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603 # ours
        try:
            assert process.stdout is not None
            yield Provider(f"http://127.0.0.1:{process.stdout.readline().strip()}")
        finally:
            process.terminate()
