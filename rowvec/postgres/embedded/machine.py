"""The settings with which the embedded Postgres starts: those that fit its machine and its data."""

from __future__ import annotations

from dataclasses import dataclass

MIB, GIB = 1 << 20, 1 << 30

_MOST_BUFFERS = 4 * GIB
_LEAST_BUFFERS = 128 * MIB
# The command and Prefect's server have as much of a machine that is so small that it matters.
_OTHERS = 512 * MIB
# Postgres looks at each buffer when it starts and when a table is dropped: with 4 GB it starts 0.4 s later, and a run
# drops several tables. More than this beyond twice the data would cost that for nothing.
_BEYOND_DATA = GIB

_MOST_WORK, _LEAST_WORK = GIB, 64 * MIB
_MOST_LOG, _LEAST_LOG = 4 * GIB, GIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What the server may count on, in bytes."""

    memory: int
    """Of the machine, or of the container."""
    data: int
    """Size of the databases."""
    disk: int
    """Free where they are."""
    shared: int | None
    """Free in /dev/shm; None if there is none."""


def settings(machine: Machine) -> dict[str, str]:
    """The values of ``postgresql.conf``, by name; a value of ``ALTER SYSTEM`` counts more.

    shared_buffers: a quarter of the memory beyond the 512 MiB of the other processes, 128 MB to 4 GB, and not more than
    1 GB beyond twice the data. effective_cache_size: half of the memory. maintenance_work_mem: a sixteenth, 64 MB to
    1 GB. max_wal_size: a tenth of the free disk, 1 to 4 GB, so that a large load does not wait for checkpoints.
    dynamic_shared_memory_type: files in the data folder if /dev/shm has less room than a parallel build may need, as in
    a container, where it has 64 MB.
    """
    buffers = _between(_LEAST_BUFFERS, (machine.memory - _OTHERS) // 4, _MOST_BUFFERS)
    buffers = min(buffers, _BEYOND_DATA + 2 * machine.data)
    work = _between(_LEAST_WORK, machine.memory // 16, _MOST_WORK)
    fits = machine.shared is not None and machine.shared > work
    return {
        "shared_buffers": _written(buffers),
        "effective_cache_size": _written(max(buffers, machine.memory // 2)),
        "maintenance_work_mem": _written(work),
        "max_wal_size": _written(_between(_LEAST_LOG, machine.disk // 10, _MOST_LOG)),
        "dynamic_shared_memory_type": "posix" if fits else "mmap",
    }


def _between(least: int, value: int, most: int) -> int:
    return max(least, min(value, most))


def _written(size: int) -> str:
    return f"{size // MIB}MB"
