"""Estimates the memory of an index build in advance, so that rowvec can warn of a build that would spill."""

from __future__ import annotations

import re
from dataclasses import dataclass

from psycopg import sql

from rowvec.postgres.connection import Connection
from rowvec.postgres.queries import query
from rowvec.postgres.vector_index import IndexChoice
from rowvec.runtime.memory import memory, whole_memory
from rowvec.searches.index_kinds import method_of

# What a build may take of the memory of this machine, and of what is left of it: the server's buffers fill too while it
# reads the table. In a container of 1,024 MiB with command and server, a quarter of the whole was more than was left.
_MEMORY_SHARE, _FREE_SHARE = 4, 2
_SMALLEST_MEMORY = 64 * 2**20
_SPILLED = re.compile(r"hnsw graph no longer fits into maintenance_work_mem after (\d+) tuples")


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildMemory:
    """The memory that a build needs, and the maintenance_work_mem that it gets, both in bytes."""

    needed: int
    """An estimate with a safety margin; 0: unknown."""
    given: int
    fewer_lists: int | None = None
    """IVFFlat: the most lists that can be built with ``given`` bytes; None for other kinds."""

    @property
    def spills(self) -> bool:
        """True if a graph will outgrow its memory, so that the rest is inserted vector by vector."""
        return self.needed > self.given and self.fewer_lists is None

    @property
    def is_refused(self) -> bool:
        """True if the server will reject the build at its start."""
        return self.needed > self.given and self.fewer_lists is not None

    def written(self) -> str:
        """The message for a build that spills or is rejected: what it needs, what it has, and what to do."""
        if self.fewer_lists is not None:
            fewer = f"set index.lists to {self.fewer_lists:,} or less, or " if self.fewer_lists else ""
            return (
                f"its lists take about {_written(self.needed)} of memory during the build, and there are "
                f"{_written(self.given)}: {fewer}raise the server's maintenance_work_mem"
            )
        return (
            f"to be built in memory it needs about {_written(self.needed)} and has {_written(self.given)}; a graph "
            "that does not fit is built many times slower: raise the server's maintenance_work_mem, give it more "
            "memory, or choose a smaller index (index.on bits, a smaller index.m)"
        )


def build_memory(rows: int, dimensions: int, choice: IndexChoice, *, configured: int, allowed: int) -> int:
    """Bytes of maintenance_work_mem for a build: what it needs, but not more than ``allowed``.

    The result is at least ``configured``, the server's own setting, which every build gets anyway.
    """
    needed = method_of(choice.kind).needed_memory(rows, dimensions, choice)
    return max(configured, min(allowed, max(needed, _SMALLEST_MEMORY)))


def foresee(
    connection: Connection, rows: int, dimensions: int, choice: IndexChoice, *, settable: bool = True
) -> BuildMemory:
    """The memory that a build of ``choice`` over ``rows`` vectors needs, and what it may use on this server.

    ``settable``: whether the build can be given memory; if not, it has the server's own setting.
    """
    configured, shared_buffers = connection.execute(query("index", "memory")).fetchone() or (0, 0)
    here = memory_here(connection)
    # Of a server on another machine we know only shared_buffers, which is usually a quarter of its memory.
    allowed = min(here // _MEMORY_SHARE, memory().free // _FREE_SHARE) if here else shared_buffers
    given = build_memory(rows, dimensions, choice, configured=configured, allowed=allowed) if settable else configured
    method = method_of(choice.kind)
    needed = method.needed_memory(rows, dimensions, choice)
    fewer = method.most_parts(rows, dimensions, choice, given)
    return BuildMemory(needed=needed, given=given, fewer_lists=fewer)


def index_and_buffers(connection: Connection, table: sql.Identifier) -> tuple[int, int]:
    """Bytes of the table's vector indexes, and of the server's ``shared_buffers``."""
    named = sql.Literal(table.as_string(connection))
    return connection.execute(query("index", "held", table=named)).fetchone() or (0, 0)


def small_buffers(index: int, buffers: int, ms_per_vector: float | None) -> str | None:
    """A sentence if an index of so many bytes does not fit into so many bytes of buffers; None if it does.

    ``ms_per_vector``: what a merge took for each vector that it inserted, if that was measured. An insert into a graph
    touches thousands of pages: 82 MB of them took 8 to 24 ms with 24 MB of buffers, and 3.5 to 5 ms with 1 GB.
    """
    if index <= buffers:
        return None
    cost = "" if ms_per_vector is None else f", and a merge took {ms_per_vector:,.1f} ms for each vector that it wrote"
    return (
        f"the index, {_written(index)}, is larger than shared_buffers of the server, {_written(buffers)}: searches and "
        f"merges read the disk{cost}; set shared_buffers to {_written(index * 4 // 3)} or more"
    )


def memory_here(connection: Connection) -> int:
    """Bytes of memory of this machine or container if the server runs on it too; else 0."""
    host = connection.info.host
    if not (host.startswith("/") or host in ("", "localhost", "127.0.0.1", "::1")):
        return 0
    return whole_memory()


def spilled_after(notice: str) -> int | None:
    """The number of vectors after which a graph outgrew its memory, from pgvector's notice; None for other notices."""
    found = _SPILLED.search(notice)
    return int(found.group(1)) if found else None


def _written(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB" if size >= 2**30 else f"{size / 2**20:,.0f} MiB"
