"""Database or store is restored to an earlier state while the other has gone on: it is found, and nothing is lost."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from rowvec.errors import LedgerBehind, RowvecError, StoreBehind, TargetError
from rowvec.ledger.generations import list_generations
from rowvec.operations.adopt_store import adopt_store
from rowvec.operations.audit import audit
from rowvec.operations.erasure.forget import forget
from rowvec.operations.prune import prune
from rowvec.operations.rebuild import begin_rebuild
from rowvec.operations.repair import prepare_repair
from rowvec.operations.restore import finish_restore, restore_rows, restoring
from rowvec.operations.switch import retire_for_good
from rowvec.operations.verify import verify
from rowvec.pipeline import Pipeline
from rowvec.postgres.connection import Connection, connect
from rowvec.stages.dry_run import plan
from rowvec.stages.report import RestoreReport, SyncReport
from rowvec.store.heads import newest_chain
from rowvec.store.manifest import Link
from rowvec.store.open import open_store
from tests.support import paintings as gallery
from tests.support.paintings import assert_in_step, fill, sync

ALWAYS = timedelta(0)


def restore(pipeline: Pipeline, manifest: str | None = None) -> RestoreReport:
    """Run what the flow runs."""
    with restoring(pipeline, manifest) as under_way:
        return finish_restore(pipeline, under_way.run, restore_rows(pipeline, under_way))


def from_the_store_alone(pipeline: Pipeline, connection: Connection) -> RestoreReport:
    """Restore in a database that has lost everything."""
    connection.execute("DROP SCHEMA rowvec CASCADE; DROP TABLE vectors.paintings")
    return restore(pipeline)


def rebuilt(pipeline: Pipeline) -> object:
    """Rebuild with other dimensions; no generation is begun if it is refused."""
    try:
        return gallery.rebuild(longer(pipeline))
    finally:
        with connect(str(os.environ["ROWVEC_DATABASE_URL"])) as connection:
            assert [one.name for one in list_generations(connection, pipeline.name)] == [pipeline.name]


COMMANDS: dict[str, Callable[[Pipeline], object]] = {
    "sync": sync,
    "rebuild": rebuilt,
    "prune": lambda pipeline: prune(pipeline, ALWAYS),
    "prune --apply": lambda pipeline: prune(pipeline, ALWAYS, apply=True),
    "forget": lambda pipeline: forget(pipeline, ["1"]),
    "forget --apply": lambda pipeline: forget(pipeline, ["1"], apply=True),
    "verify": verify,
}


def all_refuse(pipeline: Pipeline, error: type[RowvecError], way_out: str, *others: str) -> None:
    """Each command raises the error, which names the way out, and changes no object."""
    more: dict[str, Callable[[Pipeline], object]] = {"audit": audit, "audit --repair": prepare_repair}
    before = contents(pipeline)
    for name, command in {**COMMANDS, **{name: more[name] for name in others}}.items():
        with pytest.raises(error) as refusal:
            command(pipeline)
        assert way_out in str(refusal.value), name
        assert contents(pipeline) == before, name


def contents(pipeline: Pipeline) -> dict[str, str | None]:
    """The objects of the store by name, with the sha256 of each."""
    store = open_store(pipeline.artifacts)
    return {name: store.checksum(name) for name in store.names()}


class KeptStore:
    """The store as it was once."""

    def __init__(self, pipeline: Pipeline, folder: Path) -> None:
        self._now, self._then = Path(pipeline.artifacts.url), folder / "kept"
        shutil.copytree(self._now, self._then)

    def put_back(self) -> None:
        """Restore the store to what it was."""
        shutil.rmtree(self._now)
        shutil.copytree(self._then, self._now)


def lose_table_and_last_run(source: Connection, pipeline: Pipeline, folder: Path) -> SyncReport:
    """Sync 50 rows, and then 10 more; the store goes back to before the second run, and the vector table is dropped.

    Returns the report of the first run.
    """
    first = sync(pipeline)
    kept = KeptStore(pipeline, folder)
    fill(source, 10, start=100)
    sync(pipeline)
    kept.put_back()
    source.execute("DROP TABLE vectors.paintings")
    return first


def on(url: str, *statements: sql.Composed) -> None:
    """Execute statements outside a transaction."""
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)


class KeptDatabase:
    """The database as it was once; put back, it has the same server, name and number, as after a recovery in time."""

    def __init__(self, cluster: str, url: str) -> None:
        self._cluster, self._url = cluster, url
        name = str(conninfo_to_dict(url)["dbname"])
        self._kept, self._name, self._text = sql.Identifier(f"kept_{name}"), sql.Identifier(name), name
        on(cluster, self._end(), self._copy(self._kept, self._name))

    def put_back(self) -> None:
        """Restore the database to what it was."""
        with psycopg.connect(self._cluster) as connection:
            ((oid,),) = connection.execute("SELECT oid FROM pg_database WHERE datname = %s", (self._text,)).fetchall()
        drop = sql.SQL("DROP DATABASE {} WITH (FORCE)").format(self._name)
        number = sql.SQL(" OID = {}").format(sql.Literal(oid))
        on(self._cluster, drop, self._copy(self._name, self._kept) + number)

    def drop(self) -> None:
        """Drop the copy."""
        on(self._cluster, sql.SQL("DROP DATABASE {} WITH (FORCE)").format(self._kept))

    def _end(self) -> sql.Composed:
        others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = {}"
        return sql.SQL(others).format(sql.Literal(self._text))

    @staticmethod
    def _copy(name: sql.Identifier, of: sql.Identifier) -> sql.Composed:
        return sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy").format(name, of)


@pytest.fixture
def keep_database(cluster: str, source: Connection, database_url: str) -> Generator[Callable[[], KeptDatabase]]:
    """Keeps the database as it is now; sessions end."""
    kept: list[KeptDatabase] = []

    def keep() -> KeptDatabase:
        kept.append(KeptDatabase(cluster, database_url))
        return kept[-1]

    yield keep
    for one in kept:
        one.drop()


@contextmanager
def connected(url: str) -> Generator[Connection]:
    """A session that is over before the database is replaced."""
    with connect(url) as connection:
        yield connection


def runs_in(chain: list[Link]) -> list[int]:
    """Numbers of the runs that wrote these manifests."""
    return [link.manifest.run_id for link in chain]


@pytest.mark.needs("a superuser", "rowvec creates the schema of its ledger again")
def test_a_store_that_was_set_back_stops_every_command_until_a_repair_writes_what_it_lacks(
    source: Connection, paintings: Pipeline, tmp_path: Path
) -> None:
    sync(paintings)
    kept = KeptStore(paintings, tmp_path)
    fill(source, 10, start=100)
    source.execute("DELETE FROM paintings WHERE id = 1")
    last = sync(paintings)
    before = gallery.vectors(source)
    kept.put_back()
    fill(source, 1, start=200)
    all_refuse(paintings, StoreBehind, "rowvec audit FILE --repair")
    assert gallery.vectors(source) == before
    assert "rowvec audit FILE --repair" in plan(paintings).notes[0]
    found = audit(paintings)
    assert str(last.manifest) in {lost.name for lost in found.objects}
    assert not found.consistent
    prepare_repair(paintings)
    for _ in range(2):
        prune(paintings, ALWAYS, apply=True)
    report = sync(paintings)
    assert (report.embedded, report.new) == (1, 1)
    assert audit(paintings).consistent
    assert verify(paintings).verified
    assert len(newest_chain(open_store(paintings.artifacts), "paintings")) == 1
    prune(paintings, ALWAYS, apply=True)
    assert_in_step(source)
    restored = from_the_store_alone(paintings, source)
    assert (restored.rows, restored.missing, restored.checksum) == (60, 0, report.checksum)


@pytest.mark.soak
def test_a_table_and_a_store_that_was_set_back_are_restored_as_far_as_the_store_goes(
    source: Connection, paintings: Pipeline, tmp_path: Path
) -> None:
    first = lose_table_and_last_run(source, paintings, tmp_path)
    with pytest.raises(StoreBehind, match=f"--manifest: .*{first.manifest}"):
        restore(paintings)
    assert restore(paintings, first.manifest).rows == 50
    report = sync(paintings)
    assert report.embedded == 10
    assert audit(paintings).consistent
    assert from_the_store_alone(paintings, source).checksum == report.checksum


@pytest.mark.soak
def test_a_table_that_is_gone_is_made_again_on_a_store_that_was_set_back(
    source: Connection, paintings: Pipeline, tmp_path: Path
) -> None:
    lose_table_and_last_run(source, paintings, tmp_path)
    report = sync(paintings)
    assert report.embedded == 10
    assert audit(paintings).consistent
    assert from_the_store_alone(paintings, source).checksum == report.checksum


@pytest.mark.needs("a superuser", "rowvec creates the schema of its ledger again")
def test_another_store_gets_everything_by_a_repair(source: Connection, paintings: Pipeline, tmp_path: Path) -> None:
    sync(paintings)
    artifacts = paintings.artifacts.model_copy(update={"url": str(tmp_path / "other")})
    moved = paintings.model_copy(update={"artifacts": artifacts})
    with pytest.raises(StoreBehind, match="names another one"):
        sync(moved)
    prepare_repair(moved)
    report = sync(moved)
    assert report.embedded == 0
    assert audit(moved).consistent
    assert from_the_store_alone(moved, source).checksum == report.checksum


@pytest.mark.needs("a superuser", "the test writes to the source's table as rowvec's role")
def test_a_database_that_was_set_back_stops_every_command_until_it_adopts_the_store(
    paintings: Pipeline, database_url: str, keep_database: Callable[[], KeptDatabase]
) -> None:
    with connected(database_url) as then:
        sync(paintings)
        then.execute("UPDATE paintings SET title = 'once ' || id WHERE id <= 5")
        sync(paintings)
    kept = keep_database()
    with connected(database_url) as given_up:
        # The other history needs an artifact that this one does not need any more.
        given_up.execute("UPDATE paintings SET title = 'Painting ' || id WHERE id <= 5")
        fill(given_up, 20, start=100)
        given_up.execute("SELECT setval(pg_get_serial_sequence('rowvec.runs', 'run_id'), 1000)")
        lost = sync(paintings)
        assert lost.embedded == 20
    kept.put_back()
    of_both = contents(paintings)
    with connected(database_url) as now:
        fill(now, 21, start=100)
        all_refuse(paintings, LedgerBehind, "rowvec adopt FILE", "audit", "audit --repair")
        assert str(lost.manifest) in plan(paintings).notes[0]
        adopted = adopt_store(paintings)
        assert adopted is not None
        assert (adopted.ledgers, adopted.vectors, adopted.given_up) == (1, 20, (lost.manifest,))
        report = sync(paintings)
        assert (report.embedded, report.reused) == (1, 20)
        chain = newest_chain(open_store(paintings.artifacts), "paintings")
        assert min(runs_in(chain)) > lost.run_id
        now_there = contents(paintings)
        assert {name: now_there.get(name) for name in of_both if not name.startswith("marks/")} == {
            name: sha256 for name, sha256 in of_both.items() if not name.startswith("marks/")
        }
        assert audit(paintings).consistent
        assert verify(paintings).verified
        assert_in_step(now)
        assert prune(paintings, ALWAYS, apply=True).note == ""
        assert from_the_store_alone(paintings, now).checksum == report.checksum


def longer(pipeline: Pipeline) -> Pipeline:
    """The pipeline after an edit that a rebuild carries out."""
    return pipeline.model_copy(update={"embedder": pipeline.embedder.model_copy(update={"dimensions": 128})})


def of_generations(pipeline: Pipeline) -> set[str]:
    """The objects in the folders of generations, by the first two parts of their names."""
    return {"/".join(name.split("/")[:2]) for name in contents(pipeline) if "/paintings." in name}


@pytest.mark.soak
def test_a_generation_that_a_database_has_forgotten_is_used_again_by_a_rebuild_and_cleared_by_a_prune(
    paintings: Pipeline, database_url: str, keep_database: Callable[[], KeptDatabase], monkeypatch: pytest.MonkeyPatch
) -> None:
    with connected(database_url):
        sync(paintings)
    kept = keep_database()
    with connected(database_url) as given_up:
        gallery.rebuild(longer(paintings), to_switch=False)
        # A run of the generation is killed after it has uploaded an artifact, which nothing names.
        fill(given_up, 5, start=100)
        following = begin_rebuild(longer(paintings))
        with gallery.dying_after("load", monkeypatch):
            sync(following)
    kept.put_back()
    forgotten = {name for name in contents(paintings) if "/paintings.2/" in name}
    assert sum(name.startswith("artifacts/") for name in forgotten) == 2
    with connected(database_url) as now:
        fill(now, 5, start=100)
        assert "2 artifacts and 1 manifest of a generation" in prune(paintings, ALWAYS).note
        sync(paintings)
        following = begin_rebuild(longer(paintings))
        assert (plan(following).embedded, plan(following).reused) == (0, 55)
        built = sync(following)
        assert (built.embedded, built.reused) == (0, 55)
        assert prune(paintings, ALWAYS).note == ""
        assert gallery.rebuild(longer(paintings)).switched
        report = sync(longer(paintings))
        rebuild_ended = contents(paintings)
        assert forgotten <= rebuild_ended.keys()
        retire_for_good(longer(paintings))
        for _ in range(2):
            prune(longer(paintings), ALWAYS, apply=True)
        gone = forgotten - contents(paintings).keys()
        assert {name.split("/")[0] for name in gone} == {"manifests", "journal"}
        assert audit(longer(paintings)).consistent
        assert from_the_store_alone(longer(paintings), now).checksum == report.checksum


def test_a_prune_clears_a_forgotten_generation_that_is_not_built_again(
    paintings: Pipeline, database_url: str, keep_database: Callable[[], KeptDatabase]
) -> None:
    with connected(database_url):
        sync(paintings)
    kept = keep_database()
    with connected(database_url):
        gallery.rebuild(longer(paintings), to_switch=False)
    kept.put_back()
    with connected(database_url) as now:
        forgotten = {f"{kind}/paintings.2" for kind in ("artifacts", "journal", "manifests")}
        assert of_generations(paintings) == forgotten
        # Noted now, they are not old yet.
        assert prune(paintings, timedelta(days=1), apply=True).artifacts == 0
        assert of_generations(paintings) == forgotten
        assert prune(paintings, timedelta(days=1)).note == ""
        assert now.execute("SELECT count(*) FROM rowvec.artifacts WHERE batch = -1").fetchone() == (1,)
        assert prune(paintings, ALWAYS, apply=True).artifacts == 1
        assert of_generations(paintings) == set()
        assert audit(paintings).consistent
        # A restore of single tables leaves the table of the generation. A rebuild says that its name is taken.
        now.execute("CREATE TABLE vectors.paintings__2 (id int)")
        with pytest.raises(TargetError, match=r"vectors\.paintings__2 has the name that a rebuild needs"):
            begin_rebuild(longer(paintings))


def test_a_manifest_that_a_killed_run_has_left_is_no_later_history(
    source: Connection, paintings: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mark names it; a prune deletes it, and is killed before it ends."""
    sync(paintings)
    fill(source, 5, start=100)

    def die(*_: object) -> None:
        raise SystemExit

    with monkeypatch.context() as killed:
        killed.setattr("rowvec.ledger.journal.Recorded.confirm", die)
        with pytest.raises(SystemExit):
            sync(paintings)
    with monkeypatch.context() as killed:
        killed.setattr("rowvec.operations.prune._pruned", die)
        killed.setattr("rowvec.operations.prune._delete_superseded", _then(die, "_delete_superseded"))
        with pytest.raises(SystemExit):
            prune(paintings, ALWAYS, apply=True)
    assert sync(paintings).consistent
    assert prune(paintings, ALWAYS, apply=True).manifests >= 0


def _then(die: Callable[..., None], name: str) -> Callable[..., object]:
    import rowvec.operations.prune as module

    real: Callable[..., object] = getattr(module, name)

    def both(*arguments: object) -> object:
        real(*arguments)
        return die()

    return both
