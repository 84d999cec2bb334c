"""Syncs of a table in the target's own database, and the changes that other tools miss."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from rowvec.errors import DeleteLimitExceeded, Inconsistent, SourceError, TargetError
from rowvec.index.build import index_state
from rowvec.ledger.runs import Run, running
from rowvec.operations import rejects, search
from rowvec.pipeline import Pipeline
from rowvec.postgres.connection import Connection, connect
from rowvec.postgres.vector_table import stored_table
from rowvec.stages import dry_run, merge
from rowvec.stages.extract import stage
from rowvec.stages.merge import Merged
from rowvec.stages.order import through_all_stages
from rowvec.stages.report import SyncReport
from tests.support import paintings as gallery
from tests.support.paintings import assert_in_step, fill, sync, vectors


def test_the_second_sync_embeds_what_changed_and_the_third_nothing(source: Connection, paintings: Pipeline) -> None:
    first = sync(paintings)
    assert (first.new, first.embedded, first.reused, first.rows) == (50, 50, 0, 50)
    assert_in_step(source)
    fill(source, 3, start=101)
    source.execute("UPDATE paintings SET title = title || '!' WHERE id <= 4")
    source.execute("UPDATE paintings SET author = 'somebody' WHERE id = 10")
    source.execute("DELETE FROM paintings WHERE id IN (20, 21)")
    second = sync(paintings)
    assert (second.new, second.changed, second.metadata_only, second.deleted) == (3, 4, 1, 2)
    assert (second.unchanged, second.embedded) == (43, 7)
    assert_in_step(source)
    third = sync(paintings)
    assert (third.new, third.changed, third.metadata_only, third.deleted) == (0, 0, 0, 0)
    assert (third.unchanged, third.embedded, third.artifacts) == (51, 0, 0)
    assert third.checksum == second.checksum


def test_equal_texts_are_embedded_once(source: Connection, paintings: Pipeline) -> None:
    source.execute("UPDATE paintings SET title = 'the same', description = 'text' WHERE id <= 30")
    report = sync(paintings)
    assert (report.embedded, report.reused, report.rows) == (21, 29, 50)
    assert_in_step(source)


def test_a_text_that_comes_back_is_not_paid_for_again(source: Connection, paintings: Pipeline) -> None:
    sync(paintings)
    before = vectors(source)
    source.execute("UPDATE paintings SET title = 'B' WHERE id = 1")
    assert sync(paintings).embedded == 1
    source.execute("UPDATE paintings SET title = 'Painting 1' WHERE id = 1")
    report = sync(paintings)
    assert (report.changed, report.embedded, report.reused) == (1, 0, 1)
    assert vectors(source) == before


def test_deleted_and_restored_rows_cost_nothing(source: Connection, paintings: Pipeline) -> None:
    sync(paintings)
    source.execute("CREATE TABLE kept AS SELECT * FROM paintings WHERE id <= 10")
    source.execute("DELETE FROM paintings WHERE id <= 10")
    assert sync(paintings).deleted == 10
    source.execute("INSERT INTO paintings SELECT * FROM kept")
    report = sync(paintings)
    assert (report.new, report.embedded, report.reused) == (10, 0, 10)
    assert_in_step(source)


def test_a_dropped_vector_table_is_restored_from_artifacts(source: Connection, paintings: Pipeline) -> None:
    sync(paintings)
    before = vectors(source)
    source.execute("DROP TABLE vectors.paintings CASCADE")
    report = sync(paintings)
    assert (report.new, report.embedded, report.reused) == (50, 0, 50)
    assert vectors(source) == before


def test_text_set_to_empty_or_null_has_no_vector(source: Connection, paintings: Pipeline) -> None:
    sync(paintings)
    source.execute("UPDATE paintings SET title = '', description = E' \\n\\t' WHERE id = 1")
    source.execute("UPDATE paintings SET title = NULL, description = NULL WHERE id = 2")
    report = sync(paintings)
    assert (report.deleted, report.rows, report.rejected) == (2, 48, 0)
    assert {1, 2}.isdisjoint(vectors(source))
    assert_in_step(source)


def test_empty_content_is_listed_or_stops_the_run_by_policy(source: Connection, tmp_path: Path) -> None:
    source.execute("UPDATE paintings SET title = '', description = '' WHERE id <= 2")
    listing = gallery.pipeline(str(tmp_path / "artifacts"), source={"empty": "reject"})
    assert sync(listing).rejected == 2
    found = rejects.rejects(listing).as_json()["rejects"]
    assert {(r["key"][0], r["reason"]) for r in found} == {("1", "empty"), ("2", "empty")}
    source.execute("UPDATE paintings SET title = 'there' WHERE id = 1")
    assert sync(listing).rejected == 1
    with pytest.raises(SourceError, match="1 row has empty content"):
        sync(gallery.pipeline(str(tmp_path / "artifacts"), source={"empty": "fail"}))


def test_a_change_of_metadata_touches_no_vector(source: Connection, paintings: Pipeline) -> None:
    sync(paintings)
    at = "SELECT id, embedded_at, run_id FROM vectors.paintings ORDER BY id"
    before = source.execute(at).fetchall()
    source.execute("UPDATE paintings SET author = NULL, year = year + 1")
    report = sync(paintings)
    assert (report.metadata_only, report.embedded, report.artifacts) == (50, 0, 0)
    assert source.execute(at).fetchall() == before
    assert_in_step(source)


def test_rows_deleted_from_the_vector_table_come_back(source: Connection, paintings: Pipeline) -> None:
    sync(paintings)
    before = vectors(source)
    source.execute("DELETE FROM vectors.paintings WHERE id <= 5")
    report = sync(paintings)
    assert (report.new, report.embedded, report.reused) == (5, 0, 5)
    assert vectors(source) == before


def test_rows_tampered_with_are_repaired(source: Connection, paintings: Pipeline) -> None:
    sync(paintings)
    every = "SELECT * FROM vectors.paintings ORDER BY id"
    before, stored = vectors(source), source.execute(every).fetchall()
    for id_, tampering in enumerate(
        (
            "content = 'other'",
            "content = NULL",
            "author = 'other'",
            "author = NULL",
            "year = 0",
            "fingerprint = sha256('x')",
            "metadata_hash = sha256('x')",
        ),
        start=1,
    ):
        statement = f"UPDATE vectors.paintings SET {tampering} WHERE id = {id_}"  # noqa: S608 # a test's own literals
        source.execute(statement.encode())
    assert len(set(stored) & set(source.execute(every).fetchall())) == 43
    report = sync(paintings)
    assert report.embedded == 0
    assert vectors(source) == before
    assert_in_step(source)


def test_another_machine_takes_over(
    source: Connection, paintings: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync(paintings)
    source.execute("DELETE FROM paintings WHERE id = 7")
    fill(source, 1, start=200)
    monkeypatch.setenv("ROWVEC_HOME", str(tmp_path / "another machine"))
    report = sync(paintings)
    assert (report.new, report.deleted, report.embedded) == (1, 1, 1)
    assert_in_step(source)


def test_a_plan_spends_nothing_and_says_what_a_sync_does(source: Connection, paintings: Pipeline) -> None:
    planned = dry_run.plan(paintings)
    assert source.execute("SELECT to_regclass('vectors.paintings')").fetchone() == (None,)
    report = sync(paintings).as_json()
    names = ("new", "changed", "metadata_only", "deleted", "unchanged", "rejected", "embedded", "reused")
    assert {n: getattr(planned, n) for n in names} == {n: report[n] for n in names}
    source.execute("UPDATE paintings SET title = 'the same', description = 'text' WHERE id <= 3")
    planned = dry_run.plan(paintings)
    report = sync(paintings).as_json()
    assert {n: getattr(planned, n) for n in names} == {n: report[n] for n in names}


def test_a_failing_merge_leaves_the_old_vectors(source: Connection, paintings: Pipeline) -> None:
    sync(paintings)
    before = vectors(source)
    source.execute("UPDATE paintings SET title = 'new ' || id")
    source.execute("ALTER TABLE vectors.paintings ADD CONSTRAINT stop CHECK (false) NOT VALID")
    with pytest.raises(TargetError, match="stop"):
        sync(paintings)
    assert vectors(source) == before


def test_contents_swapped_between_rows_follow_their_keys(source: Connection, paintings: Pipeline) -> None:
    sync(paintings)
    before = vectors(source)
    source.execute(
        "UPDATE paintings AS p SET title = o.title, description = o.description FROM paintings AS o"
        " WHERE p.id IN (1, 2) AND o.id = 3 - p.id"
    )
    source.execute("UPDATE paintings SET title = 'unheard of' WHERE id = 4")
    source.execute(
        "UPDATE paintings AS p SET title = 'Painting 4', description = 'It shows the number 4' WHERE p.id = 3"
    )
    report = sync(paintings)
    assert (report.changed, report.embedded, report.reused) == (4, 1, 3)
    after = vectors(source)
    assert (after[1][2], after[2][2], after[3][2]) == (before[2][2], before[1][2], before[4][2])
    assert_in_step(source)


def _sync_with_a_change(paintings: Pipeline, source: Connection, change: str) -> tuple[Run, Merged]:
    """Run one round of a sync whose source changes between extract and merge."""
    with running(paintings, "test") as run:
        plan = stage.run(paintings, run)
        for number in range(plan.batches):
            through_all_stages(paintings, run, number)
        source.execute(change.encode())
        return run, merge.run(paintings, run)


@pytest.mark.parametrize(
    ("change", "pending", "first_load"),
    [
        ("DELETE FROM paintings WHERE id <= 5", 0, True),
        ("DELETE FROM paintings WHERE id <= 5", 0, False),
        ("UPDATE paintings SET title = 'edited meanwhile' WHERE id <= 5", 5, True),
        ("UPDATE paintings SET title = 'edited meanwhile' WHERE id <= 5", 5, False),
        pytest.param("UPDATE paintings SET id = id + 1000 WHERE id <= 5", 5, True, marks=pytest.mark.soak),
        ("UPDATE paintings SET id = id + 1000 WHERE id <= 5", 5, False),
        pytest.param(
            "UPDATE paintings SET title = '', description = '' WHERE id <= 5", 0, True, marks=pytest.mark.soak
        ),
        ("UPDATE paintings SET title = '', description = '' WHERE id <= 5", 0, False),
        pytest.param(
            "UPDATE paintings SET title = 'edited meanwhile' WHERE id BETWEEN 40 AND 42",
            3,
            True,
            marks=pytest.mark.soak,
        ),
        ("UPDATE paintings SET title = 'edited meanwhile' WHERE id BETWEEN 40 AND 42", 3, False),
        pytest.param("INSERT INTO paintings VALUES (500, 'came', 'later', 'x', 1)", 1, True, marks=pytest.mark.soak),
        ("INSERT INTO paintings VALUES (500, 'came', 'later', 'x', 1)", 1, False),
    ],
)
def test_rows_that_change_while_they_are_embedded(
    source: Connection, paintings: Pipeline, change: str, pending: int, first_load: bool
) -> None:
    if not first_load:
        sync(paintings)
        source.execute("UPDATE paintings SET title = 'edited before' WHERE id <= 10")
    _, merged = _sync_with_a_change(paintings, source, change)
    assert (merged.pending, merged.missing) == (pending, ())
    assert merged.source_checksum == merged.table_checksum
    stale = source.execute(
        "SELECT t.id FROM vectors.paintings AS t LEFT JOIN paintings AS s USING (id)"
        " WHERE s.title || E'\\n' || s.description IS DISTINCT FROM t.content"
    ).fetchall()
    assert stale == []
    assert sync(paintings).consistent
    assert_in_step(source)


@pytest.mark.parametrize(
    ("change", "pending", "gone"),
    [
        ("SELECT 1", 0, 0),
        ("DELETE FROM paintings WHERE id <= 5", 0, 5),
        ("UPDATE paintings SET title = 'edited meanwhile' WHERE id <= 5", 5, 5),
        ("UPDATE paintings SET id = id + 1000 WHERE id <= 5", 5, 5),
        ("UPDATE paintings SET author = 'edited meanwhile' WHERE id <= 5", 5, 0),
        ("INSERT INTO paintings VALUES (500, 'came', 'later', 'x', 1)", 1, 0),
        ("DELETE FROM vectors.paintings WHERE id <= 5", 5, 0),
        (
            "INSERT INTO vectors.paintings SELECT (jsonb_populate_record(t, '{\"id\": 900}')).*"
            " FROM vectors.paintings AS t WHERE id = 1",
            0,
            1,
        ),
    ],
)
def test_a_merge_with_nothing_to_do_sees_what_came_since_the_plan(
    source: Connection, paintings: Pipeline, change: str, pending: int, gone: int
) -> None:
    sync(paintings)
    _, merged = _sync_with_a_change(paintings, source, change)
    assert (merged.pending, merged.deleted, merged.missing) == (pending, gone, ())
    assert merged.source_checksum == merged.table_checksum
    assert sync(paintings).consistent
    assert_in_step(source)


def test_a_run_starts_another_round_for_what_changed_meanwhile(
    source: Connection, paintings: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge_run, changes = merge.run, iter(["UPDATE paintings SET title = 'late' WHERE id = 3"])

    def merge_after_a_change(*args: object) -> Merged:
        for change in list(changes)[:1]:
            source.execute(change.encode())
        return merge_run(*args)  # pyright: ignore[reportArgumentType] # passed through as it came

    monkeypatch.setattr(merge, "run", merge_after_a_change)
    report = sync(paintings)
    assert (report.pending, report.rows) == (0, 50)
    assert_in_step(source)


def test_more_deletes_than_allowed_stop_the_run_and_change_nothing(source: Connection, paintings: Pipeline) -> None:
    sync(paintings)
    source.execute("DELETE FROM paintings WHERE id <= 30")
    with pytest.raises(DeleteLimitExceeded, match=r"delete 30 of 50 vectors \(60%\).*--max-delete-fraction"):
        sync(paintings)
    assert len(vectors(source)) == 50


def test_a_source_emptied_during_the_run_is_caught_at_the_merge(source: Connection, paintings: Pipeline) -> None:
    sync(paintings)
    fill(source, 1, start=300)
    with pytest.raises(DeleteLimitExceeded, match="lost rows since the plan"):
        _sync_with_a_change(paintings, source, "DELETE FROM paintings")
    assert len(vectors(source)) == 50


def test_a_run_that_leaves_the_table_inconsistent_fails(source: Connection, paintings: Pipeline) -> None:
    sync(paintings)
    source.execute("UPDATE vectors.paintings SET embedding_bits = ~embedding_bits WHERE id IN (8, 9)")
    with pytest.raises(Inconsistent, match=r"bits.*\(8\)") as failure:
        sync(paintings)
    assert isinstance(failure.value.report, SyncReport)
    assert not failure.value.report.consistent
    state = source.execute("SELECT state, error FROM rowvec.runs ORDER BY run_id DESC LIMIT 1").fetchone()
    assert state is not None
    assert state[0] == "failed"
    assert "bits" in state[1]


def test_composite_keys_of_any_type(source: Connection, tmp_path: Path) -> None:
    source.execute(
        "CREATE TYPE room AS ENUM ('east', 'west');"
        "CREATE TABLE hung (room room, day date, tag uuid, price numeric(10, 2), doc jsonb, at timestamptz,"
        " words text[], note text, PRIMARY KEY (room, day, tag));"
        "INSERT INTO hung SELECT (ARRAY['east', 'west']::room[])[1 + i % 2], date '2020-01-01' + i / 2,"
        " md5(i::text)::uuid, i / 3.0, jsonb_build_object('i', i), timestamptz '2020-01-01' + i * interval '1 hour',"
        " ARRAY['a \"b', NULL, i::text], 'note ' || i FROM generate_series(1, 40) AS i"
    )
    hung = gallery.pipeline(
        str(tmp_path / "artifacts"),
        source={
            "kind": "postgres",
            "table": "hung",
            "key": ["room", "day", "tag"],
            "content": "{note} {doc}",
            "metadata": ["price", "doc", "at", "words"],
        },
        target={"table": "vectors.hung"},
    )
    same = (
        "SELECT count(*) FROM hung AS s JOIN vectors.hung AS t USING (room, day, tag)"
        " WHERE s.price = t.price AND s.doc = t.doc AND s.at = t.at AND s.words = t.words"
    )
    assert sync(hung).rows == 40
    assert source.execute(same).fetchone() == (40,)
    source.execute("UPDATE hung SET note = 'other' WHERE room = 'east'; UPDATE hung SET at = now()")
    report = sync(hung)
    assert (report.changed, report.metadata_only, report.unchanged) == (20, 20, 0)
    assert source.execute(same).fetchone() == (40,)
    assert sync(hung).unchanged == 40


def test_a_query_with_doubtful_keys_rejects_those_rows(source: Connection, tmp_path: Path) -> None:
    source.execute("CREATE TABLE loose AS SELECT * FROM paintings WHERE id <= 10")
    source.execute("INSERT INTO loose VALUES (1, 'again', 'one', 'x', 1), (NULL, 'no', 'key', 'x', 1)")
    loose = gallery.pipeline(
        str(tmp_path / "artifacts"),
        source={
            "kind": "postgres",
            "query": "SELECT *, title || '%' AS odd FROM public.loose;",
            "key": ["id"],
            "content": "{odd}",
            "metadata": [],
        },
    )
    report = sync(loose)
    assert (report.rows, report.rejected) == (9, 2)
    found = {(r["key"][0], r["reason"]) for r in rejects.rejects(loose).as_json()["rejects"]}
    assert found == {("1", "duplicate_key"), (None, "null_key")}
    source.execute("DELETE FROM loose WHERE title = 'again' OR id IS NULL")
    report = sync(loose)
    assert (report.rows, report.rejected, report.embedded) == (10, 0, 1)


def test_content_does_not_depend_on_who_connects(source: Connection, paintings: Pipeline, database_url: str) -> None:
    source.execute(
        "CREATE TABLE dated (id int PRIMARY KEY, at timestamptz, x float8, d date, i interval, m money, b bytea)"
    )
    source.execute(
        "INSERT INTO dated VALUES (1, '2020-03-29 01:30:00+00', 0.1::float8 + 0.2, '2020-01-02', '1 day 2 h', 3, 'ab')"
    )
    dated = paintings.model_copy(
        update={
            "source": gallery.pipeline(
                "x",
                source={
                    "kind": "postgres",
                    "table": "dated",
                    "key": ["id"],
                    "content": "{at} {x} {d} {i} {b}",
                    "metadata": ["at"],
                },
            ).source
        }
    )
    assert sync(dated).embedded == 1
    name = source.info.dbname
    for setting in (
        "TimeZone = 'Asia/Tokyo'",
        "DateStyle = 'SQL, DMY'",
        "IntervalStyle = 'iso_8601'",
        "extra_float_digits = -10",
        "bytea_output = 'escape'",
    ):
        source.execute(f'ALTER DATABASE "{name}" SET {setting}'.encode())
        report = sync(dated)
        assert (report.unchanged, report.embedded, report.metadata_only) == (1, 0, 0), setting


def test_hostile_names(source: Connection, tmp_path: Path) -> None:
    table, column = 'we"ird %s {x} select', 'co"l %(a)s {0} ' + "ü" * 20
    quoted = '"' + table.replace('"', '""') + '"'
    name = '"' + column.replace('"', '""') + '"'
    source.execute(f'CREATE TABLE {quoted} ({name} text PRIMARY KEY, "or\'der" text)'.encode())
    insert = f"INSERT INTO {quoted} SELECT i, 'text ' || i FROM generate_series(1, 5) AS i"  # noqa: S608 # ours
    source.execute(insert.encode())
    weird = gallery.pipeline(
        str(tmp_path / "artifacts"),
        source={"kind": "postgres", "table": quoted, "key": [column], "content": "{or'der}", "metadata": ["or'der"]},
        target={"table": f"vectors.{quoted}"},
    )
    assert sync(weird).rows == 5
    update = f"UPDATE {quoted} SET \"or'der\" = 'other' WHERE {name} = '1'"  # noqa: S608 # ours
    source.execute(update.encode())
    assert sync(weird).changed == 1
    assert len(search.search(weird, "text", 3, where="\"or'der\" = 'other'")) == 1


@pytest.mark.needs("a superuser", "rowvec creates the schema of its ledger again")
def test_a_lost_ledger_is_rebuilt_from_the_vector_table(source: Connection, paintings: Pipeline) -> None:
    sync(paintings)
    source.execute("DROP SCHEMA rowvec CASCADE")
    source.execute("UPDATE paintings SET id = id + 100 WHERE id <= 5")
    report = sync(paintings)
    assert (report.new, report.deleted, report.embedded, report.reused) == (5, 5, 0, 5)
    assert_in_step(source)


@pytest.mark.parametrize(
    "change",
    [
        "DELETE FROM paintings",
        "UPDATE paintings SET title = CASE WHEN id < 25 THEN ' ' END, description = CASE WHEN id < 30 THEN '' END",
    ],
)
def test_a_source_with_nothing_to_embed_gives_an_empty_table(
    source: Connection, paintings: Pipeline, change: str
) -> None:
    source.execute(change.encode())
    report = sync(paintings)
    assert (report.rows, report.new, report.consistent) == (0, 0, True)
    assert search.search(paintings, "anything", 3) == []
    fill(source, 3, start=700)
    assert sync(paintings).embedded == 3
    assert source.execute("SELECT count(*) FROM vectors.paintings").fetchone() == (3,)


def test_readers_see_a_run_whole_or_not_at_all(source: Connection, paintings: Pipeline, direct_url: str) -> None:
    sync(paintings)
    source.execute("UPDATE paintings SET title = 'new ' || id; DELETE FROM paintings WHERE id <= 5")
    fill(source, 9, start=100)
    seen: set[tuple[int, int]] = set()
    done = threading.Event()

    def read() -> None:
        with connect(direct_url) as reader:
            while not done.is_set():
                row = reader.execute(
                    "SELECT count(*), count(*) FILTER (WHERE content LIKE 'new %') FROM vectors.paintings"
                ).fetchone()
                seen.add(row or (0, 0))

    reading = threading.Thread(target=read)
    reading.start()
    try:
        sync(paintings)
    finally:
        done.set()
        reading.join()
    assert (50, 0) in seen
    assert seen <= {(50, 0), (54, 45)}


def test_rows_arrive_by_copy_and_an_index_is_valid_if_the_catalogue_says_so(
    source: Connection, paintings: Pipeline, tmp_path: Path
) -> None:
    indexed = gallery.pipeline(str(tmp_path / "artifacts"), index={"kind": "hnsw", "on": "float"})
    sync(indexed)
    (name,) = (s.name for s in index_state(source, stored_table(source, indexed)))
    oid = source.execute("SELECT %s::regclass::oid", (f'vectors."{name}"',)).fetchone()
    source.execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid = %s::regclass", (f'vectors."{name}"',))
    assert sync(indexed).consistent
    states = index_state(source, stored_table(source, indexed))
    assert [s.valid for s in states] == [True]
    assert source.execute("SELECT %s::regclass::oid", (f'vectors."{states[0].name}"',)).fetchone() != oid
    assert source.execute("SELECT rows FROM rowvec.loaded").fetchall() == [(50,)]


def test_a_change_that_triggers_do_not_see_is_found(source: Connection, paintings: Pipeline) -> None:
    """Changes are applied as by logical replication: no trigger or rule fires, and no timestamp column is set."""
    sync(paintings)
    with source.transaction():
        source.execute("SET LOCAL session_replication_role = replica")
        source.execute("UPDATE paintings SET title = 'replicated' WHERE id = 3")
        source.execute("DELETE FROM paintings WHERE id = 4")
        fill(source, 1, start=60)
    report = sync(paintings)
    assert (report.new, report.changed, report.deleted, report.embedded) == (1, 1, 1, 2)
    assert_in_step(source)


def test_579_rows_deleted_and_inserted_again_cost_nothing(source: Connection, paintings: Pipeline) -> None:
    """Real tables do this: rows are missing in one version and back in the next."""
    fill(source, 1450, start=51)
    source.execute("CREATE TABLE kept AS SELECT * FROM paintings WHERE id BETWEEN 500 AND 1078")
    sync(paintings)
    source.execute("DELETE FROM paintings WHERE id BETWEEN 500 AND 1078")
    with pytest.raises(DeleteLimitExceeded, match="would delete 579 of 1,500"):
        sync(paintings)
    allowed = paintings.validation.model_copy(update={"max_delete_fraction": 1.0})
    gone = sync(paintings.model_copy(update={"validation": allowed}))
    assert (gone.deleted, gone.rows) == (579, 921)
    source.execute("INSERT INTO paintings SELECT * FROM kept")
    back = sync(paintings)
    assert (back.new, back.embedded, back.reused, back.tokens) == (579, 0, 579, 0)
    assert_in_step(source)
