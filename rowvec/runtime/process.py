"""Which process this is, so that another process on the same machine can see whether it still exists."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path

_BOOT = Path("/proc/sys/kernel/random/boot_id")
_NAMESPACE = Path("/proc/self/ns/pid")

_STATE, _STARTED = 0, 19
"""Fields of ``/proc/PID/stat`` after the name of the program, which may have spaces in it: see proc(5)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A process, told apart from all others that any machine has had."""

    machine: str
    """A machine, its boot, and the namespace of process numbers in it; empty if the system does not tell."""
    pid: int
    started: int
    """In clock ticks since the boot: a process number is used again."""

    def is_gone(self) -> bool:
        """Whether the process is known to have ended; False if it runs, is stopped, or is on another machine."""
        here = this_process()
        if not here.machine or here.machine != self.machine:
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass  # it exists, and belongs to another user
        # A system may hide the processes of others: then it is not known to be another one than it was.
        found = _state_of(self.pid)
        return found is not None and (found[0] in ("Z", "X") or found[1] != self.started)


def this_process() -> Process:
    """The process that calls this."""
    pid = os.getpid()
    found = _state_of(pid)
    return Process(machine=_machine() if found else "", pid=pid, started=found[1] if found else 0)


def _machine() -> str:
    try:
        return f"{socket.gethostname()}/{_BOOT.read_text().strip()}/{_NAMESPACE.stat().st_ino}"
    except OSError:
        return ""


def _state_of(pid: int) -> tuple[str, int] | None:
    """The state of a process and its start; None if there is no such process, or no such file system."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return fields[_STATE], int(fields[_STARTED])
