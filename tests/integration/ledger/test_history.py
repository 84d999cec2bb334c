"""The history of runs, the alarms about an outcome, and the leftovers of a dead run, all without Prefect."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydantic import ValidationError
from rowvec_tasks import events

from rowvec.cli.stack.deployments import prefect_file
from rowvec.errors import CostLimitExceeded, DeleteLimitExceeded, Inconsistent, QuotaExhausted
from rowvec.ledger.cleanup import clear
from rowvec.ledger.history import look_back
from rowvec.ledger.runs import running
from rowvec.ledger.workdir import make_workdir
from rowvec.pipeline import Pipeline
from rowvec.postgres.connection import Connection, connect
from rowvec.stages.alarms import Alarm, of_error, of_sync, of_waiting
from rowvec.stages.extract import stage as extract
from rowvec.stages.report import QUEUE, Check
from tests.support.paintings import pipeline as gallery_pipeline
from tests.support.paintings import sync


def test_the_history_shows_runs_that_failed_too_and_none_that_only_planned(
    source: Connection, paintings: Pipeline
) -> None:
    sync(paintings)
    source.execute("DELETE FROM paintings WHERE id > 1")
    try:
        sync(paintings)
    except DeleteLimitExceeded:
        history = look_back(paintings)
    else:
        raise AssertionError("it was to fail")
    assert [(run.outcome, run.rows) for run in history.runs] == [("FAILED", None), ("ok", 50)]
    shown = history.as_markdown()
    assert "| rows | 50 | 50 | 50 |" in shown
    assert "Last failure, run 2: this run would delete 49 of 50 vectors" in shown


def test_an_alarm_distinguishes_a_worse_index_from_a_wrong_table(source: Connection, paintings: Pipeline) -> None:
    report = sync(paintings)
    assert [alarm.name for alarm in of_sync(report)] == ["rowvec.sync.completed"]
    recall = Check(name="recall", ok=False, detail="0.8 of 10")
    wrong = Check(name="checksum", ok=False, detail="differs", rows=tuple(map(str, range(50))))
    low = replace(report, consistent=False, checks=(recall,))
    both = replace(report, consistent=False, checks=(recall, wrong))
    assert [alarm.name for alarm in of_sync(low)] == ["rowvec.sync.recall_low"]
    assert [alarm.name for alarm in of_sync(both)] == ["rowvec.sync.inconsistent", "rowvec.sync.recall_low"]
    assert len(of_sync(both)[0].payload["checks"][0]["rows"]) == 10
    queue = Check(name=QUEUE, ok=True, detail="had missed 2 rows", rows=('["7"]', '["8"]'), value=2)
    missed = replace(report, missed_by_queue=2, checks=(queue,))
    completed, alarm = of_sync(missed)
    assert (completed.name, alarm.name) == ("rowvec.sync.completed", "rowvec.changes.missed")
    assert alarm.payload == {"run_id": report.run_id, "missed_by_queue": 2, "rows": ['["7"]', '["8"]']}
    for error, by in ((CostLimitExceeded("it would cost $9"), "rowvec"), (QuotaExhausted("no money"), "provider")):
        (alarm,) = of_error(error)
        assert (alarm.name, alarm.payload["limit_of"]) == ("rowvec.sync.budget_exceeded", by)
    assert of_error(Inconsistent("x")) == []


def test_changes_that_wait_too_long_are_an_alarm(tmp_path: Path) -> None:
    patient = gallery_pipeline(str(tmp_path), source={"changes": {"by": "trigger"}}, freshness={"alarm_after": "10m"})
    assert of_waiting(patient, 3, 600.0) == []
    assert of_waiting(patient, 0, None) == []
    (alarm,) = of_waiting(patient, 3, 601.0)
    assert (alarm.name, alarm.payload) == ("rowvec.changes.late", {"waiting": 3, "oldest_seconds": 601.0})
    assert alarm.sentence.startswith("paintings: 3 changes wait, the oldest for 601 s")
    never = gallery_pipeline(str(tmp_path), source={"changes": {"by": "trigger"}})
    assert of_waiting(never, 3, 1e6) == []
    with pytest.raises(ValidationError, match="only a queue of changes knows how long a change has waited"):
        gallery_pipeline(str(tmp_path), freshness={"alarm_after": "10m"})


def test_the_sync_of_a_generation_under_way_is_not_reported_as_one_of_the_pipeline(
    paintings: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the switch, an automation that waits for a sync under the generation's own name would wait for ever."""
    sent: list[str] = []

    def note(resource: dict[str, str], **_: object) -> None:
        sent.append(resource["prefect.resource.id"])

    monkeypatch.setattr(events, "emit_event", note)
    alarm = Alarm(name="rowvec.sync.completed", sentence="", payload={})
    events.tell(paintings, [alarm])
    events.tell(paintings.model_copy(update={"name": f"{paintings.name}.2"}), [alarm])
    assert sent == ["rowvec.pipeline.paintings", "rowvec.generation.paintings.2"]


def test_leftovers_of_a_dead_run_are_cleared_and_a_run_under_way_is_left_alone(
    source: Connection, database_url: str, paintings: Pipeline
) -> None:
    with running(paintings, "test") as run:
        extract.run(paintings, run)
        assert clear(paintings, "crashed").runs == ()
        assert _tables(source) == 2
    # As a killed process leaves a run: running in the ledger, without its lock, with its files.
    with connect(database_url) as connection:
        source.execute("UPDATE rowvec.runs SET state = 'running', finished_at = NULL")
        folder = make_workdir(connection, run.run_id)
        done = clear(paintings, "the flow run x was ended from outside: Crashed")
        row = connection.execute("SELECT state, error FROM rowvec.runs").fetchone()
    assert done.runs == (run.run_id,)
    assert len(done.tables) == 2
    assert row == ("abandoned", "the flow run x was ended from outside: Crashed")
    assert (_tables(source), folder.exists()) == (0, False)
    assert clear(paintings, "again") == clear(gallery_pipeline("elsewhere", target={"table": "v.other"}), "never ran")


def test_deployments_of_up_name_the_file_and_hold_nothing_of_it(tmp_path: Path) -> None:
    file = tmp_path / "paintings.yaml"
    made = prefect_file({file: gallery_pipeline(str(tmp_path))}, tmp_path, 15, datetime(2026, 1, 1, tzinfo=UTC))
    flows = {one["entrypoint"]: one for one in made["deployments"]}
    assert len(flows) == 6
    assert {one["parameters"]["pipeline"] for one in flows.values()} == {str(file)}
    assert flows["rowvec_flows.sync:sync"]["schedules"] == [
        {"slug": "up", "interval": 900, "anchor_date": "2026-01-01T00:00:00+00:00"}
    ]


def _tables(connection: Connection) -> int:
    row = connection.execute("SELECT count(*) FROM pg_class WHERE relname ~ '^(plan|staging)_[0-9]+$'").fetchone()
    return row[0] if row else 0
