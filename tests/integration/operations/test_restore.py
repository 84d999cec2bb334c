"""Restore: the vector table from the store alone, with every column, into an empty database."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rowvec.errors import UsageError
from rowvec.operations.restore import finish_restore, restore_rows, restoring
from rowvec.pipeline import Pipeline
from rowvec.pipeline.model import Artifacts
from rowvec.postgres.connection import Connection, connect
from rowvec.postgres.vector_table import stored_columns
from rowvec.stages.report import RestoreReport
from rowvec.store.heads import newest_chain
from rowvec.store.open import open_store
from tests.support import paintings as gallery
from tests.support.cli_process import PrefectServer, start, write_pipeline
from tests.support.paintings import assert_in_step, fill, sync
from tests.support.servers.azurite import Container

_ROWS = "SELECT t::text FROM vectors.paintings AS t ORDER BY id"


def restore(pipeline: Pipeline, manifest: str | None = None) -> RestoreReport:
    """Run what the flow runs."""
    with restoring(pipeline, manifest) as restore:
        return finish_restore(pipeline, restore.run, restore_rows(pipeline, restore))


def edit(connection: Connection) -> None:
    """Make one change of each kind."""
    connection.execute("DELETE FROM paintings WHERE id <= 3")
    connection.execute("UPDATE paintings SET author = 'O, \"quoted\"\nName' WHERE id IN (4, 5)")
    connection.execute("UPDATE paintings SET author = NULL WHERE id = 6")
    connection.execute("UPDATE paintings SET title = 'other' WHERE id BETWEEN 8 AND 12")
    connection.execute("UPDATE paintings SET title = NULL, description = ' ' WHERE id = 9")
    connection.execute("UPDATE paintings SET id = 1000 WHERE id = 10")
    fill(connection, 5, start=60)


def rows(url: str) -> list[str]:
    """Every column of every row, as text."""
    with connect(url) as connection:
        return [row for (row,) in connection.execute(_ROWS)]


def test_an_empty_database_gets_the_same_table_back(
    source: Connection,
    paintings: Pipeline,
    database_url: str,
    direct_url: str,
    another_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sync(paintings)
    edit(source)
    sync(paintings)
    source.execute("DELETE FROM paintings WHERE id = 20")
    last = sync(paintings)
    monkeypatch.setenv("ROWVEC_DATABASE_URL", another_url)
    report = restore(paintings)
    assert (report.consistent, report.rows, report.checksum) == (True, last.rows, last.checksum)
    assert rows(another_url) == rows(database_url)
    monkeypatch.setenv("ROWVEC_DATABASE_URL", database_url)
    with connect(another_url) as connection, connect(direct_url) as original:
        states = "SELECT run_id, cause, state, manifest FROM rowvec.runs WHERE cause <> 'restore' ORDER BY run_id"
        assert connection.execute(states).fetchall() == original.execute(states).fetchall()
        costs = "SELECT fingerprint, run_id, cost_usd FROM rowvec.embeddings ORDER BY fingerprint"
        held = dict((f, (run, cost)) for f, run, cost in original.execute(costs))
        assert all(held[f] == (run, cost) for f, run, cost in connection.execute(costs) if cost is not None)


def test_after_a_restore_the_next_sync_has_nothing_to_do(
    source: Connection, paintings: Pipeline, tmp_path: Path, another_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync(paintings)
    edit(source)
    sync(paintings)
    content = source.execute("SELECT * FROM paintings").fetchall()
    monkeypatch.setenv("ROWVEC_DATABASE_URL", another_url)
    restore(paintings)
    with connect(another_url) as connection:
        connection.execute(gallery.SOURCE)
        for row in content:
            connection.execute("INSERT INTO paintings VALUES (%s, %s, %s, %s, %s)", row)
        again = sync(paintings)
        assert (again.unchanged, again.embedded, again.reused, again.manifest) == (len(content) - 1, 0, 0, None)
        fill(connection, 1, start=2000)
        assert sync(paintings).embedded == 1
        assert_in_step(connection)
    chain = newest_chain(open_store(paintings.artifacts), "paintings")
    assert len(chain) == 3  # the journal continued where the lost database had stopped


def test_neither_source_nor_embedder_is_needed(
    source: Connection, tmp_path: Path, another_url: str, monkeypatch: pytest.MonkeyPatch, database_url: str
) -> None:
    """Their secrets are not needed either: after a disaster, a machine may lack some variables."""
    monkeypatch.setenv("SOURCE_URL", database_url)
    parts: dict[str, Any] = {"source": {"url": "${SOURCE_URL}"}}
    pipeline = gallery.pipeline(str(tmp_path / "artifacts"), **parts)
    before = sync(pipeline)
    monkeypatch.delenv("SOURCE_URL")
    monkeypatch.setenv("ROWVEC_DATABASE_URL", another_url)
    assert restore(pipeline).checksum == before.checksum


@pytest.mark.parametrize(("precision", "bits"), [("float16", 2), ("float32", 0)])
def test_another_precision_and_other_bits_come_from_the_same_artifacts(
    source: Connection,
    paintings: Pipeline,
    tmp_path: Path,
    another_url: str,
    precision: str,
    bits: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sync(paintings)
    other = gallery.pipeline(
        str(tmp_path / "artifacts"),
        target={"precision": precision, "bits": bits > 0},
        index={"bits": bits or "auto"},
    )
    monkeypatch.setenv("ROWVEC_DATABASE_URL", another_url)
    assert restore(other).consistent
    with connect(another_url) as connection:
        found = {name: kind for name, kind, _ in stored_columns(connection, "vectors", "paintings")}
    assert found["embedding"] == ("halfvec(64)" if precision == "float16" else "vector(64)")
    assert found.get("embedding_bits") == (f"bit({64 * bits})" if bits else None)


def test_an_earlier_manifest_gives_the_table_of_that_day(
    source: Connection, paintings: Pipeline, database_url: str, another_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = sync(paintings)
    then = rows(database_url)
    edit(source)
    sync(paintings)
    monkeypatch.setenv("ROWVEC_DATABASE_URL", another_url)
    assert restore(paintings, first.manifest).consistent
    assert rows(another_url) == then


def test_run_numbers_already_in_use_are_not_used_twice(
    source: Connection,
    paintings: Pipeline,
    tmp_path: Path,
    database_url: str,
    another_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The database already has runs of another pipeline."""
    sync(paintings)
    monkeypatch.setenv("ROWVEC_DATABASE_URL", another_url)
    with connect(another_url) as connection:
        connection.execute(gallery.SOURCE)
        fill(connection, 3)
        other = gallery.pipeline(str(tmp_path / "other")).model_copy(
            update={"name": "others", "target": paintings.target.model_copy(update={"table": "vectors.others"})}
        )
        sync(other)
        report = restore(paintings)
        assert report.consistent
        unknown = connection.execute(
            "SELECT count(*) FROM vectors.paintings_provenance AS v JOIN rowvec.runs AS r USING (run_id)"
            " JOIN rowvec.pipelines AS p USING (pipeline_id) WHERE p.name = 'paintings' AND v.artifact IS NOT NULL"
        ).fetchone()
        assert unknown == (50,)


def test_a_lost_artifact_costs_its_own_rows_and_the_verdict(
    source: Connection, paintings: Pipeline, another_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync(paintings)
    fill(source, 5, start=60)
    sync(paintings)
    store = open_store(paintings.artifacts)
    newest = newest_chain(store, "paintings")[-1].manifest.artifacts[0]
    store.delete(newest.name)
    monkeypatch.setenv("ROWVEC_DATABASE_URL", another_url)
    report = restore(paintings)
    assert (report.consistent, report.rows, report.missing, report.lost) == (False, 50, 5, (newest.name,))
    assert {check.name for check in report.failed_checks} == {"nothing missing", "counts", "checksum"}
    with connect(another_url) as connection:
        state = connection.execute("SELECT state FROM rowvec.runs WHERE cause = 'restore'").fetchone()
    assert state == ("failed",)


def test_a_table_with_rows_is_not_touched(source: Connection, paintings: Pipeline, database_url: str) -> None:
    sync(paintings)
    before = rows(database_url)
    with pytest.raises(UsageError, match=r"vectors\.paintings has rows"):
        restore(paintings)
    assert rows(database_url) == before
    source.execute("TRUNCATE vectors.paintings")
    assert restore(paintings).consistent
    assert rows(database_url) == before
    assert sync(paintings).embedded == 0


@pytest.mark.parametrize(
    ("part", "change", "sentence"),
    [
        ("embedder", {"dimensions": 128}, r"the artifacts of manifests/\S+ are of local .* with 64 dimensions"),
        ("artifacts", {"url": "elsewhere"}, "there is no manifest of the pipeline paintings in"),
        ("source", {"key": ["author"]}, r"the rows of manifests/\S+ have the key \(id\)"),
    ],
)
def test_a_manifest_that_does_not_match_the_pipeline_is_refused(
    source: Connection, paintings: Pipeline, tmp_path: Path, part: str, change: dict[str, Any], sentence: str
) -> None:
    sync(paintings)
    if "url" in change:
        change = {"url": str(tmp_path / change["url"])}
    written = paintings.model_copy(update={part: getattr(paintings, part).model_copy(update=change)})
    with pytest.raises(UsageError, match=sentence):
        restore(written)


@pytest.mark.flow
def test_the_command_restores_from_blob(
    source: Connection,
    container: Container,
    prefect_server: PrefectServer,
    tmp_path: Path,
    another_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("BLOB_KEY", container.key)
    artifacts = Artifacts(url=container.url, credential="${BLOB_KEY}")
    pipeline = gallery.pipeline("unused").model_copy(update={"artifacts": artifacts})
    before = sync(pipeline)
    elsewhere = {"ROWVEC_DATABASE_URL": another_url, "ROWVEC_HOME": str(tmp_path / "another machine")}
    file = write_pipeline(pipeline, tmp_path)
    ended = start(prefect_server.api, "restore", file, "--json", **elsewhere).wait()
    assert ended.status == 0, ended.stderr
    assert (ended.json["rows"], ended.json["checksum"], ended.json["embedded"]) == (50, before.checksum, 0)
    refused = start(prefect_server.api, "restore", file, **elsewhere).wait()
    assert (refused.status, refused.stdout) == (2, "")
    assert "has rows" in refused.stderr
    assert "Traceback" not in refused.stderr
