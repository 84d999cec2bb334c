"""``status`` says how each pipeline stands, from the ledger alone."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest

from rowvec.errors import DeleteLimitExceeded, Inconsistent, UsageError
from rowvec.ledger.runs import running
from rowvec.operations.status import status
from rowvec.pipeline import Pipeline
from rowvec.postgres.connection import Connection
from rowvec.stages.report import Check
from tests.support import paintings as gallery
from tests.support.paintings import sync


def test_each_pipeline_has_its_last_run_its_verdict_and_its_figures(
    source: Connection, paintings: Pipeline, tmp_path: Path
) -> None:
    other = gallery.pipeline(str(tmp_path / "other")).model_copy(update={"name": "other"})
    other = other.model_copy(update={"target": other.target.model_copy(update={"table": "vectors.other"})})
    report = sync(paintings)
    source.execute(
        "INSERT INTO rowvec.spending"
        " SELECT 'paintings', date_trunc('month', now() AT TIME ZONE 'UTC') - back, 1, usd, 0.25"
        " FROM (VALUES (interval '0', 1.5), (interval '1 month', 100)) AS s (back, usd);"
        "INSERT INTO rowvec.rejects (pipeline_id, key, reason, detail, run_id) SELECT 1, '[\"7\"]', 'too_long', '', 1"
    )
    never, good = status([other, paintings])
    assert (never.pipeline, never.verdict, never.last_run, never.rows) == ("other", "never run", None, None)
    assert good.last_run
    assert (good.verdict, good.rows, good.pending, good.rejected) == ("consistent", report.rows, 0, 1)
    assert (good.last_run.run_id, good.last_run.cause) == (report.run_id, "test")
    assert good.consistent_at == good.last_run.finished_at
    assert good.cost_this_month_usd == 1.75
    assert good.as_json()["last_run"]["error"] is None


def test_a_run_that_failed_shows_its_sentence_and_the_proof_of_the_run_before(
    source: Connection, paintings: Pipeline
) -> None:
    sync(paintings)
    source.execute("DELETE FROM paintings WHERE id > 1")
    with pytest.raises(DeleteLimitExceeded) as failure:
        sync(paintings)
    (found,) = status([paintings])
    assert found.last_run
    assert (found.verdict, found.last_run.error, found.rows) == ("failed", str(failure.value), 50)
    assert found.consistent_at
    assert found.consistent_at < found.last_run.started_at


def test_a_check_that_fails_is_inconsistent_and_no_failure(
    source: Connection, paintings: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def one_that_fails(*_: object) -> list[Check]:
        return [Check(name="norms", ok=False, detail="one vector is not finite")]

    monkeypatch.setattr("rowvec.stages.validate._checks", one_that_fails)
    with pytest.raises(Inconsistent):
        sync(paintings)
    (found,) = status([paintings])
    assert (found.verdict, found.consistent_at, found.rows) == ("inconsistent", None, 50)


def test_a_run_at_work_is_told_from_one_whose_process_was_killed(source: Connection, paintings: Pipeline) -> None:
    with running(paintings, "test"):
        assert [one.verdict for one in status([paintings])] == ["running"]
    source.execute("UPDATE rowvec.runs SET state = 'running', finished_at = NULL, error = NULL")
    (found,) = status([paintings])
    assert found.verdict == "abandoned"


def test_a_database_without_a_ledger_stays_without_one(
    another_url: str, paintings: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROWVEC_DATABASE_URL", another_url)
    assert [one.verdict for one in status([paintings])] == ["never run"]
    with psycopg.connect(another_url) as connection:
        assert connection.execute("SELECT to_regnamespace('rowvec')").fetchone() == (None,)


def test_a_name_that_belongs_to_another_table_is_refused(source: Connection, paintings: Pipeline) -> None:
    sync(paintings)
    moved = paintings.model_copy(update={"target": paintings.target.model_copy(update={"table": "vectors.elsewhere"})})
    with pytest.raises(UsageError, match=r"the name paintings belongs to the table vectors\.paintings"):
        status([moved])
