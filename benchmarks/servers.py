"""The servers that benchmarks of whole runs use: a Prefect server, and a provider that speaks OpenAI's protocol."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

_START_SECONDS = 120


@contextmanager
def prefect_server(folder: Path) -> Generator[str]:
    """The address of a Prefect server's API, with default settings but for its home; flows of this process use it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}/api"
    folder.mkdir(parents=True, exist_ok=True)
    os.environ |= {
        "PREFECT_HOME": str(folder),
        "PREFECT_API_URL": url,
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    }
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)  # noqa: S603 # ours
        try:
            _wait_for(f"{url}/health", process)
            yield url
        finally:
            _send_logs()
            process.terminate()
            process.wait()


def _send_logs() -> None:
    """Send the logs of this process's flows now: at exit Prefect would look for the server for more than a minute."""
    if "prefect.logging.handlers" in sys.modules:
        from prefect.logging.handlers import APILogHandler

        APILogHandler().flush()


@contextmanager
def provider(*words: str) -> Generator[str]:
    """The origin of a server of OpenAI's protocol in a process of its own; ``words`` are its command-line options."""
    command = [sys.executable, "-m", "tests.support.servers.openai_server", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603 # ours
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
    finally:
        process.terminate()
        process.wait()


def _wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=2).close()  # noqa: S310 # our own server
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
        else:
            return
    raise SystemExit(f"no Prefect server answered at {url}")
