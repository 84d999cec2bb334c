"""The memory that an index build takes: reckoned before, so that a build that would spill is no surprise."""

from __future__ import annotations

import os
import re
from bisect import bisect_right
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from rowvec.postgres.connection import Connection
from rowvec.postgres.queries import query
from rowvec.postgres.vector_index import IndexChoice

# pgvector holds the graph in memory while it builds: each element's own fields, and 16 bytes for each of 2m links at
# the bottom and m on each of the few levels above.
_ELEMENT_BYTES = 200
_LINK_BYTES = 16
_MEMORY_SHARE = 4
_SMALLEST_MEMORY = 64 * 2**20

# IVFFlat's k-means (Elkan's) draws fifty rows a list, and keeps a bound for each of them to each centre: pgvector
# refuses the build where maintenance_work_mem is less than all of it (ElkanKmeans in its ivfkmeans.c).
_SAMPLES_A_LIST = 50
_LEAST_SAMPLES = 10_000
_BOUND_BYTES = 4
_SPILLED = re.compile(r"hnsw graph no longer fits into maintenance_work_mem after (\d+) tuples")


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildMemory:
    """Bytes that a build needs, and those of maintenance_work_mem that it is given."""

    needed: int
    """With something to spare."""
    given: int
    fewer_lists: int | None = None
    """IVFFlat: as many lists as can be built with what is given; None for other kinds."""

    @property
    def spills(self) -> bool:
        """Whether a graph will outgrow its memory, and the rest be inserted vector by vector."""
        return self.needed > self.given and self.fewer_lists is None

    @property
    def is_refused(self) -> bool:
        """Whether the server will not even begin."""
        return self.needed > self.given and self.fewer_lists is not None

    def written(self) -> str:
        """What to tell of a build that spills or is refused."""
        if self.fewer_lists is not None:
            fewer = f"set index.lists to {self.fewer_lists:,} or less, or " if self.fewer_lists else ""
            return (
                f"its lists take about {_written(self.needed)} of memory while they are built, and there are "
                f"{_written(self.given)}: {fewer}raise the server's maintenance_work_mem"
            )
        return (
            f"to be built in memory it needs about {_written(self.needed)} and has {_written(self.given)}, beyond "
            "which it is many times slower: raise the server's maintenance_work_mem, give it more memory, or choose a "
            "smaller index (index.on bits, a smaller index.m)"
        )


def build_memory(rows: int, dimensions: int, choice: IndexChoice, *, configured: int, allowed: int) -> int:
    """Bytes of maintenance_work_mem for a build: what it needs, no more than ``allowed``.

    Never less than ``configured``, what the server's administrator gives to every build anyway.
    """
    needed = needed_memory(rows, dimensions, choice)
    return max(configured, min(allowed, max(needed, _SMALLEST_MEMORY)))


def needed_memory(rows: int, dimensions: int, choice: IndexChoice) -> int:
    """Bytes that an index over ``rows`` vectors takes while it is built, with some added to be sure."""
    held = choice.prefix or dimensions
    value = held // 8 if choice.on == "bits" else held * (2 if choice.opclass.startswith("half") else 4)
    if choice.kind == "ivfflat":
        return _lists_memory(rows, held, value, choice.lists)
    return rows * (value + _ELEMENT_BYTES + _LINK_BYTES * 3 * choice.m) * 5 // 4


def _lists_memory(rows: int, dimensions: int, value: int, lists: int) -> int:
    samples = max(_SAMPLES_A_LIST * lists, _LEAST_SAMPLES)
    item = value + 16
    bounds = _BOUND_BYTES * (min(rows, samples) * (lists + 2) + lists * (lists + 3))
    return (samples * item + lists * (2 * item + 4 * dimensions) + bounds) * 21 // 20


def foresee(connection: Connection, rows: int, dimensions: int, choice: IndexChoice) -> BuildMemory:
    """What a build of ``choice`` over ``rows`` vectors needs, and what it may have on this server."""
    configured, shared_buffers = connection.execute(query("index", "memory")).fetchone() or (0, 0)
    here = memory_here(connection)
    # Of a server elsewhere we know only shared_buffers, by custom a quarter of its memory.
    allowed = here // _MEMORY_SHARE if here else shared_buffers
    given = build_memory(rows, dimensions, choice, configured=configured, allowed=allowed)
    needed = needed_memory(rows, dimensions, choice)
    fewer = fewer_lists(rows, dimensions, choice, given) if choice.kind == "ivfflat" else None
    return BuildMemory(needed=needed, given=given, fewer_lists=fewer)


def fewer_lists(rows: int, dimensions: int, choice: IndexChoice, given: int) -> int:
    """The most lists, up to the choice's number, whose build fits in ``given`` bytes; 0 where not even one does."""
    numbers = range(1, choice.lists + 1)
    return bisect_right(numbers, given, key=lambda n: needed_memory(rows, dimensions, replace(choice, lists=n)))


def memory_here(connection: Connection) -> int:
    """Bytes of memory of this machine or container, if the server is on it too; else 0."""
    host = connection.info.host
    if not (host.startswith("/") or host in ("", "localhost", "127.0.0.1", "::1")):
        return 0
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):
        memory = min(memory, int(Path("/sys/fs/cgroup/memory.max").read_text("ascii")))  # "max" is no number
    return memory


def spilled_after(notice: str) -> int | None:
    """The vectors after which pgvector says that a graph outgrew its memory; None where it says something else."""
    found = _SPILLED.search(notice)
    return int(found.group(1)) if found else None


def _written(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB" if size >= 2**30 else f"{size / 2**20:,.0f} MiB"
