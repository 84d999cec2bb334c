"""Triggers queue the keys of changed rows: a run compares these rows alone, is right, and says what it compared."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, LiteralString

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from pydantic import ValidationError

from rowvec.errors import DeleteLimitExceeded, SourceError
from rowvec.operations import rebuild
from rowvec.operations.names import adopt, rename
from rowvec.operations.rebuild import rollback
from rowvec.operations.rejects import rejects
from rowvec.pipeline import Pipeline
from rowvec.postgres.connection import Connection, connect
from rowvec.stages.extract import stage as extract
from rowvec.stages.report import PART, QUEUE, SyncReport
from tests.support import paintings as gallery
from tests.support.paintings import assert_in_step, fill, sync
from tests.support.row_counts import rows_read

pytestmark = pytest.mark.needs("a superuser", "only the owner of the source's table can make triggers on it")


@pytest.fixture
def queued(tmp_path: Path) -> Pipeline:
    """The paintings, with a queue of changes."""
    return gallery.pipeline(str(tmp_path / "artifacts"), source={"changes": {"by": "trigger"}})


def compared(report: SyncReport) -> str:
    """What the run says that it has compared."""
    return next(check.detail for check in report.checks if check.name in (QUEUE, PART))


def by_queue(report: SyncReport) -> bool:
    """Whether the run has compared only the queued keys."""
    return report.compared_in_part is not None


def queue_of(connection: Connection) -> sql.Identifier:
    """The queue's table."""
    found = connection.execute(
        "SELECT relname FROM pg_class WHERE relnamespace = 'rowvec_changes'::regnamespace AND relname LIKE 'queue%'"
    ).fetchone()
    assert found
    return sql.Identifier("rowvec_changes", found[0])


def queues(connection: Connection) -> list[str]:
    """The names of all queues."""
    return [name for (name,) in connection.execute("SELECT relname FROM pg_class WHERE relname LIKE 'queue\\_%'")]


def entries(connection: Connection) -> int:
    """Entries of the queue."""
    row = connection.execute(sql.SQL("SELECT count(*) FROM {}").format(queue_of(connection))).fetchone()
    assert row
    return row[0]


def test_a_run_compares_what_the_queue_names(source: Connection, queued: Pipeline) -> None:
    first = sync(queued)
    assert (first.new, first.rows) == (50, 50)
    assert not by_queue(first)
    fill(source, 3, start=101)
    source.execute("UPDATE paintings SET title = title || '!' WHERE id <= 4")
    source.execute("UPDATE paintings SET author = 'somebody' WHERE id = 10")
    source.execute("UPDATE paintings SET id = 999 WHERE id = 30")
    source.execute("DELETE FROM paintings WHERE id IN (20, 21)")
    source.execute("UPDATE paintings SET title = NULL, description = '' WHERE id = 22")
    assert entries(source) > 0
    second = sync(queued)
    assert by_queue(second), compared(second)
    assert (second.new, second.changed, second.metadata_only, second.deleted) == (4, 4, 1, 4)
    assert (second.unchanged, second.rows, second.embedded) == (41, 50, 7)
    assert_in_step(source)
    assert entries(source) == 0
    assert second.verdict().startswith("Consistent for what has changed, of 50 vectors: 13 queued keys were compared; ")
    assert f"by run {first.run_id}, and agreed" in second.verdict()
    third = sync(queued)
    assert by_queue(third)
    assert (third.new, third.changed, third.deleted, third.unchanged, third.rows) == (0, 0, 0, 50, 50)
    assert third.checksum == second.checksum
    source.execute("UPDATE rowvec.changes SET verified_at = verified_at - interval '2 days'")
    whole = sync(queued)
    assert not by_queue(whole)
    assert "older than source.changes.verify_every" in compared(whole)
    assert (whole.rows, whole.checksum) == (50, second.checksum)
    assert next(check.value for check in whole.checks if check.name == QUEUE) == 0
    source.execute("UPDATE rowvec.changes SET verified_at = verified_at + interval '1 hour'")
    assert "in the future" in compared(sync(queued))


DOUBTS: dict[str, tuple[LiteralString, str]] = {
    "a table that was truncated": ("TRUNCATE paintings", "truncated"),
    "a table that was rewritten": ("ALTER TABLE paintings SET UNLOGGED; ALTER TABLE paintings SET LOGGED", "rewritten"),
    "a column that was made again with a default": (
        "ALTER TABLE paintings DROP COLUMN author; ALTER TABLE paintings ADD COLUMN author text DEFAULT 'all of them'",
        "made again",
    ),
    "columns that have exchanged their names": (
        "ALTER TABLE paintings RENAME COLUMN title TO t; ALTER TABLE paintings RENAME COLUMN description TO title;"
        "ALTER TABLE paintings RENAME COLUMN t TO description",
        "renamed",
    ),
    "a trigger that fires for one column": (
        "DO $$ DECLARE t name; BEGIN SELECT tgname INTO t FROM pg_trigger WHERE tgname LIKE 'rowvec%update';"
        " EXECUTE format('DROP TRIGGER %I ON paintings', t);"
        " EXECUTE format('CREATE TRIGGER %I AFTER UPDATE OF year ON paintings FOR EACH STATEMENT"
        " EXECUTE FUNCTION rowvec_changes.%I()', t, (SELECT proname FROM pg_proc WHERE proname LIKE 'note%'));"
        " EXECUTE format('ALTER TABLE paintings ENABLE ALWAYS TRIGGER %I', t); END $$;"
        "UPDATE paintings SET title = 'unseen' WHERE id = 1",
        "triggers",
    ),
    "a function that notes nothing": (
        "DO $$ BEGIN EXECUTE format('CREATE OR REPLACE FUNCTION rowvec_changes.%I() RETURNS trigger LANGUAGE plpgsql"
        " SECURITY DEFINER AS %L', (SELECT proname FROM pg_proc WHERE proname LIKE 'note%'),"
        " 'BEGIN RETURN NULL; END'); END $$; UPDATE paintings SET title = 'unseen' WHERE id = 1",
        "triggers",
    ),
    "triggers that were disabled": (
        "ALTER TABLE paintings DISABLE TRIGGER USER; UPDATE paintings SET title = 'unseen' WHERE id = 1",
        "triggers",
    ),
    "triggers that were disabled for a while": (
        "ALTER TABLE paintings DISABLE TRIGGER USER; UPDATE paintings SET title = 'unseen' WHERE id = 1;"
        "DO $$ DECLARE t name; BEGIN FOR t IN SELECT tgname FROM pg_trigger WHERE tgname LIKE 'rowvec%' LOOP"
        " EXECUTE format('ALTER TABLE paintings ENABLE ALWAYS TRIGGER %I', t); END LOOP; END $$",
        "triggers",
    ),
    "a queue that was dropped": (
        "DO $$ DECLARE t name; BEGIN FOR t IN SELECT relname FROM pg_class WHERE relname LIKE 'queue%' LOOP"
        " EXECUTE format('DROP TABLE rowvec_changes.%I', t); END LOOP; END $$;"
        "UPDATE paintings SET title = 'unseen' WHERE id = 1",
        "triggers",
    ),
    "a schema that was dropped": (
        "DROP SCHEMA rowvec_changes CASCADE; UPDATE paintings SET title = 'unseen' WHERE id = 1",
        "triggers",
    ),
    "entries that somebody removed": (
        "UPDATE paintings SET title = 'unseen' WHERE id = 1;"
        "DO $$ DECLARE t name; BEGIN FOR t IN SELECT relname FROM pg_class WHERE relname LIKE 'queue%' LOOP"
        " EXECUTE format('DELETE FROM rowvec_changes.%I', t); END LOOP; END $$",
        "removed entries",
    ),
    "a database that was restored from a dump": (
        "DO $$ DECLARE t name; BEGIN FOR t IN SELECT relname FROM pg_class WHERE relname LIKE 'queue%' LOOP"
        " EXECUTE format('INSERT INTO rowvec_changes.%I (id, rowvec_xid) VALUES (1, %L)', t, '99999999999'); END LOOP;"
        " END $$",
        "restored",
    ),
    "a column that had another name for a while": (
        "ALTER TABLE paintings RENAME COLUMN id TO number; UPDATE paintings SET title = 'unseen' WHERE number = 1;"
        "ALTER TABLE paintings RENAME COLUMN number TO id",
        "could not be queued",
    ),
}


# Of the ways to lose a trigger some are tried here, and all of them in `make soak`.
_LIKE_OTHERS = {
    "a trigger that fires for one column",
    "triggers that were disabled for a while",
    "a schema that was dropped",
}


@pytest.mark.parametrize(
    "doubt", [pytest.param(doubt, marks=pytest.mark.soak) if doubt in _LIKE_OTHERS else doubt for doubt in DOUBTS]
)
def test_a_run_compares_everything_after(doubt: str, source: Connection, queued: Pipeline) -> None:
    queued = gallery.pipeline(
        queued.artifacts.url, source={"changes": {"by": "trigger"}}, validation={"max_delete_fraction": 1}
    )
    sync(queued)
    statement, reason = DOUBTS[doubt]
    source.execute(statement)
    report = sync(queued)
    assert not by_queue(report)
    assert reason in compared(report), compared(report)
    assert_in_step(source)
    source.execute("INSERT INTO paintings (id, title) VALUES (700, 'one more')")
    after = sync(queued)
    assert by_queue(after), compared(after)
    assert_in_step(source)


UNRELIABLE: dict[str, tuple[LiteralString, str]] = {
    "a table that a crash empties": ("ALTER TABLE paintings SET UNLOGGED", "not logged"),
    "rows that policies hide": (
        "DROP ROLE IF EXISTS hidden_from; CREATE ROLE hidden_from LOGIN; GRANT ALL ON DATABASE {0} TO hidden_from;"
        "GRANT USAGE ON SCHEMA {1} TO hidden_from;"
        "ALTER TABLE paintings OWNER TO hidden_from; ALTER TABLE paintings ENABLE ROW LEVEL SECURITY;"
        "ALTER TABLE paintings FORCE ROW LEVEL SECURITY; CREATE POLICY not_all ON paintings USING (id <> 3);"
        "ALTER SCHEMA rowvec OWNER TO hidden_from; DROP SCHEMA rowvec CASCADE",
        "policies",
    ),
}


@pytest.mark.parametrize("kind", UNRELIABLE)
def test_each_run_compares_everything_of(
    kind: str, source: Connection, direct_url: str, queued: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    statement, reason = UNRELIABLE[kind]
    source.execute(statement.format(conninfo_to_dict(direct_url)["dbname"], source.names.pgvector).encode())
    if "hidden_from" in statement:
        monkeypatch.setenv("ROWVEC_DATABASE_URL", make_conninfo(direct_url, user="hidden_from"))
    sync(queued)
    for _ in range(2):
        report = sync(queued)
        assert not by_queue(report)
        assert reason in compared(report), compared(report)


@pytest.mark.parametrize(
    ("statement", "sentence"),
    [
        (
            "CREATE TABLE whole (LIKE paintings INCLUDING ALL) PARTITION BY RANGE (id);"
            "ALTER TABLE whole ATTACH PARTITION paintings FOR VALUES FROM (0) TO (1000)",
            "is a partition or a child of another table",
        ),
        ("ALTER TABLE paintings RENAME TO p; CREATE VIEW paintings AS SELECT * FROM p", "is a view"),
    ],
)
def test_a_table_that_is_written_past_its_triggers_is_refused(
    statement: LiteralString, sentence: str, source: Connection, queued: Pipeline
) -> None:
    sync(queued)
    source.execute(statement)
    with pytest.raises(SourceError, match=sentence):
        sync(queued)


def test_a_key_of_another_type_gets_another_queue(source: Connection, queued: Pipeline) -> None:
    source.execute("ALTER TABLE paintings ADD COLUMN code uuid NOT NULL DEFAULT gen_random_uuid() UNIQUE")
    other = gallery.pipeline(queued.artifacts.url, source={"changes": {"by": "trigger"}, "key": ["code"]})
    sync(other)
    source.execute("DROP TABLE vectors.paintings; ALTER TABLE paintings ALTER COLUMN code TYPE text")
    assert not by_queue(sync(other))
    source.execute("UPDATE paintings SET title = 'new' WHERE id < 4")
    report = sync(other)
    assert (by_queue(report), report.changed) == (True, 3), compared(report)


def test_a_change_that_could_not_be_queued_is_found_after_its_transaction(
    source: Connection, direct_url: str, queued: Pipeline
) -> None:
    sync(queued)
    with psycopg.connect(direct_url) as slow, psycopg.connect(direct_url) as other:
        other.execute(sql.SQL("LOCK TABLE {}").format(queue_of(source)))
        # The statement goes through, and its transaction commits after the next run.
        slow.execute("SET lock_timeout = '10ms'")
        slow.execute("UPDATE paintings SET title = 'not queued' WHERE id = 1")
        other.rollback()
        during = sync(queued)
        assert (by_queue(during), during.changed) == (False, 0)
        assert "could not be queued" in compared(during)
        slow.commit()
    after = sync(queued)
    assert (by_queue(after), after.changed) == (False, 1), compared(after)
    assert_in_step(source)
    assert by_queue(sync(queued))


def test_a_transaction_that_commits_after_a_later_one_is_not_lost(
    source: Connection, database_url: str, queued: Pipeline
) -> None:
    sync(queued)
    with connect(database_url) as slow, slow.transaction():
        slow.execute("INSERT INTO paintings (id, title) VALUES (201, 'slow')")
        fill(source, 1, start=202)
        during = sync(queued)
        assert (by_queue(during), during.new, during.rows) == (True, 1, 51)
    after = sync(queued)
    assert (by_queue(after), after.new, after.rows) == (True, 1, 52)
    assert_in_step(source)


def test_what_the_queue_has_missed_is_named(source: Connection, queued: Pipeline) -> None:
    sync(queued)
    source.execute("DELETE FROM vectors.paintings WHERE id IN (7, 8)")
    unnoticed = sync(queued)
    assert by_queue(unnoticed)
    source.execute("UPDATE rowvec.changes SET verified_at = verified_at - interval '2 days'")
    found = sync(queued)
    check = next(check for check in found.checks if check.name == QUEUE)
    assert (check.ok, check.value, found.missed_by_queue, unnoticed.missed_by_queue) == (True, 2, 2, None)
    assert (unnoticed.verified_run, found.verified_run) == (found.run_id - 2, found.run_id)
    assert "**ALARM**: the queue had missed 2 rows" in found.as_markdown()
    assert sorted(check.rows) == ['["7"]', '["8"]']
    assert "had missed 2 rows" in check.detail
    assert_in_step(source)


def test_partitions_have_triggers_of_their_own_and_a_new_one_is_noticed(source: Connection, queued: Pipeline) -> None:
    source.execute(
        "DROP TABLE paintings;"
        "CREATE TABLE paintings (id int PRIMARY KEY, title text, description text, author text, year int)"
        " PARTITION BY RANGE (id);"
        "CREATE TABLE low PARTITION OF paintings FOR VALUES FROM (0) TO (1000);"
        "CREATE TABLE high (LIKE low INCLUDING ALL)"
    )
    fill(source, 20)
    sync(queued)
    source.execute(
        "INSERT INTO low (id, title) VALUES (30, 'past the parent'); UPDATE paintings SET year = 1 WHERE id = 1"
    )
    report = sync(queued)
    assert (by_queue(report), report.new, report.metadata_only) == (True, 1, 1), compared(report)
    source.execute("INSERT INTO high (id, title) VALUES (1500, 'attached')")
    source.execute("ALTER TABLE paintings ATTACH PARTITION high FOR VALUES FROM (1000) TO (2000)")
    attached = sync(queued)
    assert (by_queue(attached), attached.new) == (False, 1)
    source.execute("INSERT INTO high (id, title) VALUES (1501, 'and written')")
    assert (by_queue(after := sync(queued)), after.new) == (True, 1)
    assert_in_step(source)
    source.execute(
        "ALTER TABLE paintings DETACH PARTITION high; INSERT INTO high (id, title) VALUES (1502, 'too late')"
    )
    detached = sync(queued)
    assert (by_queue(detached), detached.deleted) == (False, 2), compared(detached)
    assert "attached or detached" in compared(detached)
    source.execute("DELETE FROM paintings WHERE id = 2")
    assert (by_queue(after := sync(queued)), after.deleted) == (True, 1), compared(after)
    assert_in_step(source)


def test_another_template_or_key_is_compared_as_a_whole(source: Connection, queued: Pipeline) -> None:
    source.execute("ALTER TABLE paintings ADD COLUMN code text NOT NULL DEFAULT gen_random_uuid() UNIQUE")
    sync(queued)
    other = gallery.pipeline(queued.artifacts.url, source={"changes": {"by": "trigger"}, "content": "{description}"})
    report = sync(other)
    assert (by_queue(report), report.changed) == (False, 50)
    assert "the content, the embedder or the vector table is another one" in compared(report)
    assert by_queue(sync(other))
    source.execute("DROP TABLE vectors.paintings")
    keyed = gallery.pipeline(queued.artifacts.url, source={"changes": {"by": "trigger"}, "key": ["code"]})
    assert (by_queue(report := sync(keyed)), report.new) == (False, 50)
    source.execute("UPDATE paintings SET title = 'new' WHERE id < 4")
    assert (by_queue(report := sync(keyed)), report.changed) == (True, 3), compared(report)


def test_a_change_that_was_rolled_back_is_no_entry(source: Connection, queued: Pipeline) -> None:
    sync(queued)
    with source.transaction(force_rollback=True):
        fill(source, 50, start=300)
    assert entries(source) == 0
    source.execute(
        "BEGIN; SAVEPOINT s; DELETE FROM paintings; ROLLBACK TO s; DELETE FROM paintings WHERE id = 5; COMMIT"
    )
    report = sync(queued)
    assert (by_queue(report), report.deleted, report.rows) == (True, 1, 49)


@pytest.mark.needs("no pooler", "a session that goes on hands in its counts seconds later")
@pytest.mark.parametrize("rows", [5_000, pytest.param(300_000, marks=pytest.mark.soak)])
def test_a_run_by_the_queue_reads_neither_the_source_nor_the_vectors_as_a_whole(
    rows: int, source: Connection, queued: Pipeline
) -> None:
    fill(source, rows, start=100)
    source.execute("ANALYZE paintings")
    sync(queued)
    source.execute("UPDATE paintings SET title = 'new' WHERE id IN (7, 300); DELETE FROM paintings WHERE id = 8")
    before = rows_read(source)
    report = sync(queued)
    assert (by_queue(report), report.changed, report.deleted) == (True, 2, 1)
    # If there is an index, its check looks for one vector.
    assert rows_read(source)[0] <= before[0] + 1
    # So many keys that a scan, or an index from end to end, would be cheaper by the planner's usual figures.
    source.execute("UPDATE paintings SET title = 'newer' WHERE id % 13 = 0")
    before = rows_read(source)
    report = sync(queued)
    assert by_queue(report)
    scanned, fetched = (now - then for now, then in zip(rows_read(source), before, strict=True))
    assert scanned <= 1
    assert fetched < 40 * report.changed


def test_a_generation_under_construction_leaves_the_queue_to_the_live_one(source: Connection, queued: Pipeline) -> None:
    sync(queued)
    source.execute("UPDATE paintings SET title = 'new' WHERE id = 7")
    longer = gallery.pipeline(
        queued.artifacts.url, source={"changes": {"by": "trigger"}}, embedder={"kind": "local", "dimensions": 128}
    )
    gallery.rebuild(longer)
    # The new generation was compared as a whole once, by a run of its own.
    proved = source.execute(
        "SELECT r.pipeline_id FROM rowvec.changes AS c JOIN rowvec.runs AS r ON r.run_id = c.verified_run"
        " AND r.pipeline_id = c.pipeline_id"
    ).fetchall()
    assert len(set(proved)) == 1
    source.execute("UPDATE paintings SET title = 'newer' WHERE id = 7")
    assert by_queue(report := sync(longer)), compared(report)
    assert_in_step(source)


def test_what_another_generation_took_from_the_queue_is_compared_after_a_rollback(
    source: Connection, queued: Pipeline
) -> None:
    sync(queued)
    longer = gallery.pipeline(
        queued.artifacts.url, source={"changes": {"by": "trigger"}}, embedder={"kind": "local", "dimensions": 128}
    )
    gallery.rebuild(longer)
    source.execute("UPDATE paintings SET title = 'newer' WHERE id = 7; DELETE FROM paintings WHERE id = 8")
    assert by_queue(sync(longer))
    rollback(longer)
    assert not by_queue(sync(queued))
    assert_in_step(source)


def test_rejects_that_are_tried_again_are_compared(source: Connection, queued: Pipeline) -> None:
    listing = gallery.pipeline(queued.artifacts.url, source={"changes": {"by": "trigger"}, "empty": "reject"})
    source.execute("UPDATE paintings SET title = '', description = '' WHERE id = 4")
    assert sync(listing).rejected == 1
    assert rejects(listing, retry=True).retried == 1
    again = sync(listing)
    assert (by_queue(again), again.rejected) == (False, 1)
    assert "rejected rows are tried again" in compared(again)


def test_what_one_round_has_missed_is_told_after_another_round(
    source: Connection, queued: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.execute("UPDATE paintings SET title = '', description = '' WHERE id = 40")
    sync(queued)
    source.execute("DELETE FROM vectors.paintings WHERE id = 7")
    source.execute("UPDATE rowvec.changes SET verified_at = verified_at - interval '2 days'")
    real = extract.run

    def then_change(*arguments: Any) -> Any:
        plan = real(*arguments)
        source.execute("UPDATE paintings SET title = 'meanwhile' WHERE id = 9 AND title <> 'meanwhile'")
        return plan

    monkeypatch.setattr(extract, "run", then_change)
    report = sync(queued)
    check = next(check for check in report.checks if check.name == QUEUE)
    assert (check.value, check.rows) == (1, ('["7"]',))
    assert (report.empty, report.pending) == (1, 0)
    assert_in_step(source)


@pytest.mark.parametrize("read", [{}, {"table": None, "query": "SELECT * FROM public.paintings"}], ids=str)
def test_a_pipeline_that_compares_again_has_no_queue_any_more(
    source: Connection, queued: Pipeline, read: dict[str, Any]
) -> None:
    sync(queued)
    sync(gallery.pipeline(queued.artifacts.url, source=read))
    assert queues(source) == []
    assert source.execute("SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'rowvec%'").fetchone() == (0,)
    source.execute("UPDATE paintings SET title = 'new' WHERE id = 1")
    assert not by_queue(sync(queued))
    assert_in_step(source)


def test_a_pipeline_with_another_name_leaves_no_queue_behind(source: Connection, queued: Pipeline) -> None:
    sync(queued)
    before = queues(source)
    renamed = queued.model_copy(update={"name": "pictures"})
    rename(renamed, "paintings")
    assert queues(source) == []
    assert not by_queue(sync(renamed))
    assert (len(queues(source)), queues(source) == before) == (1, False)
    assert by_queue(sync(renamed))


def test_a_name_that_another_table_adopts_leaves_no_queue_behind(source: Connection, queued: Pipeline) -> None:
    sync(queued)
    source.execute("ALTER TABLE vectors.paintings RENAME TO others")
    moved = gallery.pipeline(
        queued.artifacts.url, source={"changes": {"by": "trigger"}}, target={"table": "vectors.others"}
    )
    adopt(moved)
    assert queues(source) == []
    assert source.execute("SELECT count(*) FROM rowvec.looks").fetchone() == (0,)
    assert not by_queue(sync(moved))
    # Now both tables exist, and the former one loses the name.
    source.execute("CREATE TABLE vectors.paintings (LIKE vectors.others INCLUDING ALL)")
    source.execute("INSERT INTO vectors.paintings SELECT * FROM vectors.others")
    assert adopt(queued).former_name == "paintings-old"
    assert queues(source) == []
    assert not by_queue(sync(queued))
    assert_in_step(source)


def test_rows_that_change_while_a_generation_is_built(source: Connection, queued: Pipeline) -> None:
    sync(queued)
    longer = gallery.pipeline(
        queued.artifacts.url, source={"changes": {"by": "trigger"}}, embedder={"kind": "local", "dimensions": 128}
    )
    number = 0

    def sync_and_write(pipeline: Pipeline) -> SyncReport:
        nonlocal number
        report = sync(pipeline)
        number += 1
        source.execute("UPDATE paintings SET title = title || '!' WHERE id = %s", (number,))
        source.execute("DELETE FROM paintings WHERE id = %s", (50 - number,))
        if "." in pipeline.name:
            # A scheduled run of the live generation, whose settings the file does not have any more.
            live = sync(longer)
            assert by_queue(live), compared(live)
            assert live.changed == live.deleted > 0
            source.execute("UPDATE paintings SET year = -1 WHERE id = %s", (number,))
        return report

    steps = replace(gallery.REBUILD_STEPS, sync=sync_and_write)
    rebuild.rebuild(longer, None, steps, to_switch=True)
    after = sync(longer)
    assert (by_queue(after), after.changed, after.deleted) == (True, 1, 1), compared(after)
    assert_in_step(source)
    source.execute("UPDATE paintings SET title = 'last' WHERE id = 20")
    after = sync(longer)
    assert (by_queue(after), after.changed) == (True, 1), compared(after)
    assert_in_step(source)


def test_limits_on_deletes_count_the_whole_table(source: Connection, queued: Pipeline) -> None:
    sync(queued)
    source.execute("DELETE FROM paintings WHERE id <= 10")
    assert (by_queue(report := sync(queued)), report.deleted) == (True, 10)
    source.execute("DELETE FROM paintings WHERE id <= 40")
    with pytest.raises(DeleteLimitExceeded, match="30 of 40"):
        sync(queued)
    assert entries(source) > 0


@pytest.mark.parametrize(
    ("part", "sentence"),
    [
        ({"table": None, "query": "SELECT * FROM public.paintings"}, "needs kind: postgres and a table"),
        ({"chunks": {}}, "does not work with source.chunks"),
        ({"kind": "csv", "path": "a.csv", "key": ["id"], "content": "{a}"}, "needs kind: postgres and a table"),
    ],
)
def test_other_sources_are_refused(part: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=sentence):
        gallery.pipeline(str(tmp_path), source={"changes": {"by": "trigger"}, **part})
