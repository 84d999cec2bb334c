"""An erasure that is killed at any point is finished by the next one; runs in between lose and pay nothing."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest

from rowvec.operations.audit import audit
from rowvec.operations.erasure.forget import forget
from rowvec.operations.restore import finish_restore, restore_rows, restoring
from rowvec.pipeline import Pipeline
from rowvec.postgres.connection import Connection, connect
from tests.support import byte_search
from tests.support.paintings import assert_in_step, sync, vectors
from tests.support.statement_faults import Died, StatementFault, befalling_store

TEXT = "Quixotic"
NEVER = 1_000_000
PIECES = 60


def planted(source: Connection, pipeline: Pipeline, key: int) -> None:
    """A row with two texts in two artifacts that comes and goes."""
    for year, words in enumerate(("first", "second")):
        source.execute(
            "INSERT INTO paintings VALUES (%s, %s, 'words', %s, %s)"
            " ON CONFLICT (id) DO UPDATE SET title = excluded.title",
            (key, f"{TEXT} {words} {key}", f"{TEXT} author", year),
        )
        sync(pipeline)
    source.execute("DELETE FROM paintings WHERE id = %s", (key,))
    sync(pipeline)


def assert_erased(source: Connection, pipeline: Pipeline, url: str) -> None:
    """Nothing of the rows is left, each object is in use, and the store alone gives the table again."""
    assert byte_search.in_folder(Path(pipeline.artifacts.url), [TEXT.encode()]) == []
    assert source.execute("SELECT count(*) FROM rowvec.erasures WHERE finished_at IS NULL").fetchone() == (0,)
    assert source.execute("SELECT superseded FROM rowvec.stores").fetchall() == [([],)]
    found = audit(pipeline)
    assert found.consistent, found
    before = vectors(source)
    source.execute("DROP SCHEMA rowvec CASCADE")
    with connect(url) as connection:
        connection.execute("DROP TABLE vectors.paintings")
        with restoring(pipeline) as restore:
            assert finish_restore(pipeline, restore.run, restore_rows(pipeline, restore)).consistent
    assert vectors(source) == before
    assert_in_step(source)


@pytest.mark.needs("a superuser", "rowvec creates the schema of its ledger again")
def test_killed_before_and_after_the_ledger_is_switched(
    source: Connection, paintings: Pipeline, database_url: str
) -> None:
    sync(paintings)
    planted(source, paintings, 7_000)
    # Three journal entries and three manifests are written, the mark is moved, and two artifacts and these are deleted.
    # The second erasure first deletes what the first one has written; it takes its keys from there.
    for change, old_manifests, keys in ((5, 0, ["7000"]), (15, 3, [])):
        fault = StatementFault(number=change, what="die", counts="changes")
        with suppress(Died), befalling_store(fault):
            forget(paintings, keys, apply=True)
        assert fault.happened
        assert source.execute("SELECT cardinality(superseded) FROM rowvec.stores").fetchone() == (old_manifests,)
        assert audit(paintings).consistent
        assert sync(paintings).embedded == 0
    forget(paintings, apply=True)
    assert_erased(source, paintings, database_url)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("piece", range(PIECES))
def test_killed_before_each_statement_and_each_change_of_the_store(
    source: Connection, paintings: Pipeline, database_url: str, piece: int
) -> None:
    sync(paintings)
    planted(source, paintings, 7_000)
    with befalling_store(StatementFault(number=NEVER, what="die")) as counted:
        forget(paintings, ["7000"], apply=True)
    assert counted.seen > 100
    for number in range(1 + piece, counted.seen + 1, PIECES):
        key = 7_000 + number
        planted(source, paintings, key)
        with suppress(Died), befalling_store(StatementFault(number=number, what="die")):
            forget(paintings, [str(key)], apply=True)
        assert sync(paintings).embedded == 0
        forget(paintings, [str(key)], apply=True)
        assert byte_search.in_folder(Path(paintings.artifacts.url), [TEXT.encode()]) == [], number
        assert audit(paintings).consistent, number
    assert_erased(source, paintings, database_url)
