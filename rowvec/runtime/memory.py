"""The memory that this process may use: the least of the machine's and of its container's limits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from rowvec.errors import MachineError

MIB = 1 << 20

TIGHT = 640 * MIB
"""A run with less than this works with smaller batches, one at a time."""

# Measured with the local model and 256 dimensions, as what a process adds to what it has in memory before it:
# docs/how-to/operations.md has the whole. One small batch; and many, with the merge of 200,000 rows.
ONE_BATCH, MANY_BATCHES = 64 * MIB, 250 * MIB

SOME_ROWS = 32 * MIB
"""What the next rows of a source take that is compared by hashes, here and in a Postgres under the same limit."""

_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")
# By the version of cgroups: a group's limit, its use, and the part of the use that the system gives up for others.
_FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("memory.max", "memory.current", "inactive_file"),
}
# Version 1 writes a limit that is none as the largest number of pages.
_NO_LIMIT = 1 << 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What is left for this process and for what it starts."""

    free: int
    """Bytes that can still be used."""
    limit: int
    """Bytes that all processes under the limit may use together."""
    of: str
    """Whose limit it is, for a sentence."""


def memory(proc: Path = _PROC, cgroups: Path = _CGROUPS) -> Memory:
    """The tightest limit on this process: the group that has least left, or the machine."""
    return min(_limits(proc, cgroups), key=lambda one: one.free)


def whole_memory(proc: Path = _PROC, cgroups: Path = _CGROUPS) -> int:
    """Bytes of the machine, or of the container that this process is in."""
    return min(one.limit for one in _limits(proc, cgroups))


def _limits(proc: Path, cgroups: Path) -> list[Memory]:
    """That of the machine, and those of all groups of this process."""
    machine = psutil.virtual_memory()
    found = [Memory(free=machine.available, limit=machine.total, of="this machine")]
    for version, folder in _groups(proc, cgroups):
        limited = _limit(folder, *_FILES[version])
        if limited is not None:
            found.append(limited)
    return found


def is_tight() -> bool:
    """Whether a run should work with smaller batches, and with one at a time."""
    return memory().free < TIGHT


def require(need: int, what: str) -> None:
    """Raise ``MachineError`` if less than ``need`` bytes are left: the system would kill the process in its work."""
    found = memory()
    if found.free < need:
        raise MachineError(
            f"{what} needs {need // MIB:,} MiB of memory, and {found.of} has {max(0, found.free) // MIB:,} MiB of its "
            f"{found.limit // MIB:,} MiB left; nothing was paid for, and readers see what they saw: give it more, or "
            "set PREFECT_API_URL and ROWVEC_DATABASE_URL so that Prefect's server and Postgres run elsewhere"
        )


def _groups(proc: Path, cgroups: Path) -> Iterator[tuple[int, Path]]:
    """The memory groups of this process, each with those above it, whose limits hold for it too."""
    try:
        lines = (proc / "self/cgroup").read_text("utf-8").splitlines()
    except OSError:
        return  # no Linux
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            version, top = 2, cgroups / "unified" if (cgroups / "unified").is_dir() else cgroups
        elif "memory" in controllers.split(","):
            version, top = 1, cgroups / "memory"
        else:
            continue
        # In a container the path may be the host's, and what is mounted is the container's own group.
        inner = top / path.lstrip("/")
        folder = inner if inner.is_dir() else top
        yield from ((version, above) for above in (folder, *folder.parents) if above.is_relative_to(top))


def _limit(folder: Path, limit: str, used: str, reclaimable: str) -> Memory | None:
    try:
        written = (folder / limit).read_text("utf-8").strip()
        if written == "max" or int(written) >= _NO_LIMIT:
            return None
        using = int((folder / used).read_text("utf-8"))
        cache = dict(line.split(maxsplit=1) for line in (folder / "memory.stat").read_text("utf-8").splitlines())
    except (OSError, ValueError):
        return None
    free = int(written) - using + int(cache.get(reclaimable, 0))
    return Memory(free=free, limit=int(written), of="the limit of its container or service")
