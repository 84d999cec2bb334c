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
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

import pytest
import yaml
from filelock import FileLock
from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

from rowvec.cli.own_server import OwnServer
from rowvec.pipeline import Pipeline
from tests.support import forked_commands
from tests.support.forked_commands import CommandForks, ForkedProcess, Mounts
from tests.support.run_folder import open_until_the_end, run_folder
from tests.support.waiting import PATIENCE_SECONDS, wait_for

CLI = Path(sys.executable).parent / "rowvec"

EMPTY_DATABASE = f"empty-{version('prefect')}.db"
"""The file below ROWVEC_HOME, in ``prefect/``, that a command's own server begins with."""

ALONE = {
    f"PREFECT_SERVER_SERVICES_{service}_ENABLED": "false"
    for service in (
        "CANCELLATION_CLEANUP",
        "CLEANUP_RECONCILER",
        "FOREMAN",
        "LATE_RUNS",
        "PAUSE_EXPIRATIONS",
        "REPOSSESSOR",
        "SCHEDULER",
        "TRIGGERS",
    )
}
"""Settings of a server whose runs are started by commands alone: it need not look for schedules, workers and events."""


class Printed(dict[str, Any]):
    """A JSON object that a command has printed. A test that asks for what is not in it fails with all of it."""

    def __missing__(self, key: str) -> NoReturn:
        raise AssertionError(f"the command printed no {key!r}: {dict(self)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A command that has ended."""

    status: int
    """Negative if a signal ended it."""
    stdout: str
    stderr: str

    @property
    def json(self) -> Printed:
        """The one JSON object on stdout."""
        return Printed(json.loads(self.stdout))


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

    The command is forked from a process that has imported it, unless its environment asks for what that process has
    read while it imported it: then the interpreter starts it.
    """
    whole = {**os.environ, "PREFECT_API_URL": api, **environment}
    forks = command_forks()
    if forks.can_start(whole):
        return Command(forks.start([str(word) for word in words], whole))
    return start_interpreter(api, *words, **environment)


def start_interpreter(api: str, *words: str | Path, **environment: str) -> Command:
    """As ``start``, in an interpreter of the command's own."""
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


def start_within(api: str, mounts: Mounts, *words: str | Path, **environment: str) -> Command:
    """As ``start``, with mounts of the command's own; it must be one that is forked."""
    whole = {**os.environ, "PREFECT_API_URL": api, **environment}
    return Command(command_forks().start([str(word) for word in words], whole, mounts))


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
def prefect_database(pytestconfig: pytest.Config) -> Path:
    """The empty database of a new Prefect server, to copy: to make one takes ten seconds, once per version of Prefect.

    A command that starts a server for itself makes it.
    """
    home = pytestconfig.cache.mkdir(f"prefect-{version('prefect')}")
    database = home / "prefect" / EMPTY_DATABASE
    with FileLock(home / "lock", timeout=PATIENCE_SECONDS):
        if not database.exists():
            with pytest.MonkeyPatch.context() as patched:
                patched.setenv("ROWVEC_HOME", str(home))
                patched.delenv("PREFECT_API_URL", raising=False)
                server = OwnServer()
                try:
                    server.wait()
                finally:
                    server.stop()
    return database


def give_empty_database(home: Path, database: Path) -> None:
    """Let commands with this ROWVEC_HOME begin with this empty database, as all but the first one on a machine do."""
    folder = home / "prefect"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    shutil.copyfile(database, folder / EMPTY_DATABASE)


@cache
def command_forks() -> CommandForks:
    """The process that forks commands, one for all processes of the run. An interpreter takes two seconds for each."""
    address, variables = run_folder() / "forks", run_folder() / "forks.json"
    with FileLock(run_folder() / "forks.lock", timeout=PATIENCE_SECONDS):
        if not variables.exists():
            life = open_until_the_end()
            # Each command gets an environment of its own; this process has none of the test that starts it. Prefect's
            # home is made where Prefect is imported.
            plain = {name: value for name, value in os.environ.items() if not name.startswith("ROWVEC_")}
            environment = {**plain, "PREFECT_HOME": str(run_folder() / "forks-home")}
            # It goes on after this process, until the run ends. Without a status, subprocess would warn of that.
            forked_commands.start(address, environment, life).returncode = 0
            os.close(life)
            variables.write_text(json.dumps(environment), "utf-8")
    return CommandForks(address, json.loads(variables.read_text("utf-8")))


@pytest.fixture(scope="session")
def prefect_server(prefect_database: Path) -> PrefectServer:
    """One server for all processes of the run. A command with a server of its own takes ten seconds more."""
    home, address = run_folder() / "prefect", run_folder() / "prefect.txt"
    with FileLock(run_folder() / "prefect.lock", timeout=PATIENCE_SECONDS):
        if not address.exists():
            life = open_until_the_end()
            process, api = _start_server(home, prefect_database, ALONE, life)
            os.close(life)
            process.returncode = 0
            address.write_text(api, "utf-8")
    return PrefectServer(api=address.read_text("utf-8"), home=home)


@pytest.fixture
def prefect_api(prefect_server: PrefectServer) -> Generator[None]:
    """The run's Prefect server, for flows of this process: a second one would not get the events of its runs."""
    with temporary_settings({PREFECT_API_URL: prefect_server.api, PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        yield


@contextmanager
def serving(home: Path, database: Path | None = None, **settings: str) -> Generator[PrefectServer]:
    """A server with its own port and its own copy of a database, or a new one; more settings by keyword."""
    process, api = _start_server(home, database, settings, subprocess.PIPE)
    try:
        yield PrefectServer(api=api, home=home)
    finally:
        process.kill()
        process.communicate()


def _start_server(
    home: Path, database: Path | None, settings: dict[str, str], life: int
) -> tuple[subprocess.Popen[bytes], str]:
    """Start a server, and wait until it answers. It ends with what it has as its standard input."""
    home.mkdir()
    if database is not None:
        shutil.copyfile(database, home / "prefect.db")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = ["uvicorn", "--factory", "prefect.server.api.server:create_app", "--lifespan", "on"]
    words += ["--host", "127.0.0.1", "--port", str(port), "--log-level", "error"]
    quiet = {
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_LOGGING_SERVER_LEVEL": "CRITICAL",
        "PREFECT_UI_ENABLED": "false",
        # How long a request waits for another one that writes. The default of 10 s is too short on a busy machine.
        "PREFECT_API_DATABASE_TIMEOUT": str(PATIENCE_SECONDS),
        "PREFECT_API_DATABASE_CONNECTION_TIMEOUT": str(PATIENCE_SECONDS),
    }
    with (home / "server.log").open("w") as log:
        process = subprocess.Popen(  # noqa: S603 # ours
            [sys.executable, "-m", "rowvec.runtime.tethered", *words],
            env={**os.environ, **quiet, **settings, "PREFECT_HOME": str(home)},
            cwd=home,
            stdin=life,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    wait_for(lambda: _answers(f"http://127.0.0.1:{port}/api/health", process, home / "server.log"), every=0.2)
    return process, f"http://127.0.0.1:{port}/api"


def _answers(url: str, process: subprocess.Popen[bytes], log: Path) -> bool:
    assert process.poll() is None, log.read_text()
    try:
        with urllib.request.urlopen(url, timeout=5):  # noqa: S310 # our own server
            return True
    except (urllib.error.URLError, TimeoutError):
        return False
