"""The index on a vector table: built beside the readers, replaced before it is dropped, trusted only when valid."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from psycopg import errors as pg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from rowvec.database import Connection, connect, lost_connections_are_retriable
from rowvec.errors import RowvecError, TargetError
from rowvec.index_choice import IndexChoice, Kind, On, fits
from rowvec.queries import query
from rowvec.vector_table import VectorTable

Progress = Callable[[float, str], None]
"""Called with the share done, from 0 to 1, and the phase as Postgres names it."""

# A concurrent build waits for every transaction older than itself, a nightly dump too; it blocks no reader or writer
# meanwhile. A plain build, waiting, makes writers queue behind it.
_CONCURRENT_LOCK_TIMEOUT = "30min"
_PLAIN_LOCK_TIMEOUT = "30s"
_CLEARING_LOCK_TIMEOUT = "5s"

_POLL_SECONDS = 0.25
_LONGEST_NAME = 63
_PREFIX = re.compile(r"\bsubvector\(embedding, 1, (\d+)\)")
_OURS = re.compile(r"_rowvec_[0-9a-f]{8}(_\d+)?(_cc(new|old)\d*)?$")

# pgvector holds the graph in memory while it builds: each element's own fields, and 16 bytes for each of 2m links at
# the bottom and m on each of the few levels above.
_ELEMENT_BYTES = 200
_LINK_BYTES = 16
_MEMORY_SHARE = 4
_SMALLEST_MEMORY = 64 * 2**20
# Workers cost tenths of a second to start: nothing is won below.
_PARALLEL_FROM_ROWS = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexState:
    """An index on vectors, as the catalog has it."""

    name: str
    kind: Kind
    on: On
    valid: bool
    bytes: int
    definition: str
    present: IndexChoice
    """What it was built as."""
    ours: bool
    """Made by rowvec, which alone may drop it."""
    partial: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexReport:
    """What ``ensure_index`` found and did."""

    index: IndexState | None
    """The index that serves now; None where none is wanted."""
    built: bool
    dropped: tuple[str, ...]
    seconds: float


def cut_name(table: str, suffix: str) -> str:
    """``table`` and ``suffix`` as one name of at most 63 bytes; a name that had to be cut keeps a digest of the whole.

    Postgres itself cuts without a word, and two long names can then be one.
    """
    if len((table + suffix).encode()) <= _LONGEST_NAME:
        return table + suffix
    digest = "_" + hashlib.sha256(table.encode()).hexdigest()[:8]
    room = _LONGEST_NAME - len((digest + suffix).encode())
    return table.encode()[:room].decode(errors="ignore") + digest + suffix


def index_state(connection: Connection, table: VectorTable) -> list[IndexState]:
    """All indexes on the table's vectors, valid or not, oldest first."""
    rows = connection.execute(query("index", "state"), _name_of(table)).fetchall()
    return [_state(table, row) for row in rows]


def ensure_index(
    connection: Connection,
    table: VectorTable,
    choice: IndexChoice,
    progress: Progress | None = None,
    *,
    readers: bool = True,
    rebuild: bool = False,
) -> IndexReport:
    """See to it that the table has a valid index as ``choice`` wants it, and no other of ours.

    A valid index that fits is left alone, whoever made it and whatever its name. Otherwise a new one is built, and
    only when it is valid are the old ones dropped. ``readers``: the table is in use, so everything goes CONCURRENTLY.
    ``rebuild``: build anew though the index fits, because it is worn. A build that another backend still has under
    way (its client may be long gone) is waited for. ``progress`` is called from another thread.

    Raises ``TargetError`` where the table does not exist or cannot be indexed, ``DatabaseUnavailable`` where locks
    were not to be had in time.
    """
    started = time.monotonic()
    with lost_connections_are_retriable():
        facts = connection.execute(query("index", "table_facts"), _name_of(table)).fetchone()
        if facts is None:
            raise TargetError(f"there is no table {table.schema}.{table.name} to index: run a sync first")
        _wait_for_other_builds(connection, table, progress)
        dropped = [s.name for s in index_state(connection, table) if s.ours and not s.valid]
        for name in dropped:
            _drop(connection, table, name, readers=readers)
        states = index_state(connection, table)
        serving = next((s for s in states if s.valid and not s.partial and fits(s.present, choice)), None)
        built = choice.kind != "none" and (serving is None or rebuild)
        if built:
            rows = _rows(connection, table, facts[0], unknown=facts[1])
            serving = _build(connection, table, choice, rows, progress, readers=readers)
        keep = serving.name if serving else None
        for state in states:
            if state.ours and state.name != keep:
                _drop(connection, table, state.name, readers=readers)
                dropped.append(state.name)
    return IndexReport(
        index=serving if choice.kind != "none" else None,
        built=built,
        dropped=tuple(dropped),
        seconds=time.monotonic() - started,
    )


def build_memory(rows: int, dimensions: int, choice: IndexChoice, *, configured: int, allowed: int) -> int:
    """Bytes of maintenance_work_mem for a build: what the graph needs, no more than ``allowed``.

    Never less than ``configured``, what the server's administrator gives to every build anyway.
    """
    held = choice.prefix or dimensions
    value = held // 8 if choice.on == "bits" else held * (2 if choice.opclass.startswith("half") else 4)
    needed = rows * (value + _ELEMENT_BYTES + _LINK_BYTES * 3 * choice.m) * 5 // 4
    return max(configured, min(allowed, max(needed, _SMALLEST_MEMORY)))


def _build(
    connection: Connection,
    table: VectorTable,
    choice: IndexChoice,
    rows: int,
    progress: Progress | None,
    *,
    readers: bool,
) -> IndexState:
    name = _free_name(connection, table, choice)
    statement = query(
        "index",
        "create",
        concurrently=_concurrently(readers),
        name=sql.Identifier(name),
        table=table.identifier,
        kind=sql.Identifier(choice.kind),
        column=_column(table, choice),
        opclass=sql.Identifier(choice.opclass),
        options=_options(choice),
    )
    settings = _settings(connection, table, choice, rows, readers=readers)
    try:
        with _watched(connection, progress):
            try:
                with _session(connection, settings):
                    connection.execute(statement)
            except (pg.DiskFull, pg.OutOfMemory):
                # A container's /dev/shm is often 64 MB, and parallel workers share the graph through it.
                _drop(connection, table, name, readers=readers)
                with _session(connection, {**settings, "max_parallel_maintenance_workers": "0"}):
                    connection.execute(statement)
    except pg.Error:
        # What a failed concurrent build leaves behind is invalid, and slows every write. If this fails too, the
        # next call finds it.
        with suppress(pg.Error):
            _drop(connection, table, name, readers=readers, timeout=_CLEARING_LOCK_TIMEOUT)
        raise
    return next(state for state in index_state(connection, table) if state.name == name)


def _drop(connection: Connection, table: VectorTable, name: str, *, readers: bool, timeout: str | None = None) -> None:
    statement = query("index", "drop", concurrently=_concurrently(readers), name=sql.Identifier(table.schema, name))
    timeout = timeout or (_CONCURRENT_LOCK_TIMEOUT if readers else _PLAIN_LOCK_TIMEOUT)
    with _session(connection, {"lock_timeout": timeout, "statement_timeout": "0"}):
        connection.execute(statement)


def _concurrently(readers: bool) -> sql.SQL:
    return sql.SQL("CONCURRENTLY" if readers else "")


def _column(table: VectorTable, choice: IndexChoice) -> sql.Composable:
    if choice.on == "bits":
        return sql.SQL("embedding_bits")
    return indexed_expression(table, choice, sql.SQL("embedding")) or sql.SQL("embedding")


def indexed_expression(table: VectorTable, choice: IndexChoice, of: sql.Composable) -> sql.Composed | None:
    """What an index on floats holds of ``of``, an embedding; None where that is the embedding as it is stored.

    A query must say it word for word, or the planner would not know the index.
    """
    if not choice.prefix and choice.on == "float":
        return None
    half = choice.on == "halfvec" or table.precision == "float16"
    cut = sql.SQL("subvector({}, 1, {})").format(of, sql.Literal(choice.prefix)) if choice.prefix else of
    cast = sql.SQL("({}::halfvec({}))" if half else "({}::vector({}))")
    return cast.format(cut, sql.Literal(choice.prefix or table.dimensions))


def _options(choice: IndexChoice) -> sql.Composed:
    if choice.kind == "hnsw":
        return sql.SQL("m = {}, ef_construction = {}").format(
            sql.Literal(choice.m), sql.Literal(choice.ef_construction)
        )
    return sql.SQL("lists = {}").format(sql.Literal(choice.lists))


def _free_name(connection: Connection, table: VectorTable, choice: IndexChoice) -> str:
    """A name that says what the index is; numbered where an index like it is there to be replaced."""
    what = f"{choice.kind} {choice.on} {choice.opclass} {choice.m} {choice.ef_construction} {choice.lists}"
    what += f" {choice.prefix}" if choice.prefix else ""
    stem = "_rowvec_" + hashlib.sha256(what.encode()).hexdigest()[:8]
    names = connection.execute(query("index", "names"), {"schema": table.schema}).fetchall()
    taken = {str(row[0]) for row in names}
    numbered = (cut_name(table.name, f"{stem}_{number}") for number in itertools.count(2))
    return next(name for name in itertools.chain([cut_name(table.name, stem)], numbered) if name not in taken)


def _rows(connection: Connection, table: VectorTable, estimate: int, *, unknown: bool) -> int:
    """Good enough to size memory by: counted only where nobody has analysed the table yet."""
    if not unknown and estimate:
        return estimate
    counted = connection.execute(query("index", "count", table=table.identifier)).fetchone()
    return counted[0] if counted else 0


def _settings(
    connection: Connection, table: VectorTable, choice: IndexChoice, rows: int, *, readers: bool
) -> dict[str, str]:
    configured, shared_buffers = connection.execute(query("index", "memory")).fetchone() or (0, 0)
    workers, for_maintenance = connection.execute(query("index", "workers")).fetchone() or (0, 0)
    here = _memory_here(connection)
    # Of a server elsewhere we know only shared_buffers, by custom a quarter of its memory.
    allowed = here // _MEMORY_SHARE if here else shared_buffers
    memory = build_memory(rows, table.dimensions, choice, configured=configured, allowed=allowed)
    if rows < _PARALLEL_FROM_ROWS:
        parallel = 0
    else:
        parallel = min(workers, max(os.cpu_count() or 1, for_maintenance)) if here else for_maintenance
    return {
        "lock_timeout": _CONCURRENT_LOCK_TIMEOUT if readers else _PLAIN_LOCK_TIMEOUT,
        "statement_timeout": "0",
        "maintenance_work_mem": f"{memory // 1024}kB",
        "max_parallel_maintenance_workers": str(parallel),
        # Vectors in TOAST make a table look too small for workers; this makes any table large enough, and, unlike the
        # table's parallel_workers, leaves nothing behind when we are killed.
        "min_parallel_table_scan_size": "0",
    }


def _memory_here(connection: Connection) -> int:
    """Bytes of memory of this machine or container, if the server is on it too; else 0."""
    host = connection.info.host
    if not (host.startswith("/") or host in ("", "localhost", "127.0.0.1", "::1")):
        return 0
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):
        memory = min(memory, int(Path("/sys/fs/cgroup/memory.max").read_text("ascii")))  # "max" is no number
    return memory


@contextmanager
def _session(connection: Connection, settings: dict[str, str]) -> Generator[None]:
    """Settings for what cannot run in a transaction, put back afterwards."""
    before = connection.execute(query("index", "current_settings"), {"names": list(settings)}).fetchall()
    for name, value in settings.items():
        connection.execute(query("index", "set"), {"name": name, "value": value})
    try:
        yield
    finally:
        if not connection.closed and not connection.broken:
            for name, value in before:
                connection.execute(query("index", "set"), {"name": name, "value": value})


@contextmanager
def _watched(connection: Connection, progress: Progress | None) -> Generator[None]:
    """Report on the build that ``connection`` is busy with, from a second connection."""
    if progress is None:
        yield
        return
    info = connection.info
    stop = threading.Event()
    url = make_conninfo(info.dsn, **({"password": info.password} if info.password else {}))
    thread = threading.Thread(target=_watch, args=(url, info.backend_pid, progress, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    progress(1.0, "done")


def _watch(url: str, pid: int, progress: Progress, stop: threading.Event) -> None:
    # No second connection to be had, or this one lost: the build goes on unreported.
    with suppress(RowvecError, pg.Error), connect(url, application="rowvec progress") as connection:
        while not stop.wait(_POLL_SECONDS):
            row = connection.execute(query("index", "build_of"), {"pid": pid}).fetchone()
            if row is not None:
                progress(*_share(row))


def _wait_for_other_builds(connection: Connection, table: VectorTable, progress: Progress | None) -> None:
    parameters = {**_name_of(table), "mine": connection.info.backend_pid}
    while True:
        row = connection.execute(query("index", "builds"), parameters).fetchone()
        if row is None:
            return
        if progress is not None:
            progress(*_share(row))
        time.sleep(_POLL_SECONDS)


def _share(row: tuple[Any, ...]) -> tuple[float, str]:
    _, phase, blocks, blocks_done, tuples, tuples_done = row
    done = [part / whole for whole, part in ((blocks, blocks_done), (tuples, tuples_done)) if whole and part]
    return min(max(done, default=0.0), 1.0), str(phase)


def _state(table: VectorTable, row: tuple[Any, ...]) -> IndexState:
    name, kind, opclass, valid, size, definition, reloptions, partial = row
    options = dict(option.split("=", 1) for option in reloptions)
    prefix = _PREFIX.search(definition)
    halved = opclass.startswith("halfvec") and table.precision == "float32"
    on: On = "bits" if opclass.startswith("bit") else "halfvec" if halved else "float"
    present = IndexChoice(
        kind=kind,
        on=on,
        opclass=opclass,
        m=int(options.get("m", 16)),
        ef_construction=int(options.get("ef_construction", 64)),
        lists=int(options.get("lists", 100)) if kind == "ivfflat" else 0,
        prefix=int(prefix.group(1)) if prefix else 0,
        reason="It is there.",
    )
    return IndexState(
        name=name,
        kind=kind,
        on=on,
        valid=valid,
        bytes=size,
        definition=definition,
        present=present,
        ours=_OURS.search(name) is not None,
        partial=partial,
    )


def _name_of(table: VectorTable) -> dict[str, str]:
    return {"schema": table.schema, "table": table.name}
