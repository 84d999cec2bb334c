"""The index is built, repaired and replaced, and readers have a usable index at every moment."""

from __future__ import annotations

import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import LiteralString

import numpy as np
import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg import errors as pg
from psycopg import sql

from rowvec.errors import DatabaseUnavailable, TargetError
from rowvec.index.build import ensure_index, index_state
from rowvec.index.build_memory import build_memory, foresee
from rowvec.postgres.columns import PgColumn
from rowvec.postgres.connection import Connection, connect
from rowvec.postgres.fragments import cut_name
from rowvec.postgres.vector_index import IndexChoice
from rowvec.postgres.vector_table import VectorTable
from rowvec.runtime.memory import Memory
from rowvec.searches.index_kinds import method_of
from rowvec.searches.query import search
from rowvec.searches.request import SearchRequest
from tests.support.vector_tables import create, filled, vector_table

NONE = IndexChoice(kind="none", reason="")
BITS = IndexChoice(kind="hnsw", on="bits", opclass="bit_hamming_ops", reason="")
FLOAT = IndexChoice(kind="hnsw", on="float", opclass="vector_cosine_ops", reason="")
IVFFLAT = IndexChoice(kind="ivfflat", on="float", opclass="vector_cosine_ops", lists=10, reason="")
HALFVEC = IndexChoice(kind="hnsw", on="halfvec", opclass="halfvec_cosine_ops", reason="")
PREFIX = replace(FLOAT, prefix=8)
HALF_PREFIX = replace(HALFVEC, prefix=8)


def oid(connection: Connection, name: str) -> int:
    row = connection.execute("SELECT %s::regclass::oid::bigint", (sql.Identifier(name).as_string(),)).fetchone()
    assert row
    return row[0]


@pytest.mark.parametrize("readers", [True, False])
def test_an_index_is_built_if_missing_and_kept_if_it_fits(connection: Connection, readers: bool) -> None:
    table = vector_table(16)
    filled(connection, table, 500)
    small = replace(FLOAT, m=8)
    for choice in (BITS, FLOAT, IVFFLAT, HALFVEC, PREFIX, HALF_PREFIX, small, replace(small, ef_construction=32)):
        made = ensure_index(connection, table, choice, readers=readers)
        assert made.built
        assert made.index
        assert made.index.present.prefix == choice.prefix
        assert (made.index.kind, made.index.on, made.index.valid) == (choice.kind, choice.on, True)
        again = ensure_index(connection, table, choice, readers=readers)
        assert (again.built, again.dropped, again.index) == (False, (), made.index)
        assert [state.name for state in index_state(connection, table)] == [made.index.name]
    gone = ensure_index(connection, table, NONE, readers=readers)
    assert (gone.index, gone.built, len(gone.dropped)) == (None, False, 1)
    assert index_state(connection, table) == []


def test_an_invalid_index_is_not_trusted_for_its_name(connection: Connection) -> None:
    """The name alone proves nothing; ``indisvalid`` decides."""
    table = vector_table(16)
    filled(connection, table, 500)
    first = ensure_index(connection, table, BITS).index
    assert first
    connection.execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid = %s::regclass", (first.name,))
    before = oid(connection, first.name)
    report = ensure_index(connection, table, BITS)
    assert report.built
    assert report.dropped == (first.name,)
    assert report.index
    assert report.index.valid
    assert oid(connection, report.index.name) != before
    assert len(index_state(connection, table)) == 1


def test_indexes_of_others_are_used_but_never_dropped(connection: Connection) -> None:
    table = vector_table(16)
    filled(connection, table, 500)
    connection.execute("CREATE INDEX by_hand ON items USING hnsw (embedding vector_cosine_ops)")
    connection.execute("CREATE INDEX partial ON items USING hnsw (embedding_bits bit_hamming_ops) WHERE year > 1500")
    report = ensure_index(connection, table, FLOAT)
    assert (report.built, report.index and report.index.name) == (False, "by_hand")
    report = ensure_index(connection, table, BITS)
    assert report.built  # the partial one serves only some searches
    assert report.dropped == ()
    assert {state.name for state in index_state(connection, table)} >= {"by_hand", "partial"}
    assert ensure_index(connection, table, NONE).dropped == ((report.index.name,) if report.index else ())
    assert {state.name for state in index_state(connection, table)} == {"by_hand", "partial"}


def test_readers_have_a_usable_index_throughout_a_replacement(connection: Connection, direct_url: str) -> None:
    """The new index is valid before the old one is dropped; a worn index is rebuilt in the same way."""
    table = vector_table(32)
    vectors = filled(connection, table, 1_500)
    ensure_index(connection, table, BITS)
    stop, seen, empty = threading.Event(), list[int](), list[int]()

    def read() -> None:
        with connect(direct_url) as reader:
            while not stop.is_set():
                row = reader.execute(
                    "SELECT count(*) FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid"
                    " JOIN pg_am AS a ON a.oid = c.relam"
                    " WHERE i.indrelid = 'items'::regclass AND a.amname = 'hnsw' AND i.indisvalid AND i.indisready"
                ).fetchone()
                seen.append(row[0] if row else 0)
                if len(search(reader, table, BITS, SearchRequest(vectors[1], 10))) != 10:
                    empty.append(1)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        for choice in (FLOAT, BITS):
            assert ensure_index(connection, table, choice).built
        before = index_state(connection, table)
        rebuilt = ensure_index(connection, table, BITS, rebuild=True)
        assert rebuilt.dropped == tuple(state.name for state in before)
    finally:
        stop.set()
        thread.join()
    assert min(seen) >= 1
    assert len(seen) > 20
    assert empty == []
    assert len(index_state(connection, table)) == 1


def test_what_a_killed_build_leaves_is_cleared(connection: Connection, direct_url: str) -> None:
    table = vector_table(64, bits=0)
    filled(connection, table, 1_000)
    # The build waits for an old transaction, so it is certainly under way when its backend is terminated.
    with psycopg.connect(direct_url, autocommit=True) as old, connect(direct_url) as builder:
        old.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        old.execute("SELECT 1 FROM items LIMIT 1")
        failed: list[BaseException] = []

        def build() -> None:
            try:
                ensure_index(builder, table, FLOAT)
            except DatabaseUnavailable as error:
                failed.append(error)

        thread = threading.Thread(target=build)
        thread.start()
        while not index_state(connection, table):
            time.sleep(0.01)
        connection.execute("SELECT pg_terminate_backend(%s)", (builder.info.backend_pid,))
        thread.join()
        assert failed
    (left,) = index_state(connection, table)
    assert not left.valid
    # An index as a killed REINDEX CONCURRENTLY leaves it.
    connection.execute(
        sql.SQL("ALTER INDEX {} RENAME TO {}").format(*map(sql.Identifier, (left.name, left.name + "_ccnew")))
    )
    report = ensure_index(connection, table, FLOAT)
    assert report.built
    assert report.dropped == (left.name + "_ccnew",)
    assert [state.valid for state in index_state(connection, table)] == [True]


def test_a_build_that_is_under_way_is_waited_for(connection: Connection, direct_url: str) -> None:
    """The backend of a killed client continues its build; a second build at the same time would do the work twice."""
    table = vector_table(16, bits=0)
    filled(connection, table, 1_000)
    with psycopg.connect(direct_url, autocommit=True) as old, connect(direct_url) as first:
        old.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        old.execute("SELECT 1 FROM items LIMIT 1")
        building = threading.Thread(target=ensure_index, args=(first, table, FLOAT))
        building.start()
        while not index_state(connection, table):
            time.sleep(0.01)
        phases: list[str] = []

        def seen(_: float, phase: str) -> None:
            phases.append(phase)
            # The build always reaches a waiting phase while there is an older transaction.
            if "waiting" in phase:
                old.execute("ROLLBACK")

        report = ensure_index(connection, table, FLOAT, seen)
        building.join()
    assert not report.built
    assert report.index
    assert any("waiting" in phase for phase in phases)


def test_a_lock_that_cannot_be_taken_ends_the_build(
    connection: Connection, direct_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rowvec.index.build._CONCURRENT_LOCK_TIMEOUT", "200ms")
    monkeypatch.setattr("rowvec.index.build._CLEARING_LOCK_TIMEOUT", "100ms")
    table = vector_table(16)
    filled(connection, table, 100)
    patience = connection.execute("SHOW lock_timeout").fetchone()
    with psycopg.connect(direct_url, autocommit=True) as old:
        old.execute("BEGIN")
        old.execute("UPDATE items SET year = 1 WHERE id = 1")
        with pytest.raises(DatabaseUnavailable, match="lock timeout"):
            ensure_index(connection, table, BITS)
    assert [state.valid for state in index_state(connection, table)] == [
        False
    ]  # the same writer also prevented the drop
    assert connection.execute("SHOW lock_timeout").fetchone() == patience
    assert connection.execute("SHOW min_parallel_table_scan_size").fetchone() == ("8MB",)
    assert ensure_index(connection, table, BITS).built
    assert [state.valid for state in index_state(connection, table)] == [True]


def test_progress_is_reported_while_it_builds(connection: Connection, database_url: str) -> None:
    table = vector_table(128, bits=0)
    filled(connection, table, 3_000)
    heard: list[tuple[float, str]] = []
    report = ensure_index(connection, table, FLOAT, lambda share, phase: heard.append((share, phase)))
    assert report.built
    assert heard[-1] == (1.0, "done")
    assert any(phase.startswith("building index") for _, phase in heard)
    assert all(0 <= share <= 1 for share, _ in heard)


@pytest.mark.needs("pgvector 0.8.4", "with an older one, builds have no workers")
def test_large_builds_use_workers_though_the_table_looks_small(
    connection: Connection, direct_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rowvec.index.build._PARALLEL_FROM_ROWS", 8_000)
    table = vector_table(600, bits=1)
    create(connection, table)
    connection.execute(
        "INSERT INTO items SELECT i, 'a', 1, '', v, binary_quantize(v)::bit(600), 'f', 'm', 1, now() FROM"
        " generate_series(1, 8000) AS i,"
        " LATERAL (SELECT array_agg(sin(i * j))::real[]::vector AS v FROM generate_series(1, 600) AS j) AS x"
    )
    connection.execute("ANALYZE items")
    with psycopg.connect(direct_url, autocommit=True) as watch, ThreadPoolExecutor() as pool:
        building = pool.submit(ensure_index, connection, table, replace(BITS, m=4, ef_construction=8), readers=False)
        workers = "SELECT 1 FROM pg_stat_activity WHERE leader_pid = %s"
        while not (found := watch.execute(workers, (connection.info.backend_pid,)).fetchall()) and not building.done():
            time.sleep(0.002)
        building.result()
    assert found


def test_no_table_no_index(connection: Connection) -> None:
    with pytest.raises(TargetError, match=r"public\.items"):
        ensure_index(connection, vector_table(4), BITS)
    assert index_state(connection, vector_table(4)) == []


def test_awkward_names(connection: Connection) -> None:
    table = VectorTable(
        schema='we "ird%',
        name="50% {of} it's " + "é" * 24,
        key=(PgColumn("%s", "text"),),
        metadata=(),
        dimensions=8,
    )
    connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(table.schema)))
    create(connection, table)
    for choice in (BITS, FLOAT):
        assert ensure_index(connection, table, choice).built
    assert search(connection, table, FLOAT, SearchRequest(np.ones(8, np.float32), 1, where="\"%s\" = 'x'")) == []


@given(table=st.text(min_size=1, max_size=63), other=st.text(min_size=1, max_size=63))
def test_names_fit_and_differ(table: str, other: str) -> None:
    suffix: LiteralString = "_rowvec_01234567_12"
    try:
        (table + other).encode()
    except UnicodeEncodeError:
        return  # not a possible name in Postgres
    cut = cut_name(table, suffix)
    assert len(cut.encode()) <= 63
    assert cut.endswith(suffix)
    assert table == other or cut != cut_name(other, suffix)


@given(
    rows=st.integers(0, 10**10),
    dimensions=st.integers(1, 16_000),
    configured=st.integers(2**20, 2**40),
    allowed=st.integers(2**20, 2**40),
    choice=st.sampled_from([BITS, FLOAT, IVFFLAT, HALFVEC]),
)
def test_a_build_takes_no_more_memory_than_allowed(
    rows: int, dimensions: int, configured: int, allowed: int, choice: IndexChoice
) -> None:
    memory = build_memory(rows, dimensions, choice, configured=configured, allowed=allowed)
    assert configured <= memory <= max(configured, allowed)
    assert memory <= build_memory(rows * 2, dimensions, choice, configured=configured, allowed=allowed)


@pytest.mark.parametrize(("lists", "less"), [(60, "4MB"), (400, "12MB")])
def test_the_memory_that_lists_take_is_computed_as_the_server_computes_it(
    connection: Connection, lists: int, less: LiteralString
) -> None:
    """pgvector's error names the memory it needs, rounded up to MB; rowvec's figure is a little more, and never less.

    ``less`` is enough for the sample of rows, for which pgvector needs memory first.
    """
    filled(connection, vector_table(64), 12_000)
    choice = replace(IVFFLAT, lists=lists)
    connection.execute(f"SET maintenance_work_mem = '{less}'".encode())
    with pytest.raises(pg.ProgramLimitExceeded) as refused:
        connection.execute(
            f"CREATE INDEX ON items USING ivfflat (embedding vector_cosine_ops) WITH (lists = {lists})".encode()
        )
    needed = re.search(r"memory required is (\d+) MB", str(refused.value))
    assert needed
    wanted = int(needed[1]) * 2**20
    assert wanted - 2**20 <= method_of(choice.kind).needed_memory(12_000, 64, choice) <= wanted * 1.1


def test_a_build_on_this_machine_takes_no_more_than_half_of_what_is_left(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = Memory(free=400 * 2**20, limit=2**30, of="a container of 1,024 MiB, in which a command and a server run too")
    monkeypatch.setattr("rowvec.index.build_memory.memory", lambda: left)
    monkeypatch.setattr("rowvec.index.build_memory.memory_here", lambda _: 2**30)  # pyright: ignore[reportUnknownLambdaType] # the container
    assert foresee(connection, 10**6, 256, FLOAT).given == 200 * 2**20


def test_lists_that_do_not_fit_in_memory_are_refused_with_the_number_that_does(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rowvec.index.build_memory._SMALLEST_MEMORY", 2**20)
    monkeypatch.setattr("rowvec.index.build_memory.memory_here", lambda _: 64 * 2**20)  # pyright: ignore[reportUnknownLambdaType] # a machine of 64 MiB
    table = vector_table(64)
    filled(connection, table, 12_000)
    connection.execute("SET maintenance_work_mem = '1MB'")
    choice = replace(IVFFLAT, lists=400)
    with pytest.raises(TargetError, match=r"its lists take about 2\d MiB .* and there are 16 MiB") as refused:
        ensure_index(connection, table, choice)
    fewer = int(str(refused.value).split("set index.lists to ")[1].split()[0])
    assert 0 < fewer < 400
    assert ensure_index(connection, table, replace(choice, lists=fewer)).built
    assert not ensure_index(connection, table, replace(choice, lists=fewer)).built


@given(rows=st.integers(0, 10**8), lists=st.integers(1, 32_768), given_bytes=st.integers(2**20, 2**36))
def test_fewer_lists_are_the_most_that_fit(rows: int, lists: int, given_bytes: int) -> None:
    choice = replace(IVFFLAT, lists=lists)
    method = method_of("ivfflat")
    fewer = method.most_parts(rows, 1_536, choice, given_bytes)
    assert fewer is not None
    assert 0 <= fewer <= lists
    assert fewer == 0 or method.needed_memory(rows, 1_536, replace(choice, lists=fewer)) <= given_bytes
    assert fewer == lists or method.needed_memory(rows, 1_536, replace(choice, lists=fewer + 1)) > given_bytes
