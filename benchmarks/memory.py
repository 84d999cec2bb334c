"""How much memory this process has had at its peak, since it was last asked to forget."""

from __future__ import annotations

import resource
from contextlib import suppress
from pathlib import Path


def forget_peak() -> None:
    """Linux starts the process's peak anew; elsewhere it is that of the whole run."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_mb() -> int:
    """Resident, mapped files with it."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    found = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(found.split()[1]) >> 10
