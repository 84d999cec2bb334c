"""A queue of changes in another database than the vector table: the same as in one, and entries may be seen twice."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any, LiteralString

import pytest
from psycopg import sql

from rowvec.operations import changes
from rowvec.operations.audit import audit
from rowvec.pipeline import Pipeline
from rowvec.postgres.connection import Connection, connect
from rowvec.stages.extract import stage as extract
from rowvec.stages.extract.queue_apart import QueueApart
from rowvec.stages.report import PART, QUEUE, SyncReport
from tests.support import paintings as gallery
from tests.support.databases import database
from tests.support.paintings import Died, fill, sync
from tests.support.row_counts import rows_read
from tests.support.servers.pgbouncer import pooling

Row = tuple[Any, ...]


class Apart:
    """Source and target, each in a database of its own."""

    def __init__(self, source: Connection, target: Connection, url: str, artifacts: str) -> None:
        self.source, self.target, self.url, self.artifacts = source, target, url, artifacts

    def pipeline(self, url: str | None = None, **parts: Any) -> Pipeline:
        """The pipeline; ``url``: another way to the source."""
        return gallery.pipeline(self.artifacts, source={"changes": {"by": "trigger"}, "url": url or self.url}, **parts)

    def assert_in_step(self) -> None:
        """The vector table is f(source)."""
        wanted = self.source.execute(
            "SELECT id, coalesce(title, '') || E'\\n' || coalesce(description, ''), author, year FROM paintings"
            " WHERE coalesce(title, '') || coalesce(description, '') ~ '[^ \\t\\n\\r\\f\\v]' ORDER BY id"
        ).fetchall()
        stored = self.target.execute("SELECT id, content, author, year FROM vectors.paintings ORDER BY id").fetchall()
        assert stored == wanted

    @property
    def queues(self) -> list[str]:
        """The names of the queues in the source's database."""
        found = self.source.execute("SELECT relname FROM pg_class WHERE relname LIKE 'queue\\_%' ORDER BY oid")
        return [name for (name,) in found]

    def entries(self) -> int:
        """Entries of the first queue."""
        queue = sql.Identifier("rowvec_changes", self.queues[0])
        return self.source.execute(sql.SQL("SELECT count(*) FROM {}").format(queue)).fetchall()[0][0]

    def due(self) -> None:
        """The whole comparison is due."""
        self.target.execute("UPDATE rowvec.changes SET verified_at = verified_at - interval '2 days'")


@pytest.fixture
def apart(
    another_url: str, connection: Connection, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Generator[Apart]:
    """50 paintings in a database of their own."""
    monkeypatch.setenv("ROWVEC_DATABASE_URL", database_url)
    monkeypatch.setenv("ROWVEC_HOME", str(tmp_path / "home"))
    with connect(another_url) as source:
        source.execute(gallery.SOURCE)
        fill(source, 50)
        yield Apart(source, connection, another_url, str(tmp_path / "artifacts"))


def by_queue(report: SyncReport) -> bool:
    """Whether the run has compared only the queued keys."""
    return report.compared_in_part is not None


def why(report: SyncReport) -> str:
    """What the run says that it has compared."""
    return next(check.detail for check in report.checks if check.name in (QUEUE, PART))


def test_a_run_compares_what_the_queue_names_and_then_empties_it(apart: Apart) -> None:
    pipeline = apart.pipeline()
    first = sync(pipeline)
    assert (first.new, first.rows, by_queue(first)) == (50, 50, False)
    fill(apart.source, 3, start=101)
    apart.source.execute("UPDATE paintings SET title = title || '!' WHERE id <= 4")
    apart.source.execute("UPDATE paintings SET author = 'somebody' WHERE id = 10")
    apart.source.execute("UPDATE paintings SET id = 999 WHERE id = 30")
    apart.source.execute("DELETE FROM paintings WHERE id IN (20, 21)")
    apart.source.execute("UPDATE paintings SET title = NULL, description = '' WHERE id = 22")
    second = sync(pipeline)
    assert by_queue(second), why(second)
    assert (second.new, second.changed, second.metadata_only, second.deleted) == (4, 4, 1, 4)
    assert (second.unchanged, second.rows, second.embedded, second.pending) == (41, 50, 7, 0)
    apart.assert_in_step()
    assert apart.entries() == 0
    third = sync(pipeline)
    assert by_queue(third), why(third)
    assert (third.unchanged, third.rows, third.checksum) == (50, 50, second.checksum)
    apart.due()
    whole = sync(pipeline)
    assert (by_queue(whole), whole.rows, whole.checksum, whole.missed_by_queue) == (False, 50, second.checksum, 0)
    assert audit(pipeline).consistent


DOUBTS: dict[str, tuple[LiteralString, str]] = {
    "truncated": ("TRUNCATE paintings; INSERT INTO paintings (id, title) VALUES (1, 'one')", "truncated"),
    "a schema that was dropped": ("DROP SCHEMA rowvec_changes CASCADE", "triggers"),
    "entries that somebody removed": (
        "UPDATE paintings SET title = 'unseen' WHERE id = 1;"
        "DO $$ DECLARE t name; BEGIN FOR t IN SELECT relname FROM pg_class WHERE relname LIKE 'queue%' LOOP"
        " EXECUTE format('DELETE FROM rowvec_changes.%I', t); END LOOP; END $$",
        "removed entries",
    ),
    "a source that was set back": (
        "DO $$ DECLARE t name; BEGIN FOR t IN SELECT relname FROM pg_class WHERE relname LIKE 'mark%' LOOP"
        " PERFORM setval(format('rowvec_changes.%I', t)::regclass, 7); END LOOP; END $$",
        "restored",
    ),
}


@pytest.mark.parametrize("doubt", DOUBTS)
def test_a_run_compares_everything_after(doubt: str, apart: Apart) -> None:
    pipeline = apart.pipeline(validation={"max_delete_fraction": 1})
    sync(pipeline)
    statement, reason = DOUBTS[doubt]
    apart.source.execute(statement)
    report = sync(pipeline)
    assert not by_queue(report)
    assert reason in why(report), why(report)
    apart.assert_in_step()
    apart.source.execute("INSERT INTO paintings (id, title) VALUES (700, 'one more')")
    after = sync(pipeline)
    assert by_queue(after), why(after)
    apart.assert_in_step()


def test_a_transaction_that_commits_after_a_later_one_is_not_lost(apart: Apart) -> None:
    pipeline = apart.pipeline()
    sync(pipeline)
    with connect(apart.url) as slow, slow.transaction():
        slow.execute("INSERT INTO paintings (id, title) VALUES (201, 'slow')")
        fill(apart.source, 1, start=202)
        during = sync(pipeline)
        assert (by_queue(during), during.new, during.rows) == (True, 1, 51)
    after = sync(pipeline)
    assert (by_queue(after), after.new, after.rows) == (True, 1, 52)
    apart.assert_in_step()


def test_a_row_that_changes_while_a_run_is_at_work_comes_with_its_next_round(
    apart: Apart, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = apart.pipeline()
    sync(pipeline)
    real = extract.run

    def then_change(*arguments: Any) -> Any:
        plan = real(*arguments)
        apart.source.execute("UPDATE paintings SET title = 'meanwhile' WHERE id IN (9, 10) AND title <> 'meanwhile'")
        apart.source.execute("DELETE FROM paintings WHERE id = 11")
        return plan

    monkeypatch.setattr(extract, "run", then_change)
    apart.source.execute("UPDATE paintings SET title = 'before' WHERE id IN (9, 11)")
    report = sync(pipeline)
    assert (by_queue(report), report.pending, report.rows) == (True, 0, 49)
    apart.assert_in_step()
    assert apart.entries() == 0


def test_entries_that_a_killed_run_has_left_cost_nothing_and_what_it_wrote_is_compared(
    apart: Apart, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = apart.pipeline()
    sync(pipeline)
    apart.source.execute("UPDATE paintings SET title = 'new' WHERE id <= 3; DELETE FROM paintings WHERE id = 4")

    def die(*_: object, **__: object) -> None:
        raise Died

    with monkeypatch.context() as patched:
        patched.setattr(QueueApart, "release", die)
        with pytest.raises(Died):
            sync(pipeline)
    assert apart.entries() == 4
    again = sync(pipeline)
    assert (by_queue(again), again.changed, again.embedded, again.rows) == (False, 0, 0, 49)
    assert "did not come to its verdict" in next(check.detail for check in again.checks if check.name == QUEUE)
    assert apart.entries() == 0
    apart.due()
    whole = sync(pipeline)
    assert (whole.rows, whole.checksum, whole.missed_by_queue) == (again.rows, again.checksum, 0)


def test_what_the_queue_has_missed_is_named(apart: Apart) -> None:
    pipeline = apart.pipeline()
    sync(pipeline)
    apart.target.execute("DELETE FROM vectors.paintings WHERE id IN (7, 8)")
    apart.due()
    found = sync(pipeline)
    check = next(check for check in found.checks if check.name == QUEUE)
    assert (found.missed_by_queue, sorted(check.rows)) == (2, ['["7"]', '["8"]'])
    apart.assert_in_step()


def test_each_ledger_has_a_queue_of_its_own(
    apart: Apart, cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = apart.pipeline()
    sync(pipeline)
    with database(cluster) as second:
        with monkeypatch.context() as patched:
            patched.setenv("ROWVEC_DATABASE_URL", second)
            apart.artifacts = str(tmp_path / "others")
            other = apart.pipeline()
            sync(other)
            apart.source.execute("UPDATE paintings SET title = 'new' WHERE id = 1")
            assert by_queue(found := sync(other)), why(found)
        assert len(apart.queues) == 2
        report = sync(pipeline)
        assert (by_queue(report), report.changed) == (True, 1), why(report)


@pytest.mark.needs("no pooler", "a session that goes on hands in its counts seconds later")
@pytest.mark.parametrize("rows", [5_000, pytest.param(300_000, marks=pytest.mark.soak)])
def test_a_run_by_the_queue_reads_neither_the_source_nor_the_vectors_as_a_whole(rows: int, apart: Apart) -> None:
    fill(apart.source, rows, start=100)
    apart.source.execute("ANALYZE paintings")
    pipeline = apart.pipeline()
    sync(pipeline)
    apart.source.execute("UPDATE paintings SET title = 'new' WHERE id IN (7, 300); DELETE FROM paintings WHERE id = 8")
    before = sum(rows_read(connection)[0] for connection in (apart.source, apart.target))
    report = sync(pipeline)
    assert (by_queue(report), report.changed, report.deleted) == (True, 2, 1)
    # If there is an index, its check looks for one vector.
    assert sum(rows_read(connection)[0] for connection in (apart.source, apart.target)) <= before + 1


@pytest.mark.needs("no pooler", "it starts one of its own")
def test_the_source_may_be_behind_a_pooler(apart: Apart) -> None:
    with pooling(apart.url) as pooler:
        pipeline = apart.pipeline(pooler.url)
        sync(pipeline)
        apart.source.execute("UPDATE paintings SET title = 'new' WHERE id <= 3; DELETE FROM paintings WHERE id = 4")
        report = sync(pipeline)
        assert (by_queue(report), report.changed, report.deleted) == (True, 3, 1), why(report)
        apart.assert_in_step()
        assert apart.entries() == 0


def test_a_pipeline_that_compares_again_has_no_queue_any_more(apart: Apart) -> None:
    sync(apart.pipeline())
    sync(gallery.pipeline(apart.artifacts, source={"url": apart.url}))
    assert not apart.queues


def test_the_queue_is_shown_looked_at_and_removed(apart: Apart) -> None:
    pipeline = apart.pipeline()
    assert not changes.state(pipeline).installed
    assert changes.install_queue(pipeline).installed
    report = sync(pipeline)
    assert changes.look(pipeline).reason is None
    apart.source.execute("UPDATE paintings SET title = 'new' WHERE id < 4")
    assert changes.look(pipeline).reason == "3 changes wait"
    shown = changes.state(pipeline)
    assert (shown.waiting, shown.verified_run) == (3, report.run_id)
    assert "CREATE TRIGGER" in changes.statements(pipeline)
    assert not changes.remove_queue(pipeline).installed
    assert not apart.queues
