"""A prune deletes nothing that the table or a restorable run needs; compaction moves vectors to other artifacts."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from rowvec.errors import UsageError
from rowvec.operations.audit import audit
from rowvec.operations.prune import Pruned, prune
from rowvec.operations.restore import finish_restore, restore_rows, restoring
from rowvec.pipeline import Pipeline
from rowvec.postgres.connection import Connection, connect
from rowvec.store.open import open_store
from tests.support.cli_process import PrefectServer, start, write_pipeline
from tests.support.paintings import assert_in_step, fill, sync, vectors

ALWAYS = timedelta(0)
MONTH = timedelta(days=30)


def objects(pipeline: Pipeline, kind: str = "") -> list[str]:
    """Names in the store."""
    return list(open_store(pipeline.artifacts).names(kind))


def age(connection: Connection, days: int) -> None:
    """Make everything that exists so far older."""
    connection.execute("UPDATE rowvec.artifacts SET created_at = created_at - make_interval(days => %s)", (days,))
    connection.execute("UPDATE rowvec.runs SET started_at = started_at - make_interval(days => %s)", (days,))


@pytest.fixture
def edited(source: Connection, paintings: Pipeline) -> Connection:
    """Three artifacts: the table still needs 40 rows of the first one and none of the second one."""
    sync(paintings)
    for text in ("once", "twice"):
        source.execute("UPDATE paintings SET title = %s || id WHERE id <= 10", (text,))
        sync(paintings)
    return source


def restored(pipeline: Pipeline, url: str) -> dict[int, tuple[str, str, str]]:
    """The table as a restore from the store builds it."""
    with connect(url) as connection:
        connection.execute("DROP TABLE vectors.paintings")
        with restoring(pipeline) as restore:
            assert finish_restore(pipeline, restore.run, restore_rows(pipeline, restore)).consistent
        return vectors(connection)


def test_dry_by_default(edited: Connection, paintings: Pipeline) -> None:
    before = objects(paintings)
    found = prune(paintings, ALWAYS)
    assert (found.applied, found.artifacts, found.kept_artifacts) == (False, 1, 2)
    assert found.bytes > 0
    assert objects(paintings) == before
    assert edited.execute("SELECT count(*) FROM rowvec.runs").fetchone() == (3,)


def test_what_the_table_needs_stays(edited: Connection, paintings: Pipeline, database_url: str) -> None:
    before = vectors(edited)
    found = prune(paintings, ALWAYS, apply=True)
    assert (found.applied, found.artifacts, found.manifests, found.kept_artifacts) == (True, 1, 3, 2)
    assert len(objects(paintings, "artifacts/")) == 2
    assert len(objects(paintings, "manifests/")) == len(objects(paintings, "journal/")) == 1
    assert audit(paintings).consistent
    assert sync(paintings).embedded == 0
    assert restored(paintings, database_url) == before
    again = prune(paintings, ALWAYS, apply=True)
    assert (again.artifacts, again.manifests) == (0, 0)


def test_a_kept_run_can_still_be_restored(edited: Connection, paintings: Pipeline, database_url: str) -> None:
    """The age is thirty days: no row needs the second artifact, but a run of last week needs it."""
    assert prune(paintings, MONTH, apply=True).artifacts == 0
    age(edited, 20)
    assert prune(paintings, MONTH, apply=True).artifacts == 0
    week = edited.execute("SELECT manifest FROM rowvec.runs WHERE run_id = 2").fetchone()
    assert week is not None
    edited.execute("DROP TABLE vectors.paintings")
    with restoring(paintings, week[0]) as restore:
        assert finish_restore(paintings, restore.run, restore_rows(paintings, restore)).consistent
    assert vectors(edited)[1][0].startswith("once1")
    assert sync(paintings).embedded == 0
    age(edited, 40)
    assert prune(paintings, MONTH, apply=True).artifacts == 1
    assert audit(paintings).consistent


def test_a_text_that_returns_is_paid_again_only_after_its_artifact_was_deleted(
    edited: Connection, paintings: Pipeline
) -> None:
    edited.execute("UPDATE paintings SET title = 'once' || id WHERE id = 1")
    assert sync(paintings).embedded == 0
    edited.execute("UPDATE paintings SET title = 'twice' || id WHERE id = 1")
    assert sync(paintings).embedded == 0
    prune(paintings, ALWAYS, apply=True)
    edited.execute("UPDATE paintings SET title = 'once' || id WHERE id = 1")
    assert sync(paintings).embedded == 1
    assert_in_step(edited)


def test_many_small_artifacts_become_one(source: Connection, paintings: Pipeline, database_url: str) -> None:
    for start_row in range(51, 81, 5):
        sync(paintings)
        fill(source, 5, start=start_row)
    sync(paintings)
    before, paid = vectors(source), "SELECT fingerprint, run_id FROM rowvec.embeddings ORDER BY 1"
    costs = source.execute(paid).fetchall()
    assert len(objects(paintings, "artifacts/")) == 7
    found = prune(paintings, MONTH, apply=True, compact=True)
    assert (found.compacted, found.artifacts) == (7, 0)
    assert len(objects(paintings, "artifacts/")) == 8
    assert audit(paintings).consistent
    age(source, 40)
    assert prune(paintings, MONTH, apply=True).artifacts == 7
    assert len(objects(paintings, "artifacts/")) == 1
    assert audit(paintings).consistent
    assert source.execute(paid).fetchall() == costs
    assert restored(paintings, database_url) == before
    source.execute("DROP TABLE vectors.paintings")
    assert sync(paintings).embedded == 0
    assert vectors(source) == before


def test_objects_unknown_to_the_ledger_are_left_alone(edited: Connection, paintings: Pipeline, tmp_path: Path) -> None:
    other = tmp_path / "artifacts/artifacts/paintings/ab/other.parquet"
    other.parent.mkdir(parents=True, exist_ok=True)
    other.write_bytes(b"of another database")
    prune(paintings, ALWAYS, apply=True)
    assert other.exists()


def test_compaction_needs_apply(edited: Connection, paintings: Pipeline) -> None:
    with pytest.raises(UsageError, match="--apply"):
        prune(paintings, ALWAYS, compact=True)


def test_the_command(edited: Connection, paintings: Pipeline, prefect_server: PrefectServer, tmp_path: Path) -> None:
    file = write_pipeline(paintings, tmp_path)
    dry = start(prefect_server.api, "prune", file, "--older-than", "0", "--json").wait()
    assert dry.status == 0, dry.stderr
    assert (dry.json["applied"], dry.json["artifacts"]) == (False, 1)
    done = start(prefect_server.api, "prune", file, "--older-than", "0", "--apply").wait()
    assert done.status == 0, done.stderr
    assert "Deleted" in done.stdout
    assert set(Pruned.__slots__) == set(dry.json)
