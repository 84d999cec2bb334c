"""The process behind ``rowvec up``: it runs Postgres, the Prefect server and a worker until ``rowvec down``."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from types import FrameType
from typing import Any

import httpx

from rowvec.cli.demo.gallery import create_gallery_once
from rowvec.cli.stack.deployments import POOL
from rowvec.cli.stack.state import (
    Process,
    StackState,
    descendants,
    end_group,
    kill_all,
    login,
    read_state,
    stack_folder,
    supervising,
    write_state,
)
from rowvec.errors import RowvecError, TargetError
from rowvec.postgres.embedded import release_postgres, start_postgres
from rowvec.runtime.home import home

_SERVER_SECONDS = 120.0
_ANSWER_SECONDS = 60.0
_LOOK_SECONDS = 1.0
# The supervisor starts a server or worker again that ended by itself. It rests before that: a process that cannot stay
# up must not fill the disk with logs.
_REST_SECONDS = 5.0


class _Ended(Exception):
    """``rowvec down`` has asked the supervisor to end."""


class _Supervisor:
    def __init__(self, state: StackState, stop: threading.Event) -> None:
        self._state = state
        self._stop = stop
        self._folder = stack_folder()
        self._environment = environment(state)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._commands = {
            "server": ("server", "start", "--host", "127.0.0.1", "--port", str(state.port)),
            "worker": ("worker", "start", "--pool", POOL, "--name", "rowvec up"),
        }

    def start(self) -> None:
        """Start server and worker, in the order in which they need each other."""
        self.update(sentence="starting the Prefect server")
        self._start("server")
        self._wait_for_server()
        self.update(sentence="applying the deployments")
        self._prefect("work-pool", "create", POOL, "--type", "process", "--overwrite")
        self._prefect("deploy", "--all", "--prefect-file", str(self._folder / "prefect.yaml"))
        self.update(sentence="starting a worker")
        self._start("worker")
        self._sync_once()
        self.update(phase="ready", sentence="running")

    def watch(self) -> None:
        """Start server or worker again if it ends by itself, until ``rowvec down``."""
        while not self._stop.wait(_LOOK_SECONDS):
            for name, process in list(self._processes.items()):
                if process.poll() is not None and not self._stop.wait(_REST_SECONDS):
                    # No process would end the flow runs of a worker that was killed.
                    end_group(process.pid)
                    self._start(name)

    def end(self) -> None:
        """End the worker first, then the server that it reports to."""
        for name in ("worker", "server"):
            if name in self._processes:
                process = self._processes[name]
                started = descendants(process.pid)
                if process.poll() is None:
                    process.terminate()
                    try:
                        process.wait(_REST_SECONDS * 4)
                    except subprocess.TimeoutExpired:
                        process.kill()
                end_group(process.pid)
                kill_all(started)
                process.wait()

    def update(self, **changes: Any) -> None:
        """Write the changed state. Raises ``_Ended`` after ``rowvec down``, so that a start ends early."""
        if self._stop.is_set():
            raise _Ended
        self._state = write_state(self._state, **changes)

    def _start(self, name: str) -> None:
        with (self._folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(  # noqa: S603 # Prefect's own command with our arguments
                [sys.executable, "-m", "prefect", *self._commands[name]],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._processes[name] = process
        children = {**self._state.children, name: Process.of(process.pid)}
        self._state = write_state(self._state, children=children)

    def _wait_for_server(self) -> None:
        end = time.monotonic() + _SERVER_SECONDS
        while time.monotonic() < end:
            if self._stop.wait(0.2):
                raise _Ended
            if self._processes["server"].poll() is not None:
                raise TargetError(f"the Prefect server ended at once; the reason is in {self._folder}/server.log")
            with suppress(httpx.HTTPError):
                httpx.get(f"{self._state.api}/health", timeout=5).raise_for_status()
                return
        raise TargetError(f"the Prefect server did not answer in time; see {self._folder}/server.log")

    def _sync_once(self) -> None:
        # A schedule that begins in a moment would not do: a slow machine applies it too late.
        api = self._state.api
        user, _, password = login().partition(":")
        try:
            with httpx.Client(timeout=_ANSWER_SECONDS, auth=(user, password)) as client:
                for name in self._state.pipelines:
                    found = client.get(f"{api}/deployments/name/sync/{name}").raise_for_status().json()
                    wanted = {"parameters": {"cause": "up"}}
                    client.post(f"{api}/deployments/{found['id']}/create_flow_run", json=wanted).raise_for_status()
        except httpx.HTTPError as error:
            raise TargetError(
                f"the server did not take the first sync ({type(error).__name__}); see {self._folder}/server.log"
            ) from error

    def _prefect(self, *words: str) -> None:
        with (self._folder / "deploy.log").open("ab") as log:
            done = subprocess.run(  # noqa: S603 # Prefect's own command with our arguments
                [sys.executable, "-m", "prefect", "--no-prompt", *words],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                check=False,
            )
        if done.returncode:
            raise TargetError(f"prefect {words[0]} failed; its output is in {self._folder}/deploy.log")


def environment(state: StackState) -> Mapping[str, str]:
    """Environment of server, worker and runs: Prefect with a home of its own, and this ``ROWVEC_HOME``."""
    return {
        **os.environ,
        "ROWVEC_HOME": str(home()),
        "PREFECT_HOME": str(home() / "prefect"),
        "PREFECT_PROFILES_PATH": str(home() / "prefect" / "profiles.toml"),
        "PREFECT_API_URL": state.api,
        "PREFECT_API_AUTH_STRING": login(),
        "PREFECT_SERVER_API_AUTH_STRING": login(),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PYTHONUNBUFFERED": "1",
    }


def supervise(state: StackState, stop: threading.Event) -> None:
    """Start everything, run it until ``stop`` is set, and end it, whatever happens meanwhile.

    Raises ``TargetError`` if a part does not start.
    """
    postgres = None
    supervisor = _Supervisor(state, stop)
    try:
        if not os.environ.get("ROWVEC_DATABASE_URL"):
            postgres = start_postgres(home() / "postgres")
            supervisor.update(database=postgres.get_uri())
            if state.gallery:
                create_gallery_once(postgres.get_uri())
        supervisor.start()
        supervisor.watch()
    finally:
        supervisor.end()
        if postgres is not None:
            release_postgres(postgres)


def main() -> None:
    """Run the supervisor: ``rowvec up`` starts it detached, ``rowvec down`` ends it with SIGTERM."""
    stop = threading.Event()

    def end(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    with supervising() as mine:
        state = read_state()
        if not mine or state is None:
            sys.exit(1)
        try:
            supervise(state, stop)
            ended = "ended", "rowvec down"
        except _Ended:
            ended = "ended", "rowvec down"
        except RowvecError as error:
            ended = "failed", str(error)
        last = read_state() or state
        write_state(last, phase=ended[0], sentence=ended[1], children={})


if __name__ == "__main__":
    main()
