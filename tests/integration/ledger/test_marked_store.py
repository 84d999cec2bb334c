"""A database that was copied, set back or emptied, with the store as of now: nothing is lost or paid for twice."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from rowvec.errors import ArtifactCorrupt, LedgerBehind, UsageError
from rowvec.ledger import journal, marked_store
from rowvec.operations.adopt_store import adopt_store
from rowvec.operations.audit import audit
from rowvec.operations.prune import prune
from rowvec.operations.repair import prepare_repair
from rowvec.operations.restore import finish_restore, restore_rows, restoring
from rowvec.pipeline import Pipeline
from rowvec.pipeline.model import Artifacts
from rowvec.postgres.connection import Connection, connect
from rowvec.stages.dry_run import plan
from rowvec.stages.report import RestoreReport, SyncReport
from rowvec.store.artifact import Artifact, stored_fingerprints
from rowvec.store.heads import newest_chain
from rowvec.store.manifest import Manifest, as_object, write_manifest
from rowvec.store.marks import marked_ledgers
from rowvec.store.open import open_store
from rowvec.store.protocol import Store
from tests.support import forged_store
from tests.support import paintings as gallery
from tests.support.paintings import assert_in_step, fill, sync
from tests.support.servers.azurite import Container

ALWAYS = timedelta(0)
_numbers = itertools.count(1)

Copy = Callable[[], str]
At = Callable[[str], AbstractContextManager[Connection]]


@pytest.fixture
def copied(cluster: str, source: Connection, database_url: str) -> Generator[Copy]:
    """Makes a copy of the database as it is, and returns its DSN."""
    names: list[str] = []

    def copy() -> str:
        names.append(f"copy_{next(_numbers)}")
        with psycopg.connect(cluster, autocommit=True) as connection:
            others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s"
            connection.execute(others, (make_name(database_url),))
            create = sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy")
            connection.execute(create.format(sql.Identifier(names[-1]), sql.Identifier(make_name(database_url))))
        return make_conninfo(database_url, dbname=names[-1])

    yield copy
    with psycopg.connect(cluster, autocommit=True) as connection:
        for name in names:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def make_name(url: str) -> str:
    """The name of a database in its DSN."""
    return str(conninfo_to_dict(url)["dbname"])


@pytest.fixture
def at(cluster: str, monkeypatch: pytest.MonkeyPatch) -> At:
    """A context in which pipelines use the database of a DSN; it gives a superuser's connection to the database."""

    @contextmanager
    def there(url: str) -> Generator[Connection]:
        with monkeypatch.context() as there, connect(make_conninfo(cluster, dbname=make_name(url))) as connection:
            there.setenv("ROWVEC_DATABASE_URL", url)
            yield connection

    return there


def restore(pipeline: Pipeline, manifest: str | None = None) -> RestoreReport:
    """Run what the flow runs."""
    with restoring(pipeline, manifest) as under_way:
        return finish_restore(pipeline, under_way.run, restore_rows(pipeline, under_way))


def _die(*_: object) -> None:
    raise SystemExit


def note(report: SyncReport) -> str:
    """What a sync says of other databases; empty if it says nothing."""
    return next((check.detail for check in report.checks if check.name == "store"), "")


def objects(pipeline: Pipeline) -> set[str]:
    """The names of all objects but marks."""
    return {name for name in open_store(pipeline.artifacts).names() if not name.startswith("marks/")}


def test_a_database_from_an_older_dump_embeds_nothing_again(
    source: Connection, paintings: Pipeline, database_url: str, copied: Copy, at: At
) -> None:
    sync(paintings)
    older = copied()
    with at(database_url) as now:
        fill(now, 20, start=100)
        assert sync(paintings).embedded == 20
    with at(older) as then:
        fill(then, 21, start=100)
        planned = plan(paintings)
        assert (planned.embedded, planned.reused) == (1, 20)
        assert "rowvec adopt" in planned.notes[0]
        with pytest.raises(LedgerBehind, match="older copy of that one"):
            sync(paintings)
        adopt_store(paintings)
        report = sync(paintings)
        assert (report.embedded, report.reused) == (1, 20)
        planned = plan(paintings)
        assert (planned.embedded, planned.reused) == (0, 0)
        assert_in_step(then)
        assert audit(paintings).consistent
        assert sync(paintings).manifest is None


@pytest.mark.needs("a superuser", "rowvec creates the schema of its ledger again")
def test_an_empty_database_embeds_nothing_again(
    source: Connection, paintings: Pipeline, copied: Copy, at: At, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = copied()
    with at(database_url):
        sync(paintings)
    with at(empty) as connection:
        assert _planned(paintings, connection, monkeypatch) == (50, 0, 50)
        connection.execute("DROP SCHEMA rowvec CASCADE")
        assert _planned(paintings, connection, monkeypatch) == (50, 0, 50)
        assert connection.execute("SELECT to_regnamespace('rowvec') IS NULL").fetchone() == (True,)
        report = sync(paintings)
        assert (report.new, report.embedded, report.reused) == (50, 0, 50)
        assert_in_step(connection)
        connection.execute("DROP TABLE vectors.paintings")
        assert restore(paintings).consistent


def _planned(pipeline: Pipeline, connection: Connection, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int, int]:
    """New rows, texts to embed and reused vectors of a plan, which has no transaction open while it reads the store."""
    read: list[Artifact] = []

    def reading(store: Store, artifact: Artifact) -> Iterator[list[bytes]]:
        open_ = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND xact_start IS NOT NULL"
        assert connection.execute(f"{open_} AND application_name = 'rowvec plan'").fetchone() == (0,)
        read.append(artifact)
        return stored_fingerprints(store, artifact)

    with monkeypatch.context() as patched:
        patched.setattr(marked_store, "stored_fingerprints", reading)
        found = plan(pipeline)
    assert len(read) == 1
    return found.new, found.embedded, found.reused


def test_a_repair_after_an_older_dump_embeds_nothing_again(
    source: Connection, paintings: Pipeline, database_url: str, copied: Copy, at: At
) -> None:
    sync(paintings)
    older = copied()
    with at(database_url) as now:
        fill(now, 20, start=100)
        sync(paintings)
    with at(older) as then:
        fill(then, 20, start=100)
        with pytest.raises(LedgerBehind):
            prepare_repair(paintings)
        adopt_store(paintings)
        assert prepare_repair(paintings).counts["missing"] == 20
        assert sync(paintings).embedded == 0
        assert audit(paintings).consistent


def test_the_manifests_are_read_only_while_the_ledger_is_behind_the_store(
    source: Connection, paintings: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync(paintings)
    fill(source, 1, start=100)
    with monkeypatch.context() as watched:
        watched.setattr("rowvec.ledger.marked_store.read_link", pytest.fail)
        watched.setattr("rowvec.ledger.marked_store.family_manifests", pytest.fail)
        assert sync(paintings).embedded == 1


def test_fingerprints_are_read_without_the_vectors(
    source: Connection, paintings: Pipeline, copied: Copy, at: At, database_url: str
) -> None:
    """Of an artifact only the footer and one column are read, so its checksum is checked once its vectors are used."""
    empty = copied()
    with at(database_url):
        artifacts = sync(paintings)
    assert artifacts.artifacts == 1
    (name,) = open_store(paintings.artifacts).names("artifacts/")
    path = Path(paintings.artifacts.url) / name
    with at(empty):
        content = bytearray(path.read_bytes())
        content[200] ^= 1
        path.write_bytes(content)
        assert sync(paintings).embedded == 50
    assert len(marked_ledgers(open_store(paintings.artifacts), "paintings")) == 2


def test_a_prune_in_a_copy_deletes_nothing_of_the_original(
    source: Connection, paintings: Pipeline, database_url: str, copied: Copy, at: At
) -> None:
    sync(paintings)
    staging = copied()
    with at(staging) as copy:
        copy.execute("UPDATE paintings SET title = 'staged ' || id")
        assert "rowvec adopt" in note(sync(paintings))
    of_copy = objects(paintings)
    with at(database_url) as original:
        fill(original, 5, start=100)
        sync(paintings)
    of_original = objects(paintings) - of_copy
    with at(staging):
        pruned = prune(paintings, ALWAYS, apply=True)
        assert "rowvec adopt" in pruned.note
        assert (pruned.artifacts, pruned.manifests) == (0, 0)
    assert of_original <= objects(paintings)
    with at(database_url) as original:
        assert "rowvec adopt" in note(sync(paintings))
        assert audit(paintings).consistent
        original.execute("DROP TABLE vectors.paintings")
        assert restore(paintings).consistent
        original.execute("UPDATE paintings SET title = 'other ' || id")
        sync(paintings)
        prune(paintings, ALWAYS, apply=True)
        assert of_copy <= objects(paintings)
    with at(staging) as copy:
        assert audit(paintings).consistent
        copy.execute("DROP TABLE vectors.paintings")
        assert restore(paintings).consistent


def test_a_copy_that_does_nothing_but_prune_deletes_nothing(
    source: Connection, paintings: Pipeline, database_url: str, copied: Copy, at: At
) -> None:
    sync(paintings)
    source.execute("UPDATE paintings SET title = 'once ' || id")
    sync(paintings)
    before = objects(paintings)
    staging = copied()
    with at(staging):
        assert prune(paintings, ALWAYS, apply=True).note
    assert before <= objects(paintings)
    with at(database_url):
        assert audit(paintings).consistent


@pytest.mark.needs("a superuser", "rowvec creates the schema of its ledger again")
def test_a_copy_that_adopts_the_store_is_alone_again(
    source: Connection, paintings: Pipeline, database_url: str, copied: Copy, at: At
) -> None:
    sync(paintings)
    replacement = copied()
    with at(replacement) as connection:
        fill(connection, 1, start=200)
        last = sync(paintings)
    with at(database_url) as original:
        fill(original, 5, start=100)
        sync(paintings)
    with at(replacement) as connection:
        with pytest.raises(UsageError, match="--manifest") as two:
            newest_chain(open_store(paintings.artifacts), "paintings")
        assert str(last.manifest) in str(two.value)
        adopted = adopt_store(paintings)
        assert adopted is not None
        assert (adopted.ledgers, len(adopted.given_up)) == (1, 1)
        assert adopt_store(paintings) is None
        assert newest_chain(open_store(paintings.artifacts), "paintings")[-1].manifest.checksum == last.checksum
        assert not note(sync(paintings))
        assert audit(paintings).consistent
        assert prune(paintings, ALWAYS, apply=True).note == ""
        connection.execute("DROP SCHEMA rowvec CASCADE; DROP TABLE vectors.paintings")
        assert restore(paintings).checksum == last.checksum


def test_a_restore_takes_the_ledgers_last_manifest_and_says_that_the_store_has_later_ones(
    source: Connection, paintings: Pipeline, database_url: str, copied: Copy, at: At
) -> None:
    before = sync(paintings)
    set_back = copied()
    with at(database_url) as now:
        fill(now, 5, start=100)
        given_up = sync(paintings)
    with at(set_back) as then:
        with pytest.raises(LedgerBehind):
            sync(paintings)
        then.execute("DROP TABLE vectors.paintings")
        report = restore(paintings)
        assert (report.checksum, report.manifest) == (before.checksum, before.manifest)
        sentence = next(check.detail for check in report.checks if check.name == "manifest")
        assert str(given_up.manifest) in sentence
        then.execute("DROP TABLE vectors.paintings")
        assert restore(paintings, given_up.manifest).checksum == given_up.checksum


@pytest.mark.needs("a superuser", "rowvec creates the schema of its ledger again")
def test_a_run_of_an_earlier_clock_is_the_newest(
    source: Connection, paintings: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock of the database is set back by a day between two runs, and then the database is lost."""
    sync(paintings)
    fill(source, 5, start=100)
    with monkeypatch.context() as earlier:

        def shifted(manifest: Manifest) -> Manifest:
            return replace(manifest, created_at=manifest.created_at - timedelta(days=1))

        def written(store: Store, manifest: Manifest, folder: Path) -> tuple[str, str]:
            return write_manifest(store, shifted(manifest), folder)

        def named(manifest: Manifest) -> tuple[str, str, bytes]:
            return as_object(shifted(manifest))

        earlier.setattr(journal, "as_object", named)
        earlier.setattr(journal, "write_manifest", written)
        newest = sync(paintings)
    source.execute("DROP SCHEMA rowvec CASCADE; DROP TABLE vectors.paintings")
    report = restore(paintings)
    assert (report.rows, report.checksum, report.manifest) == (55, newest.checksum, newest.manifest)


@pytest.mark.needs("a superuser", "rowvec creates the schema of its ledger again")
def test_what_a_killed_run_left_is_no_second_newest_manifest(
    source: Connection, paintings: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync(paintings)
    fill(source, 5, start=100)
    with monkeypatch.context() as killed:
        killed.setattr("rowvec.ledger.journal.Recorded.confirm", _die)
        with pytest.raises(SystemExit):
            sync(paintings)
    fill(source, 5, start=200)
    last = sync(paintings)
    assert len(list(open_store(paintings.artifacts).names("manifests/"))) == 3
    assert not note(last)
    source.execute("DROP SCHEMA rowvec CASCADE; DROP TABLE vectors.paintings")
    assert restore(paintings).checksum == last.checksum


@pytest.mark.needs("a superuser", "rowvec creates the schema of its ledger again")
def test_a_newest_manifest_that_is_gone_is_noticed_without_a_ledger(source: Connection, paintings: Pipeline) -> None:
    sync(paintings)
    fill(source, 5, start=100)
    open_store(paintings.artifacts).delete(str(sync(paintings).manifest))
    source.execute("DROP SCHEMA rowvec CASCADE; DROP TABLE vectors.paintings")
    with pytest.raises(ArtifactCorrupt, match="is not in the store any more"):
        restore(paintings)


@pytest.mark.needs("a superuser", "rowvec creates the schema of its ledger again")
def test_a_rebuild_leaves_one_newest_manifest(source: Connection, paintings: Pipeline) -> None:
    sync(paintings)
    other = paintings.model_copy(
        update={"embedder": paintings.embedder.model_copy(update={"dimensions": 128}), "target": paintings.target}
    )
    gallery.rebuild(other)
    fill(source, 1, start=100)
    last = sync(other)
    source.execute("DROP SCHEMA rowvec CASCADE; DROP TABLE vectors.paintings")
    assert restore(other).checksum == last.checksum


def test_an_artifact_of_another_pipeline_that_a_manifest_names_is_never_pruned(
    source: Connection, paintings: Pipeline, tmp_path: Path, copied: Copy, at: At
) -> None:
    """Somebody has written a manifest that says an artifact of another pipeline was this one's."""
    empty = copied()
    sync(paintings)
    store = tmp_path / "artifacts"
    forged = forged_store.ForgedStore(store)
    (artifact,) = forged.manifests[0]["artifacts"]
    others = artifact["name"].replace("/paintings/", "/others/")
    (store / others).parent.mkdir(parents=True)
    (store / others).write_bytes(forged.objects[artifact["name"]])

    def point(manifest: forged_store.Json) -> None:
        manifest["artifacts"][0]["name"] = others

    forged_store.replace_manifests(store, point)
    with at(empty) as connection:
        assert sync(paintings).embedded == 0
        connection.execute("UPDATE paintings SET title = 'other ' || id")
        sync(paintings)
        adopt_store(paintings)
        prune(paintings, ALWAYS, apply=True)
    assert (store / others).exists()


@pytest.mark.azurite
def test_a_container_is_told_of_copies_like_a_folder(
    source: Connection,
    container: Container,
    database_url: str,
    copied: Copy,
    at: At,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("BLOB_KEY", container.key)
    artifacts = Artifacts(url=container.url, credential="${BLOB_KEY}")
    pipeline = gallery.pipeline("unused").model_copy(update={"artifacts": artifacts})
    empty = copied()
    with at(database_url):
        sync(pipeline)
    with at(empty):
        report = sync(pipeline)
        assert (report.embedded, bool(note(report))) == (0, True)
        adopt_store(pipeline)
        assert not note(sync(pipeline))
