"""The journal in the store has every row of the vector table, whatever happened to the runs that wrote it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from psycopg import sql

from rowvec.ledger.journal import replay
from rowvec.pipeline import Pipeline
from rowvec.postgres.connection import Connection
from rowvec.postgres.names import ScratchTable
from rowvec.store.heads import newest_chain
from rowvec.store.open import open_store
from tests.support.paintings import assert_in_step, dying_after, fill, sync

_DIFFERENCES = """
    SELECT coalesce(t.id, s.id) FROM vectors.paintings AS t FULL JOIN {journal_state} AS s ON s.id = t.id
    WHERE (t.author, t.year, t.fingerprint, t.metadata_hash, t.run_id, t.embedded_at)
        IS DISTINCT FROM (s.author, s.year, s.fingerprint, s.metadata_hash, s.run_id, s.embedded_at)
"""


def unrecorded_keys(connection: Connection, pipeline: Pipeline, folder: Path) -> list[int]:
    """The keys for which the journal and the vector table differ."""
    store = open_store(pipeline.artifacts)
    replay(connection, store, newest_chain(store, pipeline.name), folder)
    statement = sql.SQL(_DIFFERENCES).format(journal_state=ScratchTable("journal_state"))
    return [key for (key,) in connection.execute(statement)]


def manifests(pipeline: Pipeline) -> int:
    """The number of manifests."""
    return len(list(open_store(pipeline.artifacts).names("manifests/")))


def test_each_kind_of_change_is_recorded(source: Connection, paintings: Pipeline, tmp_path: Path) -> None:
    sync(paintings)
    assert unrecorded_keys(source, paintings, tmp_path) == []
    source.execute("DELETE FROM paintings WHERE id <= 3")
    source.execute("UPDATE paintings SET author = 'O, \"quoted\"\nName' WHERE id IN (4, 5)")
    source.execute("UPDATE paintings SET author = NULL WHERE id = 6")
    source.execute("UPDATE paintings SET author = '' WHERE id = 7")
    source.execute("UPDATE paintings SET title = 'other' WHERE id = 8")
    source.execute("UPDATE paintings SET title = NULL, description = ' ' WHERE id = 9")
    source.execute("UPDATE paintings SET id = 1000 WHERE id = 10")
    fill(source, 2, start=60)
    report = sync(paintings)
    assert report.manifest is not None
    assert unrecorded_keys(source, paintings, tmp_path) == []
    chain = newest_chain(open_store(paintings.artifacts), "paintings")
    assert [link.manifest.previous is None for link in chain] == [True, False]


def test_a_run_that_changes_nothing_writes_no_manifest(source: Connection, paintings: Pipeline) -> None:
    sync(paintings)
    assert sync(paintings).manifest is None
    assert manifests(paintings) == 1


@pytest.mark.parametrize("stage", ["upload", "merge", "index", "validate"])
def test_what_a_killed_run_did_is_recorded_by_the_next(
    source: Connection, paintings: Pipeline, tmp_path: Path, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync(paintings)
    source.execute("DELETE FROM paintings WHERE id <= 3")
    source.execute("UPDATE paintings SET title = 'other' WHERE id = 8")
    with dying_after(stage, monkeypatch):
        sync(paintings)
    sync(paintings)
    assert_in_step(source)
    assert unrecorded_keys(source, paintings, tmp_path) == []


def test_a_table_dropped_by_mistake_comes_back_and_its_journal_starts_again(
    source: Connection, paintings: Pipeline, tmp_path: Path
) -> None:
    sync(paintings)
    source.execute("DELETE FROM paintings WHERE id <= 3")
    source.execute("DROP TABLE vectors.paintings")
    assert sync(paintings).embedded == 0
    assert unrecorded_keys(source, paintings, tmp_path) == []


def test_another_set_of_metadata_starts_the_journal_again(
    source: Connection, paintings: Pipeline, tmp_path: Path
) -> None:
    sync(paintings)
    fewer = paintings.model_copy(update={"source": paintings.source.model_copy(update={"metadata": ["year"]})})
    source.execute("UPDATE paintings SET year = 1 WHERE id = 8")
    sync(fewer)
    chain = newest_chain(open_store(paintings.artifacts), "paintings")
    assert [name for name, _ in chain[0].manifest.layout.metadata] == ["year"]
    assert chain[0].manifest.journal.rows == 50


@pytest.mark.parametrize("seed", [0, 1, pytest.param(2, marks=pytest.mark.soak)])
def test_random_edits_are_recorded(source: Connection, paintings: Pipeline, tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(5):
        for _ in range(chance.randrange(6)):
            row = chance.randrange(1, 60)
            source.execute(
                chance.choice(
                    [
                        "DELETE FROM paintings WHERE id = %s",
                        "UPDATE paintings SET year = year + 1 WHERE id = %s",
                        "UPDATE paintings SET title = title || '!' WHERE id = %s",
                        "UPDATE paintings SET title = NULL, description = NULL WHERE id = %s",
                        "INSERT INTO paintings VALUES (%s, 'new', 'text', 'by', 1) ON CONFLICT DO NOTHING",
                    ]
                ),
                (row,),
            )
        sync(paintings)
        assert unrecorded_keys(source, paintings, tmp_path) == []
