"""Syncs that are killed before, in and after every stage, and continued by another machine.

A run is held from outside at the point in question, by a lock in the database, an embedder that does not answer, or a
proxy that swallows requests to the blob store; then its process gets SIGKILL.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo
from psycopg.errors import QueryCanceled

from rowvec.ledger.plans import MIN_BATCH_ROWS
from rowvec.pipeline import Pipeline
from rowvec.pipeline.model import Artifacts
from rowvec.postgres.connection import Connection, connect
from rowvec.postgres.migrations import install
from tests.support import paintings
from tests.support.cli_process import Command, Ended, PrefectServer, start, write_pipeline
from tests.support.fault_outcomes import build_waits
from tests.support.paintings import Client, assert_in_step
from tests.support.servers.azurite import Container
from tests.support.servers.disposable import (
    OwnAzurite,
    OwnPostgres,
    Proxy,
    Where,
    own_azurite,
    own_postgres,
    proxy,
)
from tests.support.servers.openai_server import KEY, OpenAIServer, serve
from tests.support.waiting import wait_for

TEXTS_A_REQUEST, CONCURRENCY = 4, 2
IN_FLIGHT = TEXTS_A_REQUEST * CONCURRENCY

Rowvec = Callable[..., Command]
"""Starts a command with these words; keywords are additional environment variables."""


class Door:
    """A gate that every stage passes first: each stage reads ``rowvec.plans``, which is locked here."""

    def __init__(self, url: str, held: ExitStack) -> None:
        self._watch = held.enter_context(closing(psycopg.connect(url, autocommit=True)))
        # Two sessions hold the lock in turn, so that no other session gets it in between.
        self._keepers = [held.enter_context(closing(psycopg.connect(url))) for _ in range(2)]
        self._lock(self._keepers[0])

    def until(self, command: Command, stage: str) -> None:
        """Let stages pass until this stage waits at the door."""

        def reached() -> bool:
            standing = self._standing()
            return stage in standing or (bool(standing) and self._let_pass(stage))

        command.when(reached)

    def open(self) -> None:
        """Let all stages pass from now on."""
        self._keepers[0].rollback()

    def _standing(self) -> set[str]:
        rows = self._watch.execute(
            "SELECT a.application_name FROM pg_locks AS l JOIN pg_stat_activity AS a USING (pid)"
            " WHERE NOT l.granted AND l.relation = 'rowvec.plans'::regclass AND a.datname = current_database()"
        )
        return {name for (name,) in rows if name.startswith("rowvec")}

    def _let_pass(self, wanted: str) -> bool:
        """Let the sessions pass that wait now, and no later ones: locks are granted in the order of the requests.

        Returns True if the wanted stage has arrived in the meantime; then no session passes.
        """
        opening, closing = self._keepers
        thread = threading.Thread(target=self._lock, args=(closing,))
        thread.start()
        queued = "SELECT true FROM pg_locks WHERE NOT granted AND pid = %s"
        wait_for(lambda: self._watch.execute(queued, (closing.info.backend_pid,)).fetchone())
        come = wanted in self._standing()
        if come:
            closing.cancel_safe()
        else:
            opening.rollback()
            self._keepers.reverse()
        thread.join()
        return come

    def _lock(self, keeper: Client) -> None:
        try:
            keeper.execute("LOCK TABLE rowvec.plans IN ACCESS EXCLUSIVE MODE")
        except QueryCanceled:
            keeper.rollback()


class Queue(threading.Event):
    """An event that counts the threads that have waited for it."""

    length = 0

    def wait(self, timeout: float | None = None) -> bool:
        """See ``threading.Event``."""
        self.length += 1
        return super().wait(timeout)


@dataclass(slots=True, kw_only=True)
class Scene:
    """A run, and the means to hold it at a point."""

    database: Connection
    url: str
    server: OpenAIServer
    proxy: Proxy | None
    folder: Path
    """The folder of the test; it contains the homes of all machines."""
    held: ExitStack
    door: Door = field(init=False)
    command: Command = field(init=False)
    stage: str = ""
    """The stage whose request to the store is held."""

    def hold(self, statement: str, **names: str) -> None:
        """Take a lock in a transaction that stays open."""
        keeper = self.held.enter_context(closing(psycopg.connect(self.url)))
        composed = sql.SQL(statement).format(**{n: sql.Identifier("rowvec", v) for n, v in names.items()})  # pyright: ignore[reportArgumentType] # ours
        keeper.execute(composed)

    def waits(self, stage: str) -> None:
        """Wait until a stage waits for a lock other than that of the door."""
        statement = (
            "SELECT true FROM pg_locks AS l JOIN pg_stat_activity AS a USING (pid)"
            " WHERE NOT l.granted AND l.relation IS DISTINCT FROM 'rowvec.plans'::regclass"
            " AND a.datname = current_database() AND a.application_name = %s"
        )
        self.command.when(lambda: self.database.execute(statement, (stage,)).fetchone())

    def run_id(self) -> int:
        """The id of the current run."""
        row = self.database.execute("SELECT max(run_id) FROM rowvec.runs").fetchone()
        assert row is not None
        return row[0]

    def stall(self, request: bytes, where: Where) -> None:
        """Hold a request to the blob store, and wait until it is held."""
        assert self.proxy is not None
        stall = self.proxy.stall(request, where)
        self.door.open()
        self.command.when(stall.reached.is_set)


def nothing(_: Scene) -> None:
    """Do nothing; the default action of a point."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A point at which a run is held and then killed."""

    name: str
    reach: Callable[[Scene], None]
    """Holds the run at this point; the run has been started before the call."""
    before: Callable[[Scene], None] = nothing
    """Takes what must be held before the run starts."""
    twice: int = 0
    """How many texts may be paid for a second time."""
    also: Callable[[Scene], None] = nothing
    """What else happens to the run once its process is dead."""
    blob: bool = False
    """Whether the point needs a blob store on the network."""
    left: str = "abandoned"
    """The state of the killed run in the ledger afterwards."""


def at_the_door(stage: str) -> Callable[[Scene], None]:
    return lambda scene: scene.door.until(scene.command, stage)


def locked(stage: str, statement: str) -> Callable[[Scene], None]:
    """Hold the run inside a stage, at the moment it needs what the statement locks."""

    def reach(scene: Scene) -> None:
        scene.door.until(scene.command, stage)
        run = scene.run_id()
        scene.hold(statement, staging=f"staging_{run}", plan=f"plan_{run}")
        scene.door.open()
        scene.waits(stage)

    return reach


def locked_from_the_start(name: str, stage: str, statement: str) -> Point:
    """A point like ``locked``, for a lock that must be taken before the run starts."""

    def before(scene: Scene) -> None:
        scene.hold(statement)

    def reach(scene: Scene) -> None:
        scene.door.open()
        scene.waits(stage)

    return Point(name=name, before=before, reach=reach)


def embedding(scene: Scene) -> None:
    """Hold the run when some answers are durable and the maximum number of requests is in flight."""
    scene.door.until(scene.command, "rowvec embed 0")
    known = "SELECT count(*) >= 8 FROM rowvec.answers"
    scene.server.latency = 0.1
    scene.door.open()
    scene.command.when(lambda: scene.database.execute(known).fetchone() == (True,))
    queue = Queue()
    scene.server.hold = queue
    scene.held.callback(queue.set)
    # Earlier answers are stored by now, so only these requests are in flight.
    scene.command.when(lambda: queue.length == CONCURRENCY)


def binarizing(scene: Scene) -> None:
    """Hold the run while it writes the bits: their file is a pipe that no process reads."""
    scene.door.until(scene.command, "rowvec embed 0")
    queue = Queue()
    scene.server.hold = queue
    scene.held.callback(queue.set)
    scene.door.open()
    scene.command.when(lambda: queue.length)
    (folder,) = scene.folder.glob(f"machine-*/spool/*/{scene.run_id()}/batch-0")
    os.mkfifo(folder / "bits.arrow")
    queue.set()
    scene.command.when(lambda: _opens_a_pipe(scene.command.process.pid))
    assert (folder / "embedded.arrow").stat().st_size


def _opens_a_pipe(pid: int) -> bool:
    """Whether a thread of the process waits for the other end of a pipe that it opens."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return any("wait_for_partner" in (thread / "wchan").read_text() for thread in threads)


def store_stalled(stage: str, request: bytes, where: Where) -> Callable[[Scene], None]:
    def reach(scene: Scene) -> None:
        scene.door.until(scene.command, stage)
        scene.stage = stage
        scene.stall(request, where)

    return reach


def indexing(scene: Scene, statement: str) -> None:
    """Hold the run while its build waits for another transaction: the index is in the catalog, and is not valid."""
    scene.door.until(scene.command, "rowvec index")
    keeper = scene.held.enter_context(closing(psycopg.connect(scene.url)))
    keeper.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    keeper.execute(statement.encode())
    scene.door.open()
    scene.command.when(lambda: build_waits(scene.database))
    assert invalid_indexes(scene.database) == 1


def end_the_build(scene: Scene) -> None:
    """End the session of the build, as a restart of the server does."""
    ended = scene.database.execute(
        "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_progress_create_index WHERE datname = current_database()"
    )
    assert ended.fetchall() == [(True,)]


def invalid_indexes(connection: Connection) -> int:
    row = connection.execute("SELECT count(*) FROM pg_index WHERE NOT (indisvalid AND indisready)").fetchone()
    assert row is not None
    return row[0]


def validated(scene: Scene) -> None:
    scene.door.open()
    run = "SELECT true FROM rowvec.runs WHERE run_id = %s AND state = 'succeeded'"
    scene.command.when(
        lambda: scene.database.execute("SELECT true FROM rowvec.runs WHERE state = 'running'").fetchone()
    )
    number = scene.run_id()
    scene.command.when(lambda: scene.database.execute(run, (number,)).fetchone())


PUT_ARTIFACT, PUT_MANIFEST, PUT_JOURNAL = rb"PUT \S+\.parquet", rb"PUT \S+\.json", rb"PUT \S+\.csv\.zst"
ANY_ARTIFACT = rb"\S+ \S+\.parquet"
RUNS_ROW = "SELECT FROM rowvec.runs WHERE state = 'running' FOR UPDATE"
WRITER = "LOCK TABLE vectors.paintings IN ROW EXCLUSIVE MODE"

POINTS = [
    locked_from_the_start("start", "rowvec", "LOCK TABLE rowvec.runs"),
    locked_from_the_start("before extract", "rowvec extract", "LOCK TABLE paintings"),
    locked_from_the_start("in extract, plan half made", "rowvec extract", "LOCK TABLE rowvec.answers"),
    Point(name="in extract, plan made", reach=at_the_door("rowvec extract")),
    locked_from_the_start("after extract, no staging", "rowvec extract", "LOCK TABLE rowvec.loaded"),
    Point(name="before embed", reach=at_the_door("rowvec embed 0")),
    Point(name="in embed, reuse", reach=locked("rowvec embed 0", "LOCK TABLE rowvec.answers")),
    Point(name="in embed, requests in flight", reach=embedding, twice=IN_FLIGHT),
    Point(name="in binarize", reach=binarizing),
    Point(name="after binarize", reach=at_the_door("rowvec upload 0")),
    Point(name="in upload, before", reach=store_stalled("rowvec upload 0", ANY_ARTIFACT, "before"), blob=True),
    Point(name="in upload, half", reach=store_stalled("rowvec upload 0", PUT_ARTIFACT, "within"), blob=True),
    Point(name="in upload, no answer", reach=store_stalled("rowvec upload 0", PUT_ARTIFACT, "answer"), blob=True),
    Point(name="in upload, ledger", reach=locked("rowvec upload 0", "LOCK TABLE rowvec.artifacts")),
    Point(name="before load", reach=at_the_door("rowvec load 0")),
    Point(name="in load", reach=locked("rowvec load 0", "LOCK TABLE {staging}")),
    Point(name="before merge", reach=at_the_door("rowvec merge")),
    Point(name="in merge, source", reach=locked("rowvec merge", "LOCK TABLE paintings")),
    Point(name="in merge, written", reach=locked("rowvec merge", RUNS_ROW)),
    Point(name="before index", reach=at_the_door("rowvec index")),
    Point(name="in index, writers", reach=lambda s: indexing(s, WRITER)),
    Point(name="in index, snapshots", reach=lambda s: indexing(s, "SELECT 1"), also=end_the_build),
    Point(name="before validate", reach=at_the_door("rowvec validate")),
    Point(name="in validate", reach=store_stalled("rowvec validate", ANY_ARTIFACT, "before"), blob=True),
    Point(name="in validate, journal", reach=store_stalled("rowvec validate", PUT_JOURNAL, "answer"), blob=True),
    Point(name="in validate, manifest", reach=store_stalled("rowvec validate", PUT_MANIFEST, "answer"), blob=True),
    Point(name="in validate, ledger", reach=locked("rowvec validate", RUNS_ROW)),
    Point(name="after validate", reach=validated, left="succeeded"),
]

REPRESENTATIVE = {
    "in embed, requests in flight": "update",
    "in upload, no answer": "update",
    "in load": "first load",
    "in merge, written": "update",
    "in validate, manifest": "update",
}
"""The stages that pay or write what lasts, for the checks of every commit; all other points run in soak."""


def matrix(points: list[Point], representative: dict[str, str]) -> list[Any]:
    """Every point, in a first load and in an update of a table with readers; all but the named ones run in soak."""
    return [
        pytest.param(
            point,
            kind == "update",
            id=f"{point.name}, {kind}",
            marks=() if representative.get(point.name) == kind else pytest.mark.soak,
        )
        for point in points
        for kind in ("first load", "update")
    ]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Generator[OpenAIServer]:
    """The embedder's server, with its key in the environment."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serve(key=KEY) as opened:
        yield opened


@pytest.fixture
def rowvec(prefect_server: PrefectServer, tmp_path: Path) -> Generator[Rowvec]:
    """Start commands, each on a machine that has never seen the pipeline; they are stopped at the end of the test."""
    started: list[Command] = []

    def begin(*words: str | Path) -> Command:
        home = tmp_path / f"machine-{len(started)}"
        started.append(start(prefect_server.api, *words, "--json", ROWVEC_HOME=str(home)))
        return started[-1]

    yield begin
    for command in started:
        if command.process.returncode is None:
            command.kill()


def paid(server: OpenAIServer, store: str) -> Pipeline:
    """The gallery's pipeline with an embedder that costs money, and with an index although the table is small."""
    embedder = {
        "kind": "openai",
        "model": "text-embedding-3-small",
        "dimensions": 32,
        "base_url": server.url,
        "max_batch_inputs": TEXTS_A_REQUEST,
        "concurrency": CONCURRENCY,
    }
    return paintings.pipeline(store, embedder=embedder, index={"kind": "hnsw", "on": "float"})


def with_another_index(pipeline: Pipeline) -> Pipeline:
    """The pipeline with another index: it must be built next to the one that readers use."""
    return pipeline.model_copy(update={"index": pipeline.index.model_copy(update={"m": 8})})


def succeeded(ended: Ended) -> dict[str, Any]:
    """The report of a sync that must have succeeded."""
    assert ended.status == 0, (ended.stdout[-2000:], ended.stderr[-2000:])
    assert ended.json["consistent"], ended.json
    return ended.json


def change(source: Connection) -> None:
    """Every kind of change at once: new, edited, deleted, blank, moved, swapped, metadata."""
    paintings.fill(source, 30, start=51)
    source.execute("UPDATE paintings SET title = 'Edited ' || id WHERE id BETWEEN 1 AND 8")
    source.execute("UPDATE paintings SET author = 'Somebody' WHERE id BETWEEN 9 AND 12")
    source.execute("DELETE FROM paintings WHERE id BETWEEN 13 AND 16")
    source.execute("UPDATE paintings SET title = '', description = NULL WHERE id = 17")
    source.execute("UPDATE paintings SET id = 1018 WHERE id = 18")
    source.execute(
        "UPDATE paintings AS p SET title = o.title, description = o.description FROM paintings AS o"
        " WHERE (p.id, o.id) IN ((19, 20), (20, 19))"
    )


def texts(source: Connection) -> set[str]:
    """The texts that must be embedded, computed in plain SQL."""
    statement = "SELECT coalesce(title, '') || E'\\n' || coalesce(description, '') FROM paintings"
    return {text for (text,) in source.execute(statement) if text.strip()}


def assert_tidy(connection: Connection) -> None:
    """Nothing is left of a run that is over."""
    left = connection.execute(
        "SELECT relname FROM pg_class WHERE relnamespace = 'rowvec'::regnamespace AND relname ~ '^(plan|staging)_'"
    ).fetchall()
    assert left == []
    assert connection.execute("SELECT count(*) FROM rowvec.answers").fetchone() == (0,)
    assert connection.execute("SELECT FROM rowvec.runs WHERE state = 'running'").fetchall() == []
    assert invalid_indexes(connection) == 0
    served = connection.execute("SELECT FROM pg_indexes WHERE tablename = 'paintings' AND indexdef ~ 'USING hnsw'")
    assert len(served.fetchall()) == 1


def assert_recovered(
    source: Connection, server: OpenAIServer, rowvec: Rowvec, pipeline: Pipeline, file: Path, ever: set[str], twice: int
) -> None:
    """Another machine continues the run, pays for nothing twice, and leaves nothing to do for a third machine."""
    succeeded(rowvec("sync", file).wait())
    assert_in_step(source)
    assert set(server.paid) == ever
    assert server.paid.total() <= len(ever) + twice
    sent = server.paid.total()
    again = paintings.sync(pipeline)
    assert {again.new, again.changed, again.metadata_only, again.deleted, again.embedded} == {0}
    assert server.paid.total() == sent
    assert_in_step(source)
    assert_tidy(source)


@pytest.mark.parametrize(("point", "updating"), matrix(POINTS, REPRESENTATIVE))
def test_a_killed_run_is_continued_on_another_machine(
    source: Connection,
    database_url: str,
    direct_url: str,
    server: OpenAIServer,
    rowvec: Rowvec,
    point: Point,
    updating: bool,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with ExitStack() as held:
        pipeline, between = paid(server, str(tmp_path / "store")), None
        if point.blob:
            container: Container = request.getfixturevalue("container")
            monkeypatch.setenv("BLOB_KEY", container.key)
            between = held.enter_context(proxy(urlsplit(container.host).port or 0))
            url = container.url.replace(container.host, between.host)
            pipeline = pipeline.model_copy(update={"artifacts": Artifacts(url=url, credential="${BLOB_KEY}")})
        ever = texts(source)
        if updating:
            paintings.sync(pipeline)
            pipeline = with_another_index(pipeline)
            change(source)
            ever |= texts(source)
        file = write_pipeline(pipeline, tmp_path)
        stored = paintings.vectors(source) if updating else {}
        before = source.execute("SELECT run_id FROM rowvec.runs").fetchall()
        with ExitStack() as while_held:
            scene = Scene(
                database=source, url=database_url, server=server, proxy=between, folder=tmp_path, held=while_held
            )
            scene.door = Door(direct_url, while_held)
            point.before(scene)
            scene.command = rowvec("sync", file)
            point.reach(scene)
            ended = scene.command.kill()
            assert ended.status == -9, ended
            point.also(scene)
            if between is not None:
                between.cut()
        if updating and paintings.vectors(source) != stored:
            # A reader sees all of a run or nothing.
            assert_in_step(source)
        assert_recovered(source, server, rowvec, pipeline, file, ever, point.twice)
        states = source.execute(
            "SELECT state FROM rowvec.runs WHERE run_id <> ALL (%s) ORDER BY run_id", ([r for (r,) in before],)
        )
        assert [state for (state,) in states] == [point.left, "succeeded", "succeeded"]
        assert not list(tmp_path.glob("store/**/.*"))


@pytest.fixture(scope="module")
def mortal() -> Generator[OwnPostgres]:
    """A database server that these tests may kill."""
    with own_postgres() as server:
        yield server


@pytest.fixture
def mortal_url(mortal: OwnPostgres, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The DSN of a new database on it, with 50 paintings."""
    name = f"db_{tmp_path.name}"
    with psycopg.connect(mortal.url, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    url = make_conninfo(mortal.url, dbname=name)
    monkeypatch.setenv("ROWVEC_DATABASE_URL", url)
    monkeypatch.setenv("ROWVEC_HOME", str(tmp_path / "home"))
    with paintings.writer(url) as connection:
        connection.execute(paintings.SOURCE)
        paintings.fill(connection, 50)
    return url


def ended_well(ended: Ended) -> bool:
    """Whether the command succeeded; if not, it must have reported the error in one sentence."""
    assert "Traceback" not in ended.stderr, ended.stderr
    if ended.status == 0:
        return True
    assert ended.status == 1, ended
    if "error" in ended.json:
        # Lines of progress come before the error.
        assert ended.stderr.strip().splitlines()[-1] == f"rowvec: {ended.json['error']}"
    return False


KILLED_WITH_THE_DATABASE = [
    Point(name="extract", reach=at_the_door("rowvec extract")),
    Point(name="embed", reach=at_the_door("rowvec embed 0")),
    Point(name="in flight", reach=embedding, twice=IN_FLIGHT),
    Point(name="upload", reach=at_the_door("rowvec upload 0")),
    Point(name="load", reach=at_the_door("rowvec load 0")),
    Point(name="in load", reach=locked("rowvec load 0", "LOCK TABLE {staging}")),
    Point(name="merge", reach=at_the_door("rowvec merge")),
    Point(name="in merge", reach=locked("rowvec merge", RUNS_ROW)),
    Point(name="in index", reach=lambda s: indexing(s, "SELECT 1")),
    Point(name="validate", reach=at_the_door("rowvec validate")),
    Point(name="in validate", reach=locked("rowvec validate", RUNS_ROW)),
]


@pytest.mark.parametrize(("point", "updating"), matrix(KILLED_WITH_THE_DATABASE, {"merge": "update"}))
def test_the_database_server_is_killed_under_a_run(
    mortal: OwnPostgres,
    mortal_url: str,
    server: OpenAIServer,
    rowvec: Rowvec,
    point: Point,
    updating: bool,
    tmp_path: Path,
) -> None:
    pipeline = paid(server, str(tmp_path / "store"))
    before = {}
    with paintings.writer(mortal_url) as source:
        ever = texts(source)
        with connect(mortal_url) as installing:
            install(installing)
        if updating:
            paintings.sync(pipeline)
            pipeline = with_another_index(pipeline)
            change(source)
            ever |= texts(source)
            before = paintings.vectors(source)
    file = write_pipeline(pipeline, tmp_path)
    with ExitStack() as held:
        database = held.enter_context(closing(connect(mortal_url)))
        scene = Scene(database=database, url=mortal_url, server=server, proxy=None, folder=tmp_path, held=held)
        scene.door = Door(mortal_url, held)
        scene.command = rowvec("sync", file)
        point.reach(scene)
        mortal.kill()
    mortal.start()
    done = ended_well(scene.command.wait())
    with paintings.writer(mortal_url) as source:
        # A run that failed has changed everything or nothing.
        if done or (updating and paintings.vectors(source) != before):
            assert_in_step(source)
        assert_recovered(source, server, rowvec, pipeline, file, ever, point.twice)


@pytest.mark.soak
@pytest.mark.timeout(400)
def test_a_database_that_stays_away_is_one_sentence(
    mortal: OwnPostgres, mortal_url: str, server: OpenAIServer, rowvec: Rowvec, tmp_path: Path
) -> None:
    pipeline = paid(server, str(tmp_path / "store"))
    file = write_pipeline(pipeline, tmp_path)
    with paintings.writer(mortal_url) as source:
        ever = texts(source)
        install(source)
        with ExitStack() as held:
            scene = Scene(database=source, url=mortal_url, server=server, proxy=None, folder=tmp_path, held=held)
            scene.door = Door(mortal_url, held)
            scene.command = rowvec("sync", file)
            scene.door.until(scene.command, "rowvec load 0")
            mortal.kill()
    try:
        ended = scene.command.wait(300)
        assert not ended_well(ended)
        assert "database" in ended.json["error"]
        refused = rowvec("sync", file).wait()
        assert not ended_well(refused)
    finally:
        mortal.start()
    with paintings.writer(mortal_url) as source:
        assert_recovered(source, server, rowvec, pipeline, file, ever, 0)


@pytest.mark.soak
def test_a_run_that_lost_its_lock_on_the_pipeline_gives_way_to_the_next(
    mortal: OwnPostgres, mortal_url: str, server: OpenAIServer, rowvec: Rowvec, tmp_path: Path
) -> None:
    """The lock that prevents two runs at once belongs to a session, and a restart of the server ends all sessions."""
    pipeline = paid(server, str(tmp_path / "store"))
    file = write_pipeline(pipeline, tmp_path)
    with paintings.writer(mortal_url) as source:
        install(source)
        paintings.sync(pipeline)
        change(source)
    with ExitStack() as held:
        database = held.enter_context(closing(connect(mortal_url)))
        scene = Scene(database=database, url=mortal_url, server=server, proxy=None, folder=tmp_path, held=held)
        scene.door = Door(mortal_url, held)
        scene.command = rowvec("sync", file)
        scene.door.until(scene.command, "rowvec load 0")
        mortal.kill()
    mortal.start()
    ended_well(rowvec("sync", file).wait())
    ended_well(scene.command.wait())
    with paintings.writer(mortal_url) as source:
        ever = texts(source) | {f"Painting {i}\nIt shows the number {i}" for i in range(1, 51)}
        assert_recovered(source, server, rowvec, pipeline, file, ever, 0)


@dataclass(slots=True, kw_only=True)
class InBlob:
    """A pipeline and the blob server of its own, which the test may kill."""

    store: OwnAzurite
    proxy: Proxy
    pipeline: Pipeline
    file: Path


@pytest.fixture
def in_blob(azurite: str, server: OpenAIServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[InBlob]:
    """The pipeline of this module on such a server. ``azurite`` is asked for because it installs it."""
    del azurite
    folder = tmp_path / "blobs"
    folder.mkdir()
    with own_azurite(folder) as store, proxy(store.port) as between:
        container = store.container("killed")
        monkeypatch.setenv("BLOB_KEY", container.key)
        url = container.url.replace(container.host, between.host)
        pipeline = paid(server, "unused").model_copy(update={"artifacts": Artifacts(url=url, credential="${BLOB_KEY}")})
        yield InBlob(store=store, proxy=between, pipeline=pipeline, file=write_pipeline(pipeline, tmp_path))


STORE_POINTS = [
    Point(name="before upload", reach=store_stalled("rowvec upload 0", ANY_ARTIFACT, "before")),
    Point(name="half an upload", reach=store_stalled("rowvec upload 0", PUT_ARTIFACT, "within")),
    Point(name="uploaded", reach=store_stalled("rowvec upload 0", PUT_ARTIFACT, "answer")),
    Point(name="journal", reach=store_stalled("rowvec validate", PUT_JOURNAL, "within")),
    Point(name="manifest", reach=store_stalled("rowvec validate", PUT_MANIFEST, "within")),
]


@pytest.mark.azurite
@pytest.mark.parametrize(
    "point",
    [pytest.param(p, id=p.name, marks=() if p.name == "half an upload" else pytest.mark.soak) for p in STORE_POINTS],
)
def test_the_blob_server_is_killed_under_a_run(
    source: Connection,
    database_url: str,
    direct_url: str,
    server: OpenAIServer,
    rowvec: Rowvec,
    in_blob: InBlob,
    point: Point,
    tmp_path: Path,
) -> None:
    ever = texts(source)
    with ExitStack() as held:
        scene = Scene(database=source, url=database_url, server=server, proxy=in_blob.proxy, folder=tmp_path, held=held)
        scene.door = Door(direct_url, held)
        scene.command = rowvec("sync", in_blob.file)
        point.reach(scene)
        # The blob server would lose what it has not yet written to disk, and rowvec could not repair that loss.
        if "validate" in scene.stage:
            wait_for(lambda: in_blob.store.has_written(rb"\.parquet"))
        in_blob.store.kill()
        in_blob.proxy.cut()
    in_blob.store.start()
    ended_well(scene.command.wait())
    assert_recovered(source, server, rowvec, in_blob.pipeline, in_blob.file, ever, 0)


@pytest.mark.soak
@pytest.mark.azurite
@pytest.mark.timeout(600)
def test_a_blob_server_that_stays_away_is_one_sentence(
    source: Connection,
    database_url: str,
    direct_url: str,
    server: OpenAIServer,
    rowvec: Rowvec,
    in_blob: InBlob,
    tmp_path: Path,
) -> None:
    ever = texts(source)
    with ExitStack() as held:
        scene = Scene(database=source, url=database_url, server=server, proxy=in_blob.proxy, folder=tmp_path, held=held)
        scene.door = Door(direct_url, held)
        scene.command = rowvec("sync", in_blob.file)
        store_stalled("rowvec upload 0", PUT_ARTIFACT, "within")(scene)
        in_blob.store.kill()
        in_blob.proxy.cut()
    try:
        ended = scene.command.wait(500)
        assert not ended_well(ended)
        assert in_blob.pipeline.artifacts.url.partition("/some")[0] in ended.json["error"]
        assert source.execute("SELECT count(*) FROM rowvec.answers").fetchone() == (len(ever),)
    finally:
        in_blob.store.start()
    assert_recovered(source, server, rowvec, in_blob.pipeline, in_blob.file, ever, 0)


@pytest.mark.soak
@pytest.mark.parametrize("stage", ["rowvec embed 1", "rowvec upload 1", "rowvec load 1"])
def test_a_run_that_is_killed_between_its_batches(
    source: Connection,
    database_url: str,
    direct_url: str,
    server: OpenAIServer,
    rowvec: Rowvec,
    stage: str,
    tmp_path: Path,
) -> None:
    paintings.fill(source, MIN_BATCH_ROWS, start=51)
    pipeline = paid(server, str(tmp_path / "store"))
    wide = {"max_batch_inputs": 512, "concurrency": 2}
    pipeline = pipeline.model_copy(update={"embedder": pipeline.embedder.model_copy(update=wide)})
    file = write_pipeline(pipeline, tmp_path)
    ever = texts(source)
    with ExitStack() as held:
        scene = Scene(database=source, url=database_url, server=server, proxy=None, folder=tmp_path, held=held)
        scene.door = Door(direct_url, held)
        scene.command = rowvec("sync", file)
        scene.door.until(scene.command, stage)
        assert scene.command.kill().status == -9
    assert_recovered(source, server, rowvec, pipeline, file, ever, 0)
