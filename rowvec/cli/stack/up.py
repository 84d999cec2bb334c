"""``rowvec up`` and ``rowvec down``: start the whole local stack, and end it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import yaml

from rowvec.cli.demo.gallery import pipeline_file
from rowvec.cli.stack.deployments import prefect_file
from rowvec.cli.stack.state import StackState, read_state, stack_folder, supervisor_pid, write_state
from rowvec.errors import TargetError, UsageError
from rowvec.pipeline.file import load
from rowvec.postgres.embedded import release_postgres, start_postgres
from rowvec.runtime.home import home

FIRST_PORT = 4200
_PORTS = 100
_START_SECONDS = 240.0
_END_SECONDS = 90.0
_SETTLED_SECONDS = 10.0

Say = Callable[[str], None]


def up(files: list[Path], port: int | None, every_minutes: int, say: Say) -> tuple[StackState, bool]:
    """Start the stack and wait until it is ready; returns its state, and whether this call started it.

    Without files the stack runs the demo's gallery. ``say`` gets a sentence for each step. Raises ``UsageError`` if the
    port is taken or the pipeline files do not fit together, and ``TargetError`` if the stack does not become ready.
    """
    if supervisor_pid() is not None:
        return _wait(say), False
    if not files and os.environ.get("ROWVEC_DATABASE_URL"):
        raise UsageError("ROWVEC_DATABASE_URL names a database of yours: name the pipeline files to run against it")
    pipelines = {file: load(file) for file in files or [pipeline_file()]}
    names = tuple(pipeline.name for pipeline in pipelines.values())
    if len(set(names)) < max(len(names), len(files)):
        raise UsageError(
            f"two of the pipeline files have the same name ({', '.join(sorted(names))}); give each its own"
        )
    chosen = _port(port)
    written = yaml.safe_dump(prefect_file(pipelines, Path.cwd(), every_minutes, datetime.now(UTC)), sort_keys=False)
    (stack_folder() / "prefect.yaml").write_text(written, "utf-8")
    state = StackState(phase="starting", port=chosen, sentence="starting Postgres", pipelines=names, gallery=not files)
    write_state(state, every_minutes=every_minutes)
    _start_supervisor()
    return _wait(say), True


def down(say: Say) -> dict[str, Any]:
    """End all that ``up`` has started, and nothing else, even if the supervisor was killed.

    Returns whether anything was running, as ``{"ended": ...}``. Raises ``TargetError`` if the supervisor does not end.
    """
    state, pid = read_state(), supervisor_pid()
    if pid is not None:
        say("ending worker, server and Postgres")
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        _wait_until_gone(pid)
    # The state names the processes that a killed supervisor had started.
    left = [name for name, process in (state.children if state else {}).items() if process.alive]
    for name in sorted(left, reverse=True):  # the worker before the server
        say(f"ending the {name}")
        state.children[name].end() if state else None
    # Nor has a supervisor that was being killed stopped its Postgres.
    if state is not None and state.database and (home() / "postgres" / "postmaster.pid").exists():
        release_postgres(start_postgres(home() / "postgres"))
    if state is not None:
        write_state(state, phase="ended", sentence="rowvec down", children={})
    return {"ended": pid is not None or bool(left)}


def _port(asked: int | None) -> int:
    if asked is not None:
        if not _is_free(asked):
            raise UsageError(f"port {asked} is taken by another program; give another one with --port, or leave it out")
        return asked
    for port in range(FIRST_PORT, FIRST_PORT + _PORTS):
        if _is_free(port):
            return port
    raise UsageError(f"the ports from {FIRST_PORT} to {FIRST_PORT + _PORTS - 1} are all taken; give one with --port")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # A server that has just ended leaves connections in TIME_WAIT. Prefect's server ignores them, and so do we.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _start_supervisor() -> None:
    with (stack_folder() / "supervisor.log").open("ab") as log:
        subprocess.Popen(
            [sys.executable, "-m", "rowvec.cli.stack.supervisor"],
            env={**os.environ, "ROWVEC_HOME": str(home())},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def _wait(say: Say) -> StackState:
    end, sentence = time.monotonic() + _START_SECONDS, ""
    started = time.monotonic()
    while time.monotonic() < end:
        state = read_state()
        if state is None or state.phase == "failed":
            raise TargetError(state.sentence if state else f"nothing was started; see {stack_folder()}/supervisor.log")
        if state.phase == "ready":
            return state
        if state.sentence != sentence:
            sentence = state.sentence
            say(sentence)
        # The supervisor needs a moment until it holds its lock.
        if time.monotonic() - started > _SETTLED_SECONDS and supervisor_pid() is None:
            raise TargetError(
                f"the stack ended while it was starting; the reason is in {stack_folder()}/supervisor.log"
            )
        time.sleep(0.2)
    raise TargetError(f"the stack was not ready in time; the logs are in {stack_folder()}; rowvec down ends it")


def _wait_until_gone(pid: int) -> None:
    try:
        psutil.Process(pid).wait(_END_SECONDS)
    except psutil.NoSuchProcess:
        return
    except psutil.TimeoutExpired:
        raise TargetError(f"the process {pid} does not end; see {stack_folder()}/supervisor.log") from None
