"""What ``rowvec up`` has started, in a file in which the next ``up`` and ``down`` find it."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import signal
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Literal

import psutil

from rowvec.runtime.home import home_folder
from rowvec.runtime.private import FILE_MODE

Phase = Literal["starting", "ready", "failed", "ended"]

_TERM_SECONDS = 20.0
_ATTEMPTS = 20
_ATTEMPT_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Process:
    """A process that we started. The system may give its number to another process later, so its creation time is part
    of its identity."""

    pid: int
    created: float
    """Seconds since the epoch."""

    @classmethod
    def of(cls, pid: int) -> Process:
        """The running process of this number. Raises ``psutil.NoSuchProcess`` if there is none."""
        return cls(pid, psutil.Process(pid).create_time())

    @property
    def alive(self) -> bool:
        """Whether the number still belongs to this process, and the process is running."""
        try:
            found = psutil.Process(self.pid)
            return found.create_time() == self.created and found.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    def end(self) -> None:
        """End the process and its descendants, with SIGTERM and then SIGKILL. Does nothing if it has ended."""
        if self.alive:
            # A worker starts each run in a session of its own: a descendant, but not in the worker's process group.
            started = descendants(self.pid)
            os.kill(self.pid, signal.SIGTERM)
            with suppress(psutil.NoSuchProcess, psutil.TimeoutExpired):
                psutil.Process(self.pid).wait(_TERM_SECONDS)
            end_group(self.pid)
            kill_all(started)


def descendants(pid: int) -> list[psutil.Process]:
    """The children of a process, their children, and so on."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def kill_all(processes: list[psutil.Process]) -> None:
    """Kill the processes that still run; psutil makes sure that a number was not given to another process since."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def end_group(leader: int) -> None:
    """Kill what is left of a process's group; the process itself must run or have ended just now."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


@dataclass(frozen=True, slots=True, kw_only=True)
class StackState:
    """The stack of one ``ROWVEC_HOME``."""

    phase: Phase
    port: int
    sentence: str = ""
    """What the stack is doing, or why it failed."""
    database: str | None = None
    """URL of the embedded Postgres; None if ROWVEC_DATABASE_URL names a database, because that may hold a password."""
    pipelines: tuple[str, ...] = ()
    gallery: bool = False
    """Whether the pipeline is the demo's own, whose source table has to be created."""
    every_minutes: int = 0
    children: dict[str, Process] = field(default_factory=dict[str, Process])

    @property
    def ui(self) -> str:
        """Address of the UI."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def api(self) -> str:
        """What PREFECT_API_URL should be for commands on the same machine."""
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
            "login": str(login_file()),
            "logs": str(stack_folder()),
        }


def login() -> str:
    """USER:PASSWORD of this ``ROWVEC_HOME``'s server; made the first time.

    It is in a file that only this user can read. Another user of the machine can reach the port, but gets no answer.
    """
    file = login_file()
    with suppress(FileNotFoundError):
        return file.read_text("utf-8").strip()
    new = file.with_suffix(f".{os.getpid()}")
    new.touch(FILE_MODE)
    new.write_text(f"rowvec:{secrets.token_urlsafe(24)}\n", "utf-8")
    with suppress(FileExistsError):
        os.link(new, file)  # another process may have made it first
    new.unlink()
    return file.read_text("utf-8").strip()


def login_file() -> Path:
    """Where ``login`` is."""
    return stack_folder() / "login"


def stack_folder() -> Path:
    """The folder of the state and the logs; created if it is missing."""
    return home_folder("stack")


def read_state() -> StackState | None:
    """The state that was written last; None if there never was a stack."""
    try:
        found: dict[str, Any] = json.loads((stack_folder() / "state.json").read_text("utf-8"))
    except FileNotFoundError:
        return None
    found["pipelines"] = tuple(found["pipelines"])
    found["children"] = {name: Process(**process) for name, process in found["children"].items()}
    return StackState(**found)


def write_state(state: StackState, **changes: Any) -> StackState:
    """Write the state with these changes, atomically; returns it."""
    changed = replace(state, **changes)
    new = stack_folder() / "state.json.new"
    new.write_text(json.dumps(asdict(changed), indent=2), "utf-8")
    new.replace(stack_folder() / "state.json")
    return changed


@contextmanager
def supervising() -> Generator[bool]:
    """Become the supervisor of the stack; False if another process is. The system releases the lock with the process,
    however it ends."""
    with (stack_folder() / "lock").open("a") as lock:
        if not _locked(lock, fcntl.LOCK_EX):
            yield False
            return
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield True


def supervisor_pid() -> int | None:
    """The number of the process that supervises the stack; None if there is none."""
    with (stack_folder() / "lock").open("a+") as lock:
        # Shared: another process that asks at the same moment must not take this one for the supervisor.
        if _locked(lock, fcntl.LOCK_SH):
            return None
        lock.seek(0)
        written = lock.read()
    return int(written) if written.isdecimal() else None


def _locked(lock: IO[str], how: int) -> bool:
    # A process in `supervisor_pid` holds the lock only for a moment, so the supervisor tries again.
    for _ in range(_ATTEMPTS if how == fcntl.LOCK_EX else 1):
        try:
            fcntl.flock(lock, how | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_ATTEMPT_SECONDS)
        else:
            return True
    return False
