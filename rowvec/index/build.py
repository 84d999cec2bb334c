"""Builds and replaces indexes on a vector table while it is in use; an old index goes only after a valid new one."""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
import re
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from psycopg import errors as pg
from psycopg import sql

from rowvec.errors import TargetError
from rowvec.index.build_memory import BuildMemory, foresee, memory_here, spilled_after
from rowvec.index.build_progress import Progress, wait_for_other_builds, watched
from rowvec.index.choice import fits
from rowvec.postgres.connection import Connection, lost_connections_are_retriable
from rowvec.postgres.fragments import cut_name
from rowvec.postgres.migrations import pgvector_version
from rowvec.postgres.queries import query
from rowvec.postgres.tables.partitions import tables_of
from rowvec.postgres.vector_index import IndexChoice, On, column
from rowvec.postgres.vector_table import VectorTable
from rowvec.searches.index_kinds import kind_of, method_of
from rowvec.searches.index_kinds.hnsw import SOUND_PGVECTOR

logger = logging.getLogger(__name__)

# A concurrent build waits for every older transaction, for example a nightly dump, and blocks no reader or writer. A
# plain build makes writers queue behind it while it waits.
_CONCURRENT_LOCK_TIMEOUT = "30min"
_PLAIN_LOCK_TIMEOUT = "30s"
_CLEARING_LOCK_TIMEOUT = "5s"

_PREFIX = re.compile(r"\bsubvector\(embedding, 1, (\d+)\)")
_OURS = re.compile(r"_rowvec_[0-9a-f]{8}(_\d+)?(_cc(new|old)\d*)?$")

# Starting workers takes tenths of a second, so smaller builds gain nothing.
_PARALLEL_FROM_ROWS = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexState:
    """An index on vectors, from the catalog."""

    name: str
    table: str
    """The name of the table that it is on: the vector table, or one of its partitions."""
    kind: str
    on: On
    valid: bool
    bytes: int
    definition: str
    present: IndexChoice
    """The choice that it was built by."""
    ours: bool
    """Whether rowvec made it; rowvec drops only its own indexes."""
    partial: bool


Approve = Callable[[IndexState], bool]
"""Called with a new valid index while the old ones still exist; on False the new one is dropped and they stay."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Built:
    """A successful build."""

    state: IndexState
    rows: int
    memory: BuildMemory
    spilled_after: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexReport:
    """What ``ensure_index`` found and did."""

    index: IndexState | None
    """The index that serves now; None if none is wanted."""
    built: bool
    new: str | None
    """The name of the index that was built, if one was."""
    dropped: tuple[str, ...]
    refused: bool
    """Whether a new index was built and dropped again; then ``index`` is the old one."""
    rows: int
    """Estimated; 0 if nothing was built."""
    memory: BuildMemory | None
    """None if nothing was built."""
    spilled_after: int | None
    """Vectors after which the build ran out of memory; None if it did not."""
    seconds: float


def index_state(connection: Connection, table: VectorTable) -> list[IndexState]:
    """All indexes on the vectors of a table and of its partitions, valid or not, oldest first.

    Those whose access method is of no kind that is installed here are not among them: rowvec neither searches nor
    drops what it does not know.
    """
    rows = connection.execute(query("index", "state"), _name_of(table)).fetchall()
    found = ((kind_of(access_method, extension), row) for access_method, extension, *row in rows)
    return [_state(table, kind, row) for kind, row in found if kind is not None]


def ensure_index(
    connection: Connection,
    table: VectorTable,
    choice: IndexChoice,
    progress: Progress | None = None,
    *,
    readers: bool = True,
    rebuild: bool = False,
    approve: Approve | None = None,
) -> IndexReport:
    """Give the table a valid index according to ``choice``, and drop rowvec's other indexes on its vectors.

    A valid index that fits is left alone, with any name and any creator. Otherwise a new one is built. The old ones are
    dropped only when it is valid and ``approve`` agrees; ``approve`` is called only if a valid one exists. ``readers``:
    the table is in use, so all is done CONCURRENTLY. ``rebuild``: rebuild an index that fits, because it is worn. The
    function waits for a build of another backend, whose client may be gone. ``progress`` is called from another thread.

    Raises ``TargetError`` if the table does not exist or cannot be indexed, ``DatabaseUnavailable`` if a lock was not
    granted in time.
    """
    started = time.monotonic()
    built: _Built | None = None
    refused = False
    with lost_connections_are_retriable():
        facts = connection.execute(query("index", "table_facts"), _name_of(table)).fetchone()
        if facts is None:
            raise TargetError(f"there is no table {table.schema}.{table.name} to index: run a sync first")
        wait_for_other_builds(connection, table, progress)
        dropped = [s.name for s in index_state(connection, table) if s.ours and not s.valid]
        for name in dropped:
            _drop(connection, table, name, readers=readers)
        states = index_state(connection, table)
        # The newest, because an index that a user made stays, and rowvec may have replaced it.
        serving = next((s for s in reversed(states) if s.valid and not s.partial and fits(s.present, choice)), None)
        replaced = [s for s in states if s.ours and (serving is None or rebuild or s.name != serving.name)]
        before = serving or next((s for s in reversed(states) if s.valid and not s.partial), None)
        if choice.kind != "none" and (serving is None or rebuild):
            rows = _rows(connection, table, facts[0], unknown=facts[1])
            built = _build(connection, table, choice, rows, progress, readers=readers)
            refused = before is not None and approve is not None and not approve(built.state)
            if refused:
                replaced, serving = [built.state], before
            else:
                serving = built.state
        for state in replaced:
            _drop(connection, table, state.name, readers=readers)
            dropped.append(state.name)
    return IndexReport(
        index=serving if choice.kind != "none" else None,
        built=built is not None,
        new=built.state.name if built else None,
        dropped=tuple(dropped),
        refused=refused,
        rows=built.rows if built else 0,
        memory=built.memory if built else None,
        spilled_after=built.spilled_after if built else None,
        seconds=time.monotonic() - started,
    )


def _build(
    connection: Connection,
    table: VectorTable,
    choice: IndexChoice,
    rows: int,
    progress: Progress | None,
    *,
    readers: bool,
) -> _Built:
    name = _free_name(connection, table, choice)
    statement = query(
        "index",
        "create",
        concurrently=_concurrently(readers),
        name=sql.Identifier(name),
        table=table.identifier,
        kind=sql.Identifier(method_of(choice.kind).access_method),
        column=column(table, choice),
        opclass=operator_class(connection, choice),
        options=_options(choice),
    )
    settable = not (readers and connection.is_pooled)
    memory = foresee(connection, rows, table.mean_elements(connection), choice, settable=settable)
    if memory.is_refused:
        raise TargetError(f"the index on {table.schema}.{table.name} cannot be built: {memory.written()}")
    if memory.spills:
        logger.warning("the index on %s.%s will not fit: %s", table.schema, table.name, memory.written())
    settings = _settings(connection, rows, memory, readers=readers)
    try:
        with watched(connection, progress), _listening(connection) as notices:
            try:
                _execute(connection, statement, settings, readers=readers)
            except (pg.DiskFull, pg.OutOfMemory):
                # A container's /dev/shm is often 64 MB, and parallel workers share the graph through it.
                _drop(connection, table, name, readers=readers)
                _execute(connection, statement, {**settings, "max_parallel_maintenance_workers": "0"}, readers=readers)
    except pg.Error:
        # A failed concurrent build leaves an invalid index, which slows every write. If this drop fails too, the next
        # call finds it.
        with suppress(pg.Error):
            _drop(connection, table, name, readers=readers, timeout=_CLEARING_LOCK_TIMEOUT)
        raise
    spilled = next((after for after in map(spilled_after, notices) if after is not None), None)
    if spilled is not None:
        logger.warning(
            "the build of the index on %s.%s ran out of its memory after %s vectors", table.schema, table.name, spilled
        )
    state = next(state for state in index_state(connection, table) if state.name == name)
    return _Built(state=state, rows=rows, memory=memory, spilled_after=spilled)


def drop_indexes(connection: Connection, table: VectorTable) -> list[str]:
    """Drop every complete index on the vectors of a table and of its partitions; returns the names of the indexes.

    Readers are not blocked.
    """
    dropped: list[str] = []
    with lost_connections_are_retriable():
        for one in tables_of(connection, table):
            names = [state.name for state in index_state(connection, one) if not state.partial]
            for name in names:
                _drop(connection, one, name, readers=True)
            dropped += names
    return dropped


def _drop(connection: Connection, table: VectorTable, name: str, *, readers: bool, timeout: str | None = None) -> None:
    statement = query("index", "drop", concurrently=_concurrently(readers), name=sql.Identifier(table.schema, name))
    timeout = timeout or (_CONCURRENT_LOCK_TIMEOUT if readers else _PLAIN_LOCK_TIMEOUT)
    _execute(connection, statement, {"lock_timeout": timeout}, readers=readers)


def _concurrently(readers: bool) -> sql.SQL:
    return sql.SQL("CONCURRENTLY" if readers else "")


def operator_class(connection: Connection, choice: IndexChoice) -> sql.Identifier:
    """The operator class of an index, with its schema. Raises ``TargetError`` if the database has none of this name."""
    method = method_of(choice.kind)
    names = {"access_method": method.access_method, "name": choice.opclass}
    row = connection.execute(query("index", "operator_class"), names).fetchone()
    if row is None:
        raise TargetError(
            f"index.kind is {choice.kind}, and the database has no operator class {choice.opclass} of the access "
            f"method {method.access_method}: an administrator runs CREATE EXTENSION {method.extension}, or set "
            "index.kind to auto"
        )
    return sql.Identifier(row[0], choice.opclass)


def _options(choice: IndexChoice) -> sql.Composable:
    options = method_of(choice.kind).with_options(choice)
    if not options:
        return sql.SQL("")
    named = (sql.SQL("{} = {}").format(sql.Identifier(name), sql.Literal(value)) for name, value in options.items())
    return sql.SQL("WITH ({})").format(sql.SQL(", ").join(named))


def _free_name(connection: Connection, table: VectorTable, choice: IndexChoice) -> str:
    """A name derived from the choice, with a number if an index with the same choice exists."""
    what = f"{choice.kind} {choice.on} {choice.opclass} {choice.m} {choice.ef_construction} {choice.lists}"
    what += f" {choice.prefix}" if choice.prefix else ""
    what += f" {choice.bits}" if choice.bits > 1 else ""
    what += f" {choice.options}" if choice.options else ""
    stem = "_rowvec_" + hashlib.sha256(what.encode()).hexdigest()[:8]
    names = connection.execute(query("index", "names"), {"schema": table.schema}).fetchall()
    taken = {str(row[0]) for row in names}
    numbered = (cut_name(table.name, f"{stem}_{number}") for number in itertools.count(2))
    return next(name for name in itertools.chain([cut_name(table.name, stem)], numbered) if name not in taken)


def _rows(connection: Connection, table: VectorTable, estimate: int, *, unknown: bool) -> int:
    """The number of rows, exact enough to size memory; counted only if the table was never analysed."""
    if not unknown and estimate:
        return estimate
    counted = connection.execute(query("index", "count", table=table.identifier)).fetchone()
    return counted[0] if counted else 0


def _settings(connection: Connection, rows: int, memory: BuildMemory, *, readers: bool) -> dict[str, str]:
    workers, for_maintenance = connection.execute(query("index", "workers")).fetchone() or (0, 0)
    if rows < _PARALLEL_FROM_ROWS or pgvector_version(connection) < SOUND_PGVECTOR:
        parallel = 0
    else:
        here = memory_here(connection) > 0
        parallel = min(workers, max(os.cpu_count() or 1, for_maintenance)) if here else for_maintenance
    return {
        "lock_timeout": _CONCURRENT_LOCK_TIMEOUT if readers else _PLAIN_LOCK_TIMEOUT,
        "maintenance_work_mem": f"{memory.given // 1024}kB",
        "max_parallel_maintenance_workers": str(parallel),
        # Vectors in TOAST make a table look too small for workers. This setting makes any table large enough, and it
        # leaves nothing behind after a kill, unlike the table's parallel_workers.
        "min_parallel_table_scan_size": "0",
        # pgvector sends a notice when a graph exceeds its memory.
        "client_min_messages": "notice",
    }


def _execute(connection: Connection, statement: sql.Composed, settings: dict[str, str], *, readers: bool) -> None:
    """Execute a statement with settings; with ``readers`` it is CONCURRENT, which is allowed in no transaction."""
    if readers:
        connection.execute_alone(statement, settings)
        return
    with connection.transaction():
        for name, value in settings.items():
            connection.execute(query("index", "set"), {"name": name, "value": value})
        connection.execute(statement)


@contextmanager
def _listening(connection: Connection) -> Generator[list[str]]:
    """Collect the server's notices while the context is open."""
    heard: list[str] = []

    def hear(notice: pg.Diagnostic) -> None:
        heard.append(notice.message_primary or "")

    connection.add_notice_handler(hear)
    try:
        yield heard
    finally:
        connection.remove_notice_handler(hear)


def _state(table: VectorTable, kind: str, row: Sequence[Any]) -> IndexState:
    name, opclass, valid, size, definition, reloptions, partial, on_table = row
    options = dict(option.split("=", 1) for option in reloptions)
    prefix = _PREFIX.search(definition)
    halved = opclass.startswith("halfvec") and table.precision == "float32"
    on: On = "bits" if opclass.startswith("bit") else "halfvec" if halved else "float"
    # An index on an expression may hold bits, but they are not those of the column.
    bits = 1 if on != "bits" else table.bits if "(embedding_bits " in definition else 0
    held = IndexChoice(
        kind=kind,
        on=on,
        opclass=opclass,
        prefix=int(prefix.group(1)) if prefix else 0,
        bits=bits,
        reason="It exists.",
    )
    return IndexState(
        name=name,
        table=on_table,
        kind=kind,
        on=on,
        valid=valid,
        bytes=size,
        definition=definition,
        present=method_of(kind).present(held, options),
        ours=_OURS.search(name) is not None,
        partial=partial,
    )


def _name_of(table: VectorTable) -> dict[str, str]:
    return {"schema": table.schema, "table": table.name}


def pooled_build(connection: Connection) -> str | None:
    """What a report says about an index that was built through a pooler; None if there is no pooler."""
    if not connection.is_pooled:
        return None
    (memory,) = connection.execute(query("index", "maintenance_work_mem")).fetchone() or ("",)
    return (
        f"the index was built through a pooler, so it had the server's own maintenance_work_mem ({memory}) and "
        "workers: to build with memory for the whole index, set target.direct_url to the database's DSN without the "
        "pooler"
    )


def known_faults(connection: Connection, choice: IndexChoice) -> str | None:
    """What a report says about an index under a pgvector with known faults; None if there is nothing to say."""
    return None if choice.kind == "none" else method_of(choice.kind).faults(pgvector_version(connection))
