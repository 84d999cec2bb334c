"""The real command as a process of its own, against a real Prefect server: what a test may kill, starve and lie to."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

from rowvec.pipeline import Pipeline

CLI = Path(sys.executable).parent / "rowvec"
_PATIENCE_SECONDS = 150


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A command that is over."""

    status: int
    """Negative: the signal that ended it."""
    stdout: str
    stderr: str

    @property
    def json(self) -> dict[str, Any]:
        """The one object on stdout."""
        return json.loads(self.stdout)


@dataclass(slots=True)
class Command:
    """A command at work."""

    process: subprocess.Popen[str]

    def wait(self, seconds: float = _PATIENCE_SECONDS) -> Ended:
        """How it ends by itself."""
        stdout, stderr = self.process.communicate(timeout=seconds)
        return Ended(status=self.process.returncode, stdout=stdout, stderr=stderr)

    def kill(self, number: int = signal.SIGKILL) -> Ended:
        """End it, with whatever it has started."""
        os.killpg(self.process.pid, number)
        return self.wait()

    def when(self, holds: Callable[[], object], seconds: float = _PATIENCE_SECONDS) -> Command:
        """Wait until something holds while the command is at work; the command itself, for chaining."""
        end = time.monotonic() + seconds
        while not holds():
            assert self.process.poll() is None, f"it ended before that: {self.wait()}"
            assert time.monotonic() < end, "that never came to hold"
            time.sleep(0.02)
        return self


def start(api: str, *words: str | Path, **environment: str) -> Command:
    """Start ``rowvec`` with these words; more environment by keyword."""
    process = subprocess.Popen(  # noqa: S603 # our own command on our own file
        [CLI, *words],
        env={**os.environ, "PREFECT_API_URL": api, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    return Command(process)


def write_pipeline(pipeline: Pipeline, folder: Path) -> Path:
    """The pipeline as a file."""
    file = folder / f"{pipeline.name}.yaml"
    file.write_text(yaml.safe_dump(pipeline.model_dump(mode="json", exclude_none=True)), "utf-8")
    return file


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefectServer:
    """A Prefect server that commands talk to."""

    api: str
    home: Path
    """Where its database is."""


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Generator[PrefectServer]:
    """One server a session: a command then starts in two seconds and not in twelve."""
    with serving(tmp_path_factory.mktemp("prefect")) as server:
        yield server


@pytest.fixture
def prefect_api(prefect_server: PrefectServer) -> Generator[None]:
    """The session's Prefect server, for flows of this process: a second one would not get the events of its runs."""
    with temporary_settings({PREFECT_API_URL: prefect_server.api, PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        yield


@contextmanager
def serving(home: Path, **settings: str) -> Generator[PrefectServer]:
    """A server on a port and a database of its own; more settings by keyword."""
    home.mkdir(exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(CLI.parent / "prefect"), "server", "start", "--host", "127.0.0.1", "--port", str(port), "--no-ui"]
    quiet = {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "PREFECT_LOGGING_SERVER_LEVEL": "CRITICAL"}
    with (home / "server.log").open("w") as log:
        process = subprocess.Popen(  # noqa: S603 # ours
            command,
            env={**os.environ, **quiet, **settings, "PREFECT_HOME": str(home)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            _wait_for(f"http://127.0.0.1:{port}/api/health", process, home / "server.log")
            yield PrefectServer(api=f"http://127.0.0.1:{port}/api", home=home)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(url, timeout=5):  # noqa: S310 # our own server
                return
        except (urllib.error.URLError, TimeoutError):
            time.sleep(0.2)
    pytest.fail(f"no Prefect server after {_PATIENCE_SECONDS} s: {log.read_text()}")
