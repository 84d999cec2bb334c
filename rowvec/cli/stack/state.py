"""What ``rowvec up`` has started, written down where the next ``up`` and ``down`` find it."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Literal

import psutil

from rowvec.runtime.home import home

Phase = Literal["starting", "ready", "failed", "ended"]

_TERM_SECONDS = 20.0
_LOOKS = 20
_LOOK_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Process:
    """A process of ours: a number may be given to another one later, so its birth is part of its name."""

    pid: int
    created: float

    @classmethod
    def of(cls, pid: int) -> Process:
        """A process that is there."""
        return cls(pid, psutil.Process(pid).create_time())

    @property
    def alive(self) -> bool:
        """Whether it is still that one, and at work."""
        try:
            found = psutil.Process(self.pid)
            return found.create_time() == self.created and found.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    def end(self) -> None:
        """End it and all it has started: asked first, and then made to. Nothing where it is gone already."""
        if self.alive:
            # A worker gives each run a session of its own: it is a descendant, and in no group of ours.
            started = descendants(self.pid)
            os.kill(self.pid, signal.SIGTERM)
            with suppress(psutil.NoSuchProcess, psutil.TimeoutExpired):
                psutil.Process(self.pid).wait(_TERM_SECONDS)
            end_group(self.pid)
            kill_all(started)


def descendants(pid: int) -> list[psutil.Process]:
    """All that a process has started, and they in turn."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def kill_all(processes: list[psutil.Process]) -> None:
    """End those that are still there; psutil sees to it that a number given anew is not meant."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def end_group(leader: int) -> None:
    """End what is left of a process's session, the process itself being gone a moment ago at most."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


@dataclass(frozen=True, slots=True, kw_only=True)
class StackState:
    """The stack of one ``ROWVEC_HOME``."""

    phase: Phase
    port: int
    sentence: str = ""
    """What it is at, or why it failed."""
    database: str | None = None
    """The embedded Postgres; None where ROWVEC_DATABASE_URL names one, which may hold a password."""
    pipelines: tuple[str, ...] = ()
    gallery: bool = False
    """Whether it is the demo's own pipeline, whose source has to be made."""
    every_minutes: int = 0
    children: dict[str, Process] = field(default_factory=dict[str, Process])

    @property
    def ui(self) -> str:
        """Where the UI is."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def api(self) -> str:
        """What PREFECT_API_URL is to be for commands of the same machine."""
        return f"{self.ui}/api"

    def as_json(self) -> dict[str, Any]:
        """What ``rowvec up --json`` prints."""
        return {
            "phase": self.phase,
            "ui": self.ui,
            "api": self.api,
            "database": self.database,
            "pipelines": list(self.pipelines),
            "every_minutes": self.every_minutes,
            "logs": str(stack_folder()),
        }


def stack_folder() -> Path:
    """Where state and logs are."""
    folder = home() / "stack"
    folder.mkdir(exist_ok=True)
    return folder


def read_state() -> StackState | None:
    """What was written last; None where there never was a stack."""
    try:
        found: dict[str, Any] = json.loads((stack_folder() / "state.json").read_text("utf-8"))
    except FileNotFoundError:
        return None
    found["pipelines"] = tuple(found["pipelines"])
    found["children"] = {name: Process(**process) for name, process in found["children"].items()}
    return StackState(**found)


def write_state(state: StackState, **changes: Any) -> StackState:
    """Write the state with these changes, whole or not at all; returns it."""
    changed = replace(state, **changes)
    new = stack_folder() / "state.json.new"
    new.write_text(json.dumps(asdict(changed), indent=2), "utf-8")
    new.replace(stack_folder() / "state.json")
    return changed


@contextmanager
def kept() -> Generator[bool]:
    """Keep the stack; False where another process keeps it. The lock is the process's and goes with it, however."""
    with (stack_folder() / "lock").open("a") as lock:
        if not _locked(lock, fcntl.LOCK_EX):
            yield False
            return
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield True


def keeper_pid() -> int | None:
    """The process that keeps the stack; None where nobody does."""
    with (stack_folder() / "lock").open("a+") as lock:
        # Shared: who only asks must not be taken for a keeper by another who asks.
        if _locked(lock, fcntl.LOCK_SH):
            return None
        lock.seek(0)
        written = lock.read()
    return int(written) if written.isdecimal() else None


def _locked(lock: IO[str], how: int) -> bool:
    # Whoever only looks holds it for a moment.
    for _ in range(_LOOKS if how == fcntl.LOCK_EX else 1):
        try:
            fcntl.flock(lock, how | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_LOOK_SECONDS)
        else:
            return True
    return False
