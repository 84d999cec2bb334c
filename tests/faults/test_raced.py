"""Syncs that race with writers, with readers, with each other, and with the other pipelines of a database."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import errors as pg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from rowvec.operations.audit import audit
from rowvec.pipeline import Pipeline
from rowvec.postgres.connection import Connection
from tests.support import paintings
from tests.support import race as racing
from tests.support.cli_process import Command, Ended, PrefectServer, start, write_pipeline
from tests.support.fault_outcomes import build_waits
from tests.support.paintings import Client, assert_in_step
from tests.support.servers.openai_server import KEY, Fault, OpenAIServer, serve
from tests.support.waiting import wait_for

MODEL, DIMENSIONS = "text-embedding-3-small", 32


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Generator[OpenAIServer]:
    """The embedder's server, with its key in the environment."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serve(key=KEY, latency=0.1) as opened:
        yield opened


@pytest.fixture
def paid(server: OpenAIServer, tmp_path: Path) -> Pipeline:
    """The gallery's pipeline with that embedder."""
    return pipeline(server, tmp_path)


def pipeline(server: OpenAIServer, folder: Path, **parts: dict[str, Any]) -> Pipeline:
    """The gallery's pipeline with a slow embedder; ``parts`` as in ``gallery.pipeline``."""
    embedder = {
        "kind": "openai",
        "model": MODEL,
        "dimensions": DIMENSIONS,
        "base_url": server.url,
        "max_batch_inputs": 32,
        "concurrency": 4,
    }
    limit = {"max_delete_fraction": 1.0}
    return paintings.pipeline(str(folder / "artifacts"), **{"embedder": embedder, "validation": limit, **parts})


Rowvec = Callable[..., Command]
"""Starts a command with these words; keywords are additional environment variables."""


@pytest.fixture
def rowvec(prefect_server: PrefectServer) -> Generator[Rowvec]:
    """Start commands; they are stopped at the end of the test."""
    started: list[Command] = []

    def begin(*words: str | Path, **environment: str) -> Command:
        started.append(start(prefect_server.api, *words, "--json", **environment))
        return started[-1]

    yield begin
    for command in started:
        if command.process.returncode is None:
            command.kill()


def succeeded(ended: Ended) -> dict[str, Any]:
    """The report of a sync that must have succeeded."""
    assert ended.status == 0, (ended.stdout[-2000:], ended.stderr[-2000:])
    return ended.json


@pytest.fixture
def elsewhere(another_url: str, source: Connection) -> str:
    """The DSN of another database with the same 50 paintings; the target's own are dropped."""
    with paintings.writer(another_url) as connection:
        connection.execute(paintings.SOURCE)
        paintings.fill(connection, 50)
    source.execute("DROP TABLE paintings")
    return another_url


@dataclass(slots=True, kw_only=True)
class Race:
    """A source that is written all the time, and the syncs that run meanwhile."""

    target: Connection
    url: str
    """The DSN of the source's database."""
    rowvec: Rowvec
    file: Path
    apart: bool = False
    """The source is in another database: it cannot be read in the merge's own snapshot."""

    def run(self, seed: int, syncs: int, **writing: Any) -> list[dict[str, Any]]:
        """Run several syncs while writers are at work, and one sync after they have stopped."""
        with paintings.writer(self.url) as source:
            paintings.fill(source, 200, start=51)
            racing.start_history(source)
            with racing.writers(self.url, seed, **writing) as threads:
                reports = [self._sync_under_fire(source, threads) for _ in range(syncs)]
            last = self._sync()
            assert last["pending"] == 0
            table = racing.stored(self.target)
            history = racing.commits(source)
            assert table == racing.final(history)
            racing.assert_own_vectors(self.target, MODEL, DIMENSIONS)
        return [*reports, last]

    def _sync(self) -> dict[str, Any]:
        return succeeded(self.rowvec("sync", self.file).wait())

    def _sync_under_fire(self, source: Connection, threads: racing.Threads) -> dict[str, Any]:
        """Run a sync while writers are at work: no row may be stale or an orphan in the snapshot of its merge."""
        report = self._sync()
        threads.check()
        table = racing.stored(self.target)
        racing.assert_own_vectors(self.target, MODEL, DIMENSIONS)
        times = "SELECT started_at, merged_at, finished_at FROM rowvec.runs WHERE run_id = %s"
        row = self.target.execute(times, (report["run_id"],)).fetchone()
        assert row is not None
        started_at, merged_at, finished_at = row
        # Another database is read before the merge, at a moment that the ledger does not record.
        verdict = racing.judge(racing.commits(source), table, started_at if self.apart else merged_at, finished_at)
        assert verdict.agreeing, f"stale or orphaned: {verdict.nearest} by each of {verdict.states} states"
        if not self.apart:
            # The rows that the vector table lacks are those that the run reports as pending. For a source in another
            # database, the run counts them later, after the source has changed again.
            assert any(lag.missing <= report["pending"] <= lag.missing + lag.metadata for lag in verdict.agreeing)
        assert len(table) == report["rows"] > 0
        return report


def from_elsewhere(server: OpenAIServer, folder: Path) -> Pipeline:
    """The pipeline over the paintings of the other database."""
    there = paintings.pipeline("x").source.model_dump() | {"url": "${RACED_SOURCE_URL}"}
    return pipeline(server, folder, source=there)


def test_writers_without_rest_leave_nothing_stale_or_orphaned(
    source: Connection, direct_url: str, paid: Pipeline, tmp_path: Path, rowvec: Rowvec
) -> None:
    file = write_pipeline(paid, tmp_path)
    reports = Race(target=source, url=direct_url, rowvec=rowvec, file=file).run(seed=1, syncs=1)
    # Rows must really have changed between extract and merge.
    assert any(report["pending"] for report in reports)
    assert_in_step(source)


def test_writers_in_another_database(
    source: Connection,
    elsewhere: str,
    server: OpenAIServer,
    tmp_path: Path,
    rowvec: Rowvec,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RACED_SOURCE_URL", elsewhere)
    file = write_pipeline(from_elsewhere(server, tmp_path), tmp_path)
    Race(target=source, url=elsewhere, rowvec=rowvec, file=file, apart=True).run(seed=2, syncs=1)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("breath", [0.0, 0.01, 0.1])
@pytest.mark.parametrize("seed", range(10, 14))
def test_writers_without_rest_for_long(
    source: Connection, direct_url: str, paid: Pipeline, tmp_path: Path, rowvec: Rowvec, seed: int, breath: float
) -> None:
    race = Race(target=source, url=direct_url, rowvec=rowvec, file=write_pipeline(paid, tmp_path))
    race.run(seed, syncs=8, number=4, breath=breath)
    assert_in_step(source)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(20, 24))
def test_writers_in_another_database_for_long(
    source: Connection,
    elsewhere: str,
    server: OpenAIServer,
    tmp_path: Path,
    rowvec: Rowvec,
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
) -> None:
    monkeypatch.setenv("RACED_SOURCE_URL", elsewhere)
    file = write_pipeline(from_elsewhere(server, tmp_path), tmp_path)
    Race(target=source, url=elsewhere, rowvec=rowvec, file=file, apart=True).run(seed, syncs=6, number=4)


ROWS = 150


@dataclass(slots=True)
class Reader:
    """A client that searches all the time, each time in its own transaction, and must never see half a run."""

    connection: Client
    rows_by_marker: dict[str, int]
    """The marker of each state of the vector table, with the number of rows in that state."""
    seen: set[str]
    functions: int = 0
    indexes: set[str] = field(default_factory=set[str])

    def read(self) -> None:
        """Read in one transaction and one snapshot; errors are allowed only until the table first exists."""
        try:
            with self.connection.transaction():
                self.connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
                self._look_at_table()
        except (pg.UndefinedTable, pg.InvalidSchemaName):
            assert not self.seen, "the vector table was gone"
            return
        try:
            with self.connection.transaction():
                self._search()
        except pg.UndefinedFunction:
            assert not self.functions, "the search function was gone"

    def _look_at_table(self) -> None:
        markers = self.connection.execute(
            "SELECT split_part(content, ' ', 1), author FROM vectors.paintings"
        ).fetchall()
        (marker,) = {row[0] for row in markers}
        assert {row[1] for row in markers} == {marker}
        assert len(markers) == self.rows_by_marker[marker]
        self.seen.add(marker)
        indexes = self.connection.execute(
            "SELECT c.relname, pg_get_indexdef(c.oid) FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid"
            " JOIN pg_am AS am ON am.oid = c.relam"
            " WHERE i.indrelid = 'vectors.paintings'::regclass AND am.amname = 'hnsw' AND i.indisvalid"
        ).fetchall()
        assert indexes or not self.indexes, "no valid index any more"
        self.indexes |= {definition for _, definition in indexes}

    def _search(self) -> None:
        found = self.connection.execute(
            "SELECT author FROM vectors.paintings_search((SELECT embedding FROM vectors.paintings LIMIT 1), 5)"
        ).fetchall()
        assert len(found) == 5
        assert len(set(found)) == 1
        self.functions += 1
        if self.indexes:
            assert self._explained(
                "embedding <=> (SELECT embedding FROM vectors.paintings LIMIT 1)"
            ) or self._explained("embedding_bits <~> (SELECT embedding_bits FROM vectors.paintings LIMIT 1)"), (
                "no search goes through an index"
            )

    def _explained(self, nearness: str) -> bool:
        self.connection.execute("SET LOCAL enable_seqscan = off")
        self.connection.execute("SET LOCAL enable_sort = off")
        plan = self.connection.execute(
            f"EXPLAIN SELECT id FROM vectors.paintings ORDER BY {nearness} LIMIT 5".encode()  # noqa: S608 # ours
        ).fetchall()
        return any("using paintings_rowvec_" in line for (line,) in plan)


def mark(source: Connection, marker: str) -> None:
    """Change content and metadata of every row in one transaction."""
    source.execute("UPDATE paintings SET title = %(m)s || ' ' || id, author = %(m)s", {"m": marker})


def test_readers_never_see_a_partial_run_an_error_or_a_table_without_an_index(
    source: Connection, direct_url: str, server: OpenAIServer, tmp_path: Path, rowvec: Rowvec
) -> None:
    paintings.fill(source, ROWS - 50, start=51)
    markers = {"first": ROWS, "second": ROWS, "third": ROWS - 40}
    with ExitStack() as stack:
        readers = [
            Reader(stack.enter_context(psycopg.connect(direct_url, autocommit=True)), markers, set()) for _ in range(2)
        ]
        threads = stack.enter_context(racing.running(*(reader.read for reader in readers), breath=0.05))
        for marker, index in zip(
            markers, ({"m": 8}, {"m": 12}, {"m": 12, "on": "bits", "oversampling": 40}), strict=True
        ):
            source.execute("DELETE FROM paintings WHERE id > %s", (markers[marker],))
            mark(source, marker)
            changed = pipeline(server, tmp_path, index={"kind": "hnsw", **index})
            with paintings.writer(direct_url) as holder, holder.transaction():
                # The build waits for this snapshot, so the readers see it half done.
                holder.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
                holder.execute("SELECT count(*) FROM paintings")
                sync = rowvec("sync", write_pipeline(changed, tmp_path)).when(lambda: build_waits(source))
                read = threads.rounds + 6
                wait_for(lambda read=read: threads.errors or threads.rounds > read)
            report = succeeded(sync.wait())
            assert report["rows"] == markers[marker]
            threads.check()
    for reader in readers:
        assert reader.seen == set(markers)
        assert reader.functions > 0
        # The index was built, built with other settings, and built on bits.
        assert len(reader.indexes) == 3


def held(connection: Connection, stage: str) -> bool:
    """Whether a session of this stage waits for a lock."""
    waiting = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE %s"
    return connection.execute(f"{waiting} AND wait_event_type = 'Lock'".encode(), (f"{stage}%",)).fetchone() is not None


def waiting(connection: Connection) -> int:
    """How many sessions wait for a lock."""
    row = connection.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    ).fetchone()
    return row[0] if row else 0


def test_two_syncs_at_once_and_the_other_commands_during_them(
    source: Connection, direct_url: str, paid: Pipeline, tmp_path: Path, rowvec: Rowvec
) -> None:
    """One sync does the work and the other ends; plan, audit, search and rejects work meanwhile, and change nothing."""
    file = write_pipeline(paid, tmp_path)
    paintings.sync(paid)
    source.execute("UPDATE paintings SET title = title || '!' WHERE id <= 7")
    with paintings.writer(direct_url) as holder, holder.transaction():
        # Readers continue; a session that wants to write the vector table waits.
        holder.execute("LOCK TABLE vectors.paintings IN SHARE MODE")
        syncs = [rowvec("sync", file) for _ in range(2)]
        wait_for(lambda: any(s.process.poll() is not None for s in syncs) and held(source, "rowvec merge"))
        syncs.sort(key=lambda sync: sync.process.poll() is None)
        loser, winner = syncs[0].wait(), syncs[1]
        assert loser.status == 1
        assert "another run of the pipeline paintings is at work" in loser.stderr
        beside = [
            rowvec(*words)
            for words in (("plan", file), ("audit", file), ("search", file, "Painting 3"), ("rejects", file))
        ]
        plan, audited, search, rejects = (command.wait() for command in beside)
        assert (plan.status, plan.json["changed"], plan.json["new"]) == (0, 7, 0), plan
        # Only the rows that the sync has not merged yet are stale, and nothing else is wrong.
        assert {k: audited.json[k] for k in ("missing", "stale", "orphaned", "corrupt")} == {
            "missing": 0,
            "stale": 7,
            "orphaned": 0,
            "corrupt": 0,
        }
        assert audited.status == 1
        assert (search.status, len(search.json["results"])) == (0, 10), search
        assert (rejects.status, rejects.json["count"]) == (0, 0), rejects
        assert winner.process.poll() is None
    report = succeeded(winner.wait())
    assert (report["changed"], report["embedded"]) == (7, 7)
    writers = source.execute("SELECT DISTINCT run_id FROM vectors.paintings ORDER BY 1").fetchall()
    assert len(writers) == 2
    assert writers[-1] == (report["run_id"],)
    assert_in_step(source)
    assert audit(paid).consistent


@dataclass(slots=True, kw_only=True)
class Neighbour:
    """One of several pipelines in a database; its sessions are known by its role."""

    name: str
    file: Path
    url: str

    def sync(self, rowvec: Rowvec) -> Command:
        """Start a sync of this pipeline."""
        return rowvec("sync", self.file, ROWVEC_DATABASE_URL=self.url)


INDEXES: tuple[dict[str, Any], ...] = (
    {"kind": "hnsw"},
    {"kind": "hnsw", "on": "bits"},
    {"kind": "ivfflat", "lists": 2},
    {"kind": "hnsw", "on": "float", "m": 8},
)


@pytest.fixture
def neighbours(
    source: Connection, cluster: str, database_url: str, direct_url: str, server: OpenAIServer, tmp_path: Path
) -> Generator[list[Neighbour]]:
    """Four pipelines, each with a source, a role and an index of its own; all in one database."""
    made: list[Neighbour] = []
    source.execute("CREATE SCHEMA IF NOT EXISTS vectors")
    for i, index in enumerate(INDEXES):
        name = f"side{i}"
        table = sql.Identifier(name)
        source.execute(sql.SQL("CREATE TABLE {} AS SELECT * FROM paintings").format(table))
        source.execute(sql.SQL("ALTER TABLE {} ADD PRIMARY KEY (id)").format(table))
        source.execute(sql.SQL("CREATE ROLE {} SUPERUSER LOGIN").format(table))
        part = paintings.pipeline("x").source.model_dump(exclude_none=True) | {"table": f"public.{name}"}
        own = pipeline(server, tmp_path, source=part, target={"table": f"vectors.{name}"}, index=index)
        file = write_pipeline(own.model_copy(update={"name": name}), tmp_path)
        made.append(Neighbour(name=name, file=file, url=make_conninfo(database_url, user=name)))
    yield made
    with psycopg.connect(cluster, autocommit=True) as connection:
        for neighbour in made:
            role = sql.Identifier(neighbour.name)
            connection.execute(
                sql.SQL("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = {}").format(
                    sql.Literal(neighbour.name)
                )
            )
            with paintings.writer(direct_url) as owner:
                owner.execute(sql.SQL("DROP OWNED BY {} CASCADE").format(role))
            connection.execute(sql.SQL("DROP ROLE {}").format(role))


def deadlocks(connection: Connection) -> int:
    """The number of deadlocks in this database so far."""
    row = connection.execute("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()").fetchone()
    return row[0] if row else 0


def side_by_side(source: Connection, url: str, neighbours: list[Neighbour], rowvec: Rowvec, rounds: int) -> None:
    """Sync all at once, first a load and then changes: none waits for a lock of another, and there is no deadlock."""
    with racing.waits(url) as waits:
        for number in range(rounds):
            for ended in [command.wait() for command in [n.sync(rowvec) for n in neighbours]]:
                assert succeeded(ended)["changed"] == (20 if number else 0)
            for neighbour in neighbours:
                table = sql.Identifier(neighbour.name)
                source.execute(sql.SQL("UPDATE {} SET title = title || '!' WHERE id <= 20").format(table))
    # A concurrent build waits for statements that are older than itself. No session waits for any other lock.
    assert {w for w in waits if (w.stage, w.kind) != ("rowvec index", "virtualxid")} == set()
    assert deadlocks(source) == 0


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_four_pipelines_side_by_side(
    source: Connection, direct_url: str, neighbours: list[Neighbour], rowvec: Rowvec
) -> None:
    side_by_side(source, direct_url, neighbours, rowvec, rounds=15)


def test_a_pipeline_that_is_blocked_does_not_block_the_others(
    source: Connection,
    direct_url: str,
    server: OpenAIServer,
    neighbours: list[Neighbour],
    rowvec: Rowvec,
) -> None:
    """The source of one pipeline is locked, and the provider of another hangs: the other two end meanwhile."""
    locked, hanging, *free = neighbours
    source.execute(sql.SQL("UPDATE {} SET title = 'HANGS ' || title").format(sql.Identifier(hanging.name)))
    server.add(Fault(times=-1, shape="hang", marker="HANGS", seconds=120))
    with paintings.writer(direct_url) as holder, holder.transaction():
        holder.execute(f"LOCK TABLE {locked.name}".encode())
        blocked, hung = locked.sync(rowvec), hanging.sync(rowvec)
        blocked.when(lambda: held(source, "rowvec extract"))
        hung.when(lambda: any(r.status == 0 for r in server.requests))
        for ended in [command.wait() for command in [n.sync(rowvec) for n in free]]:
            assert succeeded(ended)["rows"] == 50
        # The lock is still held, and the provider still does not answer.
        assert blocked.process.poll() is None
        assert hung.process.poll() is None
    assert succeeded(blocked.wait())["rows"] == 50
    assert deadlocks(source) == 0


@pytest.mark.needs("a superuser", "rowvec creates the schema of the table")
def test_two_first_loads_may_make_the_same_schema(
    source: Connection, direct_url: str, paid: Pipeline, tmp_path: Path, rowvec: Rowvec
) -> None:
    """The second run finds the schema. CREATE SCHEMA IF NOT EXISTS alone would raise 23505."""
    file = write_pipeline(paid, tmp_path)
    with paintings.writer(direct_url) as other:
        with other.transaction():
            other.execute("CREATE SCHEMA vectors")
            sync = rowvec("sync", file).when(lambda: held(source, "rowvec extract"))
        assert succeeded(sync.wait())["rows"] == 50


def test_a_plan_and_a_sync_at_once_do_not_disturb_each_other(
    source: Connection, direct_url: str, paid: Pipeline, tmp_path: Path, rowvec: Rowvec
) -> None:
    file = write_pipeline(paid, tmp_path)
    with paintings.writer(direct_url) as keeper:
        with keeper.transaction():
            # Both read what was paid for, and wait here in the middle of their work.
            keeper.execute("LOCK TABLE rowvec.answers")
            plan = rowvec("plan", file).when(lambda: held(source, "rowvec plan"))
            sync = rowvec("sync", file)
            sync.when(lambda: waiting(source) == 2)
        planned = plan.wait()
    assert (planned.status, planned.json["new"]) == (0, 50), planned
    assert succeeded(sync.wait())["rows"] == 50


def test_metadata_written_while_a_row_is_embedded_is_left_to_the_next_round(
    source: Connection, paid: Pipeline, server: OpenAIServer, tmp_path: Path, rowvec: Rowvec
) -> None:
    """The content has not changed, so the vector is used. The author must not be left stale without a report."""
    server.hold = threading.Event()
    sync = rowvec("sync", write_pipeline(paid, tmp_path))
    sync.when(lambda: server.most_at_once)
    source.execute("UPDATE paintings SET author = 'somebody else' WHERE id = 1")
    server.hold.set()
    report = succeeded(sync.wait())
    assert report["pending"] == 0
    assert_in_step(source)
