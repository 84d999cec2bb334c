"""The watcher on a real Prefect API: what the UI shows of it, and how it ends."""

from __future__ import annotations

import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterName,
    FlowRunFilterParentFlowRunId,
)
from prefect.client.schemas.objects import FlowRun, State
from prefect.runtime import flow_run
from prefect.states import Cancelling, Crashed, Running
from rowvec_flows.sync import sync
from rowvec_flows.watch import watch
from rowvec_tasks import cancellation, stages
from rowvec_tasks.cancellation import SENTENCE, TOO_LATE
from rowvec_tasks.hooks import clear_up

from rowvec.operations.watch import Watched
from rowvec.operations.watch import watch as look
from rowvec.pipeline import Pipeline
from rowvec.postgres.connection import Connection
from rowvec.stages import validate
from rowvec.stages.extract import stage as extract
from tests.support import cli_process
from tests.support import paintings as gallery
from tests.support.cli_process import PrefectServer, write_pipeline
from tests.support.paintings import assert_in_step
from tests.support.prefect_api import answered
from tests.support.waiting import wait_for

pytestmark = pytest.mark.flow


@pytest.fixture
def queued(tmp_path: Path, request: pytest.FixtureRequest) -> Pipeline:
    """The paintings with a queue, under a name of the test's own."""
    made = gallery.pipeline(
        str(tmp_path / "artifacts"), source={"changes": {"by": "trigger"}}, freshness={"alarm_after": "1s"}
    )
    return made.model_copy(update={"name": f"watched-{abs(hash(request.node.name)) % 10**6}"})


def found(**by: FlowRunFilterName | FlowRunFilterParentFlowRunId) -> list[FlowRun]:
    """Flow runs by name or parent."""
    with get_client(sync_client=True) as client:
        return client.read_flow_runs(flow_run_filter=FlowRunFilter.model_validate(by), limit=50)


def named(words: str) -> list[FlowRun]:
    """Flow runs by a part of their name."""
    return found(name=FlowRunFilterName(like_=words))


@pytest.mark.needs("a superuser", "only the owner of the source's table can make triggers on it")
def test_only_syncs_that_did_something_are_runs_below_the_watcher(
    prefect_api: None, source: Connection, queued: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, stop = write_pipeline(queued, tmp_path), threading.Event()

    def write_once_it_has_begun() -> None:
        wait_for(lambda: runs(source) == [("changes", "succeeded")])
        time.sleep(0.5)  # looks that find nothing
        source.execute("UPDATE paintings SET title = 'new' WHERE id < 4")
        wait_for(lambda: runs(source) == [("changes", "succeeded")] * 2)
        stop.set()

    def until_stopped(watched: list[Watched], _stop: threading.Event, **named: Any) -> int:
        return look(watched, stop, **named)

    monkeypatch.setattr("rowvec_flows.watch.look", until_stopped)
    writing = threading.Thread(target=write_once_it_has_begun)
    writing.start()
    state = watch([str(file)], every=0.1, return_state=True)
    writing.join()
    assert_in_step(source)
    assert (state.name, state.message) == ("Completed", "2 syncs")
    (whole,) = named(f"watch-{queued.name}")
    below = found(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[whole.id]))
    assert sorted(run.name for run in below) == [f"{queued.name}-changes-1", f"{queued.name}-changes-2"]
    assert {run.state_name for run in below} == {"Completed"}
    with get_client(sync_client=True) as client:
        of_syncs = FlowRunFilter(id=FlowRunFilterId(any_=[run.id for run in below]))
        # A run of a few rows has no tasks of its own: its log has its stages.
        assert client.read_task_runs(flow_run_filter=of_syncs) == []


@pytest.mark.needs("a superuser", "only the owner of the source's table can make triggers on it")
@pytest.mark.parametrize(
    ("stage", "in_ledger", "said"),
    [(extract, ["cancelled", "succeeded"], SENTENCE), (validate, ["succeeded"], TOO_LATE)],
    ids=["in time", "too late"],
)
def test_a_sync_that_is_cancelled_ends_alone_and_the_watcher_goes_on(
    prefect_api: None,
    source: Connection,
    queued: Pipeline,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stage: Any,
    in_ledger: list[str],
    said: str,
) -> None:
    file, stop, run_stage = write_pipeline(queued, tmp_path), threading.Event(), stage.run

    def cancelled_meanwhile(*given: Any) -> Any:
        if runs(source) == [("changes", "running")]:
            with get_client(sync_client=True) as client:
                # As the button of the UI does.
                client.set_flow_run_state(UUID(flow_run.get_id()), Cancelling())
            time.sleep(1)
        return run_stage(*given)

    def until_done(watched: list[Watched], _stop: threading.Event, **named: Any) -> int:
        (only,) = watched

        def stop_after(read: Pipeline) -> Any:
            try:
                return only.sync(read)
            finally:
                if runs(source)[-1][1] == "succeeded":
                    stop.set()

        return look([replace(only, sync=stop_after)], stop, **named)

    monkeypatch.setattr(cancellation, "ASK_SECONDS", 0.1)
    monkeypatch.setattr(stage, "run", cancelled_meanwhile)
    monkeypatch.setattr("rowvec_flows.watch.look", until_done)
    state = watch([str(file)], every=0.1, return_state=True)
    assert (state.name, state.message) == ("Completed", "1 sync" if stage is extract else "0 syncs")
    assert runs(source) == [("changes", ended) for ended in in_ledger]
    assert_in_step(source)
    below = {run.name: run.state for run in named(f"{queued.name}-changes")}
    ended = below.pop(f"{queued.name}-changes-1")
    assert ended is not None
    assert (ended.name, ended.message) == ("Cancelled", said)
    assert [state.name for state in below.values() if state] == ["Completed"] * (len(in_ledger) - 1)


def test_a_file_without_a_queue_fails_the_run_in_one_sentence(
    prefect_api: None, source: Connection, paintings: Pipeline, tmp_path: Path
) -> None:
    state = watch([str(write_pipeline(paintings, tmp_path))], return_state=True)
    assert state.name == "Failed"
    assert "write changes: {by: trigger} into its source" in (state.message or "")


@pytest.mark.parametrize(("ending", "after"), [(Cancelling(), "Cancelled"), (Crashed(), "Crashed")])
def test_the_sync_that_was_at_work_ends_as_its_watcher(
    prefect_api: None, source: Connection, queued: Pipeline, tmp_path: Path, ending: State[Any], after: str
) -> None:
    file = write_pipeline(queued, tmp_path)
    with get_client(sync_client=True) as client:
        parent = client.create_flow_run(watch, parameters={"pipelines": [str(file)]}, state=Running())
        task = client.create_task_run(stages.merge, flow_run_id=parent.id, dynamic_key="0", state=Running())
        child = client.create_flow_run(
            sync, parameters={"pipeline": str(file)}, parent_task_run_id=task.id, state=Running()
        )
        clear_up(watch, client.read_flow_run(parent.id), ending)
        assert client.read_flow_run(child.id).state_name == after


@pytest.mark.needs("a superuser", "only the owner of the source's table can make triggers on it")
def test_the_command_reports_its_syncs_and_alarms_and_ends_by_sigterm(
    prefect_server: PrefectServer, prefect_api: None, source: Connection, queued: Pipeline, tmp_path: Path
) -> None:
    file = write_pipeline(queued, tmp_path)
    command = cli_process.start(prefect_server.api, "watch", file, "--every", "0.1")
    command.when(lambda: runs(source) == [("changes", "succeeded")])
    # The source's trigger refuses what the run would write, so that the next syncs fail and the change waits.
    source.execute("CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$")
    source.execute("CREATE TRIGGER no BEFORE INSERT OR UPDATE ON rowvec.plans FOR EACH ROW EXECUTE FUNCTION refuse()")
    source.execute("UPDATE paintings SET title = 'new' WHERE id < 4")
    sent = {
        "filter": {"event": {"name": ["rowvec.changes.late"]}, "resource": {"id": [f"rowvec.pipeline.{queued.name}"]}}
    }
    command.when(lambda: answered("POST", f"{prefect_server.api}/events/filter", sent)["total"])
    command.when(lambda: "Failed" in [run.state_name for run in named(f"{queued.name}-changes")])
    source.execute("DROP TRIGGER no ON rowvec.plans")
    command.when(lambda: [run.state_name for run in named(f"{queued.name}-changes")].count("Completed") == 2)
    ended = command.kill(signal.SIGTERM)
    assert ended.status == 128 + signal.SIGTERM
    assert "ended by SIGTERM" in ended.stderr
    assert "it is tried again in 2 s" in ended.stderr, ended.stderr
    assert_in_step(source)
    states = {run.name: run.state_name for run in named(f"{queued.name}-changes")}
    assert set(states.values()) == {"Completed", "Failed"}
    assert len(states) == len(runs(source))


def runs(connection: Connection) -> list[tuple[str, str]]:
    """Cause and state of each run in the ledger, in order."""
    return connection.execute("SELECT cause, state FROM rowvec.runs ORDER BY run_id").fetchall()
