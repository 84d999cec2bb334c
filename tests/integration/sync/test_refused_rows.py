"""A row that the database refuses for its data is rejected with the database's sentence, and all other rows land."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from rowvec.errors import Inconsistent, TargetError
from rowvec.ledger.runs import running
from rowvec.operations import audit, rejects
from rowvec.operations.prune import prune
from rowvec.pipeline import Pipeline
from rowvec.postgres.connection import Connection, connect
from rowvec.stages import merge
from rowvec.stages.extract import stage
from rowvec.stages.order import through_all_stages
from rowvec.stages.report import SyncReport
from tests.support import paintings as gallery
from tests.support.paintings import assert_in_step, fill, sync

_TRIGGER = """
    CREATE FUNCTION public.judge() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        {body}
        RETURN coalesce(new, old);
    END $$;
    CREATE TRIGGER judge BEFORE {when} ON vectors.paintings FOR EACH ROW EXECUTE FUNCTION public.judge()
"""


def test_a_check_of_the_users_own_keeps_one_row_out_and_no_other(source: Connection, paintings: Pipeline) -> None:
    sync(paintings)
    source.execute("ALTER TABLE vectors.paintings ADD CONSTRAINT short CHECK (length(content) < 1000)")
    source.execute("UPDATE paintings SET description = repeat('long ', 300) WHERE id = 7")
    source.execute("UPDATE paintings SET title = 'other' WHERE id = 8")
    source.execute("DELETE FROM paintings WHERE id = 9")
    fill(source, 30, start=101)
    report = sync(paintings)
    assert (report.consistent, report.rejected, report.rows) == (True, 1, 78)
    _assert_in_step_without(source, 7)
    (reject,) = _rejects(paintings)
    assert (reject["key"], reject["reason"], reject["sqlstate"]) == (["7"], "refused", "23514")
    assert 'violates check constraint "short"' in reject["detail"]


def test_a_rejected_row_is_tried_again_when_it_changes_and_on_request(source: Connection, paintings: Pipeline) -> None:
    sync(paintings)
    source.execute("ALTER TABLE vectors.paintings ADD CONSTRAINT known CHECK (author <> 'nobody' AND year < 3000)")
    source.execute("UPDATE paintings SET title = 'new', author = 'nobody' WHERE id IN (1, 2)")
    first = sync(paintings)
    assert (first.rejected, first.rows, first.embedded) == (2, 48, 2)
    left = sync(paintings)
    assert (left.new, left.changed, left.rejected, left.consistent) == (0, 0, 2, True)
    # Other metadata: the row is tried again with the vector that was paid for.
    source.execute("UPDATE paintings SET author = 'somebody' WHERE id = 1")
    changed = sync(paintings)
    assert (changed.new, changed.embedded, changed.rejected, changed.rows) == (1, 0, 1, 49)
    source.execute("ALTER TABLE vectors.paintings DROP CONSTRAINT known")
    assert sync(paintings).rejected == 1
    assert len(_rejects(paintings, retry=True)) == 1
    again = sync(paintings)
    assert (again.new, again.embedded, again.rejected) == (1, 0, 0)
    assert_in_step(source)


def test_a_prune_keeps_what_was_paid_for_a_refused_row(source: Connection, paintings: Pipeline) -> None:
    sync(paintings)
    source.execute("ALTER TABLE vectors.paintings ADD CONSTRAINT known CHECK (author <> 'nobody')")
    source.execute("UPDATE paintings SET title = 'new', author = 'nobody' WHERE id = 1")
    assert (sync(paintings).embedded, sync(paintings).rejected) == (1, 1)
    prune(paintings, timedelta(0), apply=True)
    source.execute("UPDATE paintings SET author = 'somebody' WHERE id = 1")
    report = sync(paintings)
    assert (report.new, report.embedded, report.rejected, report.rows) == (1, 0, 0, 50)


def test_metadata_alone_that_is_refused_leaves_no_outdated_row(source: Connection, paintings: Pipeline) -> None:
    sync(paintings)
    source.execute("ALTER TABLE vectors.paintings ADD CONSTRAINT modern CHECK (year > 0)")
    source.execute("UPDATE paintings SET year = -year WHERE id = 5")
    source.execute("UPDATE paintings SET author = 'x' WHERE id > 30")
    report = sync(paintings)
    assert (report.metadata_only, report.rejected, report.rows, report.consistent) == (21, 1, 49, True)
    _assert_in_step_without(source, 5)
    assert audit.audit(paintings).consistent
    source.execute("UPDATE paintings SET year = -year WHERE id = 5")
    report = sync(paintings)
    assert (report.new, report.embedded, report.rejected, report.rows) == (1, 0, 0, 50)
    assert_in_step(source)


def test_a_trigger_that_raises_is_about_the_row(source: Connection, paintings: Pipeline) -> None:
    sync(paintings)
    raises = "IF new.content ~ 'forbidden' THEN RAISE 'not % \x1b[31mred', new.id; END IF;"
    source.execute(_TRIGGER.format(body=raises, when="INSERT OR UPDATE"))
    source.execute("UPDATE paintings SET title = 'forbidden' WHERE id IN (3, 4)")
    source.execute("UPDATE paintings SET title = 'allowed' WHERE id > 40")
    report = sync(paintings)
    assert (report.changed, report.rejected, report.rows, report.consistent) == (12, 2, 48, True)
    _assert_in_step_without(source, 3, 4)
    found = {reject["key"][0]: reject for reject in _rejects(paintings)}
    assert {reject["sqlstate"] for reject in found.values()} == {"P0001"}
    assert found["3"]["detail"] == "not 3 \\x1b[31mred (SQLSTATE P0001)"


def test_a_refusal_that_waits_for_the_commit_is_found_too(source: Connection, paintings: Pipeline) -> None:
    source.execute("CREATE TABLE years (year int PRIMARY KEY)")
    source.execute("INSERT INTO years SELECT year FROM paintings")
    sync(paintings)
    source.execute(
        "ALTER TABLE vectors.paintings ADD CONSTRAINT known FOREIGN KEY (year) REFERENCES years"
        " DEFERRABLE INITIALLY DEFERRED"
    )
    source.execute("UPDATE paintings SET year = 1 WHERE id = 11")
    fill(source, 2, start=101)
    source.execute("INSERT INTO years VALUES (2001)")
    report = sync(paintings)
    assert (report.rejected, report.rows, report.consistent) == (2, 50, True)
    _assert_in_step_without(source, 11, 102)
    assert {reject["sqlstate"] for reject in _rejects(paintings)} == {"23503"}
    # What is refused because of other rows is tried in each run.
    source.execute("INSERT INTO years VALUES (1), (2002)")
    report = sync(paintings)
    assert (report.new, report.embedded, report.rejected, report.rows) == (2, 0, 0, 52)
    assert_in_step(source)


def test_unique_values_that_change_places_end_where_they_belong(source: Connection, paintings: Pipeline) -> None:
    sync(paintings)
    source.execute("CREATE UNIQUE INDEX ON vectors.paintings (year)")
    # 1 takes the year of a row that is gone, 2 that of a row which takes another, and 4 and 5 change places.
    source.execute("DELETE FROM paintings WHERE id = 50")
    source.execute("UPDATE paintings SET year = 1950, title = 'a' WHERE id = 1")
    source.execute("UPDATE paintings SET year = CASE id WHEN 2 THEN 1903 ELSE 9999 END WHERE id IN (2, 3)")
    source.execute("UPDATE paintings SET year = CASE id WHEN 4 THEN 1905 ELSE 1904 END, title = 'b' WHERE id IN (4, 5)")
    report = sync(paintings)
    assert (report.rejected, report.rows, report.consistent) == (0, 49, True)
    assert_in_step(source)


def test_unique_values_of_rows_with_the_same_content_change_places_in_one_run(
    source: Connection, paintings: Pipeline
) -> None:
    sync(paintings)
    source.execute("CREATE UNIQUE INDEX ON vectors.paintings (year)")
    written = "SELECT id, run_id, embedded_at FROM vectors.paintings ORDER BY id"
    before = source.execute(written).fetchall()
    source.execute("UPDATE paintings SET year = CASE id WHEN 4 THEN 1905 ELSE 1904 END WHERE id IN (4, 5)")
    source.execute("UPDATE paintings SET year = 1906 + (id - 5) % 3 WHERE id IN (6, 7, 8)")
    report = sync(paintings)
    assert (report.metadata_only, report.rejected, report.rows, report.consistent) == (5, 0, 50, True)
    assert_in_step(source)
    assert source.execute(written).fetchall() == before


def test_a_row_that_cannot_be_removed_is_named_and_the_rest_lands(source: Connection, paintings: Pipeline) -> None:
    sync(paintings)
    source.execute("CREATE TABLE likes (painting int REFERENCES vectors.paintings (id))")
    source.execute("INSERT INTO likes VALUES (6), (7)")
    source.execute("ALTER TABLE vectors.paintings ADD CONSTRAINT modern CHECK (year > 0)")
    source.execute("DELETE FROM paintings WHERE id IN (6, 16)")
    source.execute("UPDATE paintings SET year = -1, title = 'new' WHERE id IN (7, 17)")
    source.execute("UPDATE paintings SET title = 'other' WHERE id = 8")
    for _ in range(2):
        report = _inconsistent(paintings)
        named = report.failed_checks[0]
        assert (named.name, named.rows) == ("nothing outdated", ('["6"]', '["7"]'))
        assert "violates foreign key constraint" in named.detail
        assert not next(check for check in report.checks if check.name == "nothing missing").rows
        # 6 and 7 are still there, as they were; 16 and the old version of 17 are not.
        assert report.rows == 48
        assert source.execute("SELECT title FROM paintings WHERE id = 8").fetchone() == ("other",)
        found = {reject["key"][0]: reject for reject in _rejects(paintings)}
        assert {key: reject["reason"] for key, reject in found.items()} == {
            "6": "not_removed",
            "7": "not_removed",
            "17": "refused",
        }
        assert "its new version" in found["7"]["detail"]
        assert "modern" in found["7"]["detail"]
    findings = {finding.key: finding for finding in audit.audit(paintings).findings}
    assert {key: finding.kind for key, finding in findings.items()} == {("6",): "orphaned", ("7",): "stale"}
    assert all("the database refuses to remove it" in finding.reason for finding in findings.values())
    source.execute("DELETE FROM likes")
    # A standby whose clock is an hour behind has taken over.
    source.execute("UPDATE rowvec.rejects SET last_seen = last_seen + interval '1 hour'")
    report = sync(paintings)
    assert (report.rejected, report.rows, report.consistent) == (2, 46, True)
    _assert_in_step_without(source, 7, 17)


@pytest.mark.parametrize("rows", [50, 12, 2])
def test_a_constraint_that_refuses_every_row_is_one_error_and_changes_nothing(
    source: Connection, paintings: Pipeline, rows: int
) -> None:
    source.execute("DELETE FROM paintings WHERE id > %s", (rows,))
    source.execute("UPDATE paintings SET title = NULL, description = NULL" if rows == 2 else "SELECT 1")
    sync(paintings)
    source.execute("UPDATE paintings SET title = 'x' || id")
    source.execute("ALTER TABLE vectors.paintings ADD CONSTRAINT none CHECK (false) NOT VALID")
    before = source.execute("SELECT * FROM vectors.paintings ORDER BY id").fetchall()
    with pytest.raises(TargetError, match=r'refuses each of the .* check constraint "none" \(SQLSTATE 23514\)'):
        sync(paintings)
    assert source.execute("SELECT * FROM vectors.paintings ORDER BY id").fetchall() == before
    assert _rejects(paintings) == []
    source.execute("ALTER TABLE vectors.paintings DROP CONSTRAINT none")
    assert sync(paintings).embedded == 0
    assert_in_step(source)


def test_an_error_that_no_row_is_to_blame_for_is_not_searched_for_in_rows(
    source: Connection, paintings: Pipeline
) -> None:
    sync(paintings)
    source.execute(_TRIGGER.format(body="PERFORM no_such_function();", when="INSERT OR UPDATE"))
    source.execute("UPDATE paintings SET title = 'x' WHERE id = 1")
    with pytest.raises(TargetError, match=r"no_such_function.*42883"):
        sync(paintings)
    assert _rejects(paintings) == []


def test_many_bad_rows_cost_their_number_times_the_logarithm_of_all(source: Connection, paintings: Pipeline) -> None:
    source.execute("CREATE SEQUENCE public.tried; GRANT USAGE ON SEQUENCE public.tried TO PUBLIC")
    sync(paintings)
    fill(source, 950, start=101)
    source.execute(
        _TRIGGER.format(
            body="IF new.year % 100 = 7 THEN RAISE 'bad'; END IF;",
            when="INSERT OR UPDATE",
        )
    )
    source.execute(
        "CREATE FUNCTION public.count() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN PERFORM nextval(''public.tried''); RETURN NULL; END'"
    )
    source.execute("CREATE TRIGGER count BEFORE INSERT ON vectors.paintings EXECUTE FUNCTION public.count()")
    report = sync(paintings)
    assert (report.rejected, report.consistent) == (10, True)
    (statements,) = source.execute("SELECT last_value FROM public.tried").fetchone() or (0,)
    # One statement for all, then for each bad row at most two on each of the ten levels, and each once more.
    assert statements <= 2 + 10 * (2 * 10 + 1) + 10


def test_the_same_with_the_source_in_another_database(
    source: Connection, paintings: Pipeline, another_url: str
) -> None:
    with connect(another_url) as other:
        other.execute(gallery.SOURCE)
        fill(other, 50)
        made = paintings.model_copy(update={"source": paintings.source.model_copy(update={"url": another_url})})
        sync(made)
        source.execute("CREATE TABLE likes (painting int REFERENCES vectors.paintings (id))")
        source.execute("INSERT INTO likes VALUES (6)")
        source.execute("ALTER TABLE vectors.paintings ADD CONSTRAINT modern CHECK (year > 0)")
        other.execute("UPDATE paintings SET year = -1 WHERE id = 3")
        other.execute("UPDATE paintings SET year = -1, title = 'new' WHERE id = 4")
        other.execute("UPDATE paintings SET title = 'other' WHERE id = 5")
        other.execute("DELETE FROM paintings WHERE id IN (6, 16)")
        report = _inconsistent(made)
        assert (report.failed_checks[0].rows, report.rows, report.rejected) == (('["6"]',), 47, 3)
        # Row 20 changes after it was planned, so its vector must go, and cannot.
        source.execute("INSERT INTO likes VALUES (20)")
        other.execute("UPDATE paintings SET title = 'planned' WHERE id IN (20, 21)")
        with running(made, "test") as run:
            plan = stage.run(made, run)
            for number in range(plan.batches):
                through_all_stages(made, run, number)
            other.execute("UPDATE paintings SET title = 'moved' WHERE id = 20")
            assert merge.run(made, run).pending == 1
        assert source.execute("SELECT content LIKE 'planned%' FROM vectors.paintings WHERE id = 21").fetchone() == (
            True,
        )
        assert {reject["key"][0] for reject in _rejects(made) if reject["reason"] == "not_removed"} == {"6", "20"}
        source.execute("DELETE FROM likes")
        report = sync(made)
        assert (report.consistent, report.rows, report.rejected) == (True, 46, 2)
        assert sync(made).new == 0
        assert audit.audit(made).consistent
        other.execute("UPDATE paintings SET year = 1 WHERE id = 3")
        report = sync(made)
        assert (report.new, report.embedded, report.rows, report.rejected) == (1, 0, 47, 1)


def test_a_key_too_long_for_an_index_is_one_bad_row_of_a_first_load(source: Connection, paintings: Pipeline) -> None:
    source.execute("CREATE TABLE keyed (k text, title text)")
    source.execute("INSERT INTO keyed SELECT 'key ' || i, 'text ' || i FROM generate_series(1, 30) AS i")
    source.execute("INSERT INTO keyed SELECT string_agg(md5(i::text), ''), 'long' FROM generate_series(1, 200) AS i")
    part = paintings.source.model_copy(
        update={"table": "public.keyed", "key": ["k"], "content": "{title}", "metadata": []}
    )
    made = paintings.model_copy(update={"source": part})
    for embedded in (30, 0):
        report = sync(made)
        assert (report.rows, report.rejected, report.consistent, report.embedded) == (30, 1, True, embedded)
    (reject,) = _rejects(made)
    assert (reject["reason"], reject["sqlstate"]) == ("refused", "54000")
    source.execute("INSERT INTO keyed VALUES ('new', 'other')")
    assert sync(made).rows == 31


@pytest.mark.parametrize("away", [False, True])
def test_a_key_too_long_for_the_index_of_chunks_is_one_bad_row(
    source: Connection, paintings: Pipeline, another_url: str, direct_url: str, away: bool
) -> None:
    url = another_url if away else direct_url
    with connect(url) as other:
        other.execute("CREATE TABLE keyed (k text, title text)")
        other.execute("INSERT INTO keyed SELECT 'key ' || i, 'text ' || i FROM generate_series(1, 30) AS i")
        long = "INSERT INTO keyed SELECT string_agg(md5(i::text), ''), 'long' FROM generate_series(%s::int, 200) AS i"
        other.execute(long, (1,))
        other.execute(long, (2,))
        part = {"table": "public.keyed", "key": ["k"], "content": "{title}", "metadata": [], "chunks": {}}
        made = gallery.pipeline(paintings.artifacts.url, source=part | ({"url": url} if away else {}))
        for embedded in (30, 0):
            report = sync(made)
            assert (report.rows, report.rejected, report.pending, report.consistent) == (30, 2, 0, True)
            assert report.embedded == embedded
        assert {(reject["reason"], len(reject["key"])) for reject in _rejects(made)} == {("unreadable", 1)}
        assert all("exceeds btree" in reject["detail"] for reject in _rejects(made))
        other.execute("DELETE FROM keyed WHERE title = 'long'")
        report = sync(made)
        assert (report.rows, report.rejected, report.consistent) == (30, 0, True)


@pytest.mark.parametrize("after", ["never", "a sync", "hybrid search"])
def test_a_text_with_too_many_words_is_one_bad_row(source: Connection, paintings: Pipeline, after: str) -> None:
    plain, hybrid = paintings, gallery.pipeline(paintings.artifacts.url, search={"hybrid": True})
    many = "UPDATE paintings SET title = (SELECT string_agg('word' || i, ' ') FROM generate_series(1, 160000) AS i)"
    if after == "hybrid search":
        # The row is there already when the words begin to matter.
        source.execute(many + " WHERE id = 7")
        assert sync(plain).rows == 50
    elif after == "a sync":
        sync(hybrid)
    source.execute(many + " WHERE id IN (7, 8)")
    source.execute("UPDATE paintings SET title = 'other' WHERE id = 9")
    source.execute("DELETE FROM paintings WHERE id = 10")
    report = sync(hybrid)
    assert (report.rejected, report.rows, report.consistent) == (2, 47, True)
    assert report.embedded == {"never": 47, "a sync": 1, "hybrid search": 1}[after]
    found = {reject["key"][0]: reject for reject in _rejects(hybrid)}
    assert {key: (reject["reason"], reject["sqlstate"]) for key, reject in found.items()} == {
        "7": ("refused", "54000"),
        "8": ("refused", "54000"),
    }
    assert "too long for tsvector" in found["7"]["detail"]
    again = sync(hybrid)
    assert (again.new, again.changed, again.rejected, again.consistent) == (0, 0, 2, True)
    source.execute("UPDATE paintings SET title = 'few words' WHERE id IN (7, 8)")
    assert (sync(hybrid).rejected, sync(hybrid).rows) == (0, 49)
    assert_in_step(source)


@pytest.mark.parametrize("first", [True, False])
def test_a_vector_beyond_half_precision_is_one_bad_row(source: Connection, paintings: Pipeline, first: bool) -> None:
    source.execute("ALTER TABLE paintings ADD v vector(2)")
    source.execute("UPDATE paintings SET v = format('[%s,1]', id)::vector")
    made = gallery.pipeline(
        paintings.artifacts.url,
        embedder={"kind": "column", "column": "v", "dimensions": 2},
        target={"precision": "float16"},
    )
    if not first:
        sync(made)
    source.execute("UPDATE paintings SET v = '[70000,1]', title = 'new' WHERE id IN (7, 8)")
    report = sync(made)
    assert (report.rows, report.rejected, report.consistent) == (48, 2, True)
    found = _rejects(made)
    assert {(reject["key"][0], reject["reason"]) for reject in found} == {("7", "refused"), ("8", "refused")}
    assert all("the most that halfvec holds" in reject["detail"] for reject in found)
    source.execute("UPDATE paintings SET v = '[7,1]'")
    report = sync(made)
    assert (report.rows, report.rejected) == (50, 0)


def _inconsistent(pipeline: Pipeline) -> SyncReport:
    with pytest.raises(Inconsistent) as failed:
        sync(pipeline)
    assert isinstance(failed.value.report, SyncReport)
    return failed.value.report


def _rejects(pipeline: Pipeline, *, retry: bool = False) -> list[dict[str, Any]]:
    return rejects.rejects(pipeline, retry=retry).as_json()["rejects"]


def _assert_in_step_without(connection: Connection, *rejected: int) -> None:
    """Source and vector table agree, and exactly these rows of the source have no vector."""
    wrong = connection.execute(
        "SELECT coalesce(s.id, t.id) FROM paintings AS s FULL JOIN vectors.paintings AS t ON s.id = t.id"
        " WHERE s.title || E'\\n' || s.description IS DISTINCT FROM t.content"
        " OR s.author IS DISTINCT FROM t.author OR s.year IS DISTINCT FROM t.year ORDER BY 1"
    ).fetchall()
    assert [key for (key,) in wrong] == sorted(rejected)
