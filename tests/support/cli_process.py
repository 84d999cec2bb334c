"""The real command in its own process, against a real Prefect server: a test may kill it and give it faulty servers."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from filelock import FileLock
from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

from rowvec.pipeline import Pipeline
from tests.support.forked_commands import CommandForks, ForkedProcess
from tests.support.waiting import PATIENCE_SECONDS, wait_for

CLI = Path(sys.executable).parent / "rowvec"

_forks: dict[str, CommandForks] = {}
"""By the API of the Prefect server that the commands report to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A command that has ended."""

    status: int
    """Negative if a signal ended it."""
    stdout: str
    stderr: str

    @property
    def json(self) -> dict[str, Any]:
        """The one JSON object on stdout."""
        return json.loads(self.stdout)


@dataclass(slots=True)
class Command:
    """A command that is at work."""

    process: subprocess.Popen[str] | ForkedProcess

    def wait(self, seconds: float = PATIENCE_SECONDS) -> Ended:
        """Wait until it ends by itself; returns how."""
        stdout, stderr = self.process.communicate(timeout=seconds)
        status = self.process.returncode
        assert status is not None
        return Ended(status=status, stdout=stdout, stderr=stderr)

    def kill(self, number: int = signal.SIGKILL) -> Ended:
        """Send a signal to it and to all it has started; returns how it ended."""
        os.killpg(self.process.pid, number)
        return self.wait()

    def when(self, holds: Callable[[], object], seconds: float = PATIENCE_SECONDS) -> Command:
        """Wait until ``holds`` returns something true while the command is at work; returns the command."""

        def reached() -> bool:
            if holds():
                return True
            assert self.process.poll() is None, f"the command ended before that: {self.wait()}"
            return False

        wait_for(reached, seconds)
        return self


def start(api: str, *words: str | Path, **environment: str) -> Command:
    """Start ``rowvec`` with these words; more environment by keyword.

    A command that reports to the session's Prefect server is forked from a process that has imported it, unless its
    environment asks for other settings of Prefect and the like: then the interpreter starts it.
    """
    whole = {**os.environ, "PREFECT_API_URL": api, **environment}
    forking = _forks.get(api)
    if forking is not None and forking.can_start(whole):
        return Command(forking.start([str(word) for word in words], whole))
    process = subprocess.Popen(  # noqa: S603 # our own command on our own file
        [CLI, *words],
        env=whole,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    return Command(process)


def write_pipeline(pipeline: Pipeline, folder: Path) -> Path:
    """Write the pipeline to a file in this folder."""
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
def prefect_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The database of a new Prefect server, to copy: to migrate one takes eight seconds, once for all processes."""
    folder = tmp_path_factory.getbasetemp()
    # The processes of one test run have their folders next to each other.
    shared = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    home = shared / "new-prefect-server"
    with FileLock(shared / "new-prefect-server.lock", timeout=PATIENCE_SECONDS):
        if not home.exists():
            # Of another name until it is whole.
            unfinished = shared / "unfinished-prefect-server"
            subprocess.run(  # noqa: S603 # ours
                [CLI.parent / "prefect", "server", "database", "upgrade", "--yes"],
                env={**os.environ, "PREFECT_HOME": str(unfinished)},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=True,
            )
            unfinished.rename(home)
    return home / "prefect.db"


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory, prefect_database: Path) -> Generator[PrefectServer]:
    """One server a session: a command with a server of its own takes ten seconds more."""
    with serving(tmp_path_factory.mktemp("prefect"), prefect_database) as server:
        _forks[server.api] = forks = CommandForks(server.api)
        yield server
        del _forks[server.api]
        forks.close()


@pytest.fixture
def prefect_api(prefect_server: PrefectServer) -> Generator[None]:
    """The session's Prefect server, for flows of this process: a second one would not get the events of its runs."""
    with temporary_settings({PREFECT_API_URL: prefect_server.api, PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        yield


@contextmanager
def serving(home: Path, database: Path | None = None, **settings: str) -> Generator[PrefectServer]:
    """A server with its own port and database, if given a copy of one; more settings by keyword."""
    home.mkdir(exist_ok=True)
    if database is not None:
        shutil.copy(database, home)
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
            wait_for(lambda: _answers(f"http://127.0.0.1:{port}/api/health", process, home / "server.log"), every=0.2)
            yield PrefectServer(api=f"http://127.0.0.1:{port}/api", home=home)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _answers(url: str, process: subprocess.Popen[bytes], log: Path) -> bool:
    assert process.poll() is None, log.read_text()
    try:
        with urllib.request.urlopen(url, timeout=5):  # noqa: S310 # our own server
            return True
    except (urllib.error.URLError, TimeoutError):
        return False
