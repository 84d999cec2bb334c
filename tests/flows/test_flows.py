"""The flow on a real Prefect API: what it runs, what it shows, how it fails."""

from __future__ import annotations

import logging
import threading
import time
from datetime import datetime
from pathlib import Path

import pytest
from prefect import get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterKey,
    FlowRunFilter,
    FlowRunFilterId,
    LogFilter,
    LogFilterFlowRunId,
    LogFilterLevel,
    TaskRunFilter,
)
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import ArtifactSort, FlowRunSort
from prefect.context import SettingsContext, get_settings_context
from prefect.logging.handlers import APILogHandler
from rowvec_flows.forget import forget
from rowvec_flows.rebuild import rebuild
from rowvec_flows.sync import sync
from rowvec_tasks import stages
from rowvec_tasks.server import reporting

from rowvec.errors import DatabaseUnavailable, DeleteLimitExceeded, Inconsistent, StoreRefused, UsageError
from rowvec.ledger.runs import Run
from rowvec.pipeline import Pipeline
from rowvec.pipeline.file import load
from rowvec.postgres.connection import Connection
from rowvec.stages import batch as batch_stage
from rowvec.stages import embed, merge, order, upload
from rowvec.stages.merge import Merged
from tests.support import paintings as gallery
from tests.support.cli_process import PrefectServer, write_pipeline
from tests.support.paintings import assert_in_step, fill
from tests.support.prefect_api import answered
from tests.support.waiting import PATIENCE_SECONDS, wait_for

pytestmark = pytest.mark.flow


def runs(state: str) -> list[FlowRun]:
    """Flow runs in a state, the newest first."""
    with get_client(sync_client=True) as client:
        found = client.read_flow_runs(sort=FlowRunSort.START_TIME_DESC, limit=50)
    return [run for run in found if run.state_name == state]


def logged(run: FlowRun, level: int = logging.INFO) -> list[str]:
    """What a flow run itself has logged, and none of its tasks."""
    APILogHandler().flush()
    with get_client(sync_client=True) as client:
        found = client.read_logs(
            LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run.id]), level=LogFilterLevel(ge_=level)), limit=200
        )
    return [line.message for line in found if line.task_run_id is None]


def test_a_run_shows_its_stages_its_batches_and_its_verdict(
    prefect_api: None, source: Connection, paintings: Pipeline
) -> None:
    report = sync(pipeline=paintings, cause="test")
    assert (report.new, report.embedded, report.consistent) == (50, 50, True)
    assert_in_step(source)
    run = next(run for run in runs("Completed") if run.name == f"paintings-test-{report.run_id}")
    assert run.state is not None
    assert run.state.message == "Consistent: 50 vectors agree with the source."
    # One line per stage, and nothing else but how the run begins and ends.
    assert [line.partition(":")[0] for line in logged(run)] == [
        "Beginning flow run 'paintings-test' for flow 'sync'",
        *("extract", "embed", "binarize", "upload", "load", "merge", "index", "validate"),
        "Finished in state Completed('Consistent",
    ]
    with get_client(sync_client=True) as client:
        tasks = client.read_task_runs(
            flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id])), task_run_filter=TaskRunFilter()
        )
        assert sorted(task.name for task in tasks) == sorted(
            ["extract", "embed 0", "binarize 0", "upload 0", "load 0", "merge", "index", "validate"]
        )
        # For a tag, each task run would ask the server, which takes up to 2 s.
        assert all(not task.tags for task in tasks)
        shown = client.read_artifacts(
            artifact_filter=ArtifactFilter(key=ArtifactFilterKey(like_="paintings-%")),
            flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id])),
        )
    kinds = ("summary", "checks", "history", "rejects")
    # On a busy machine a run takes long enough to publish its progress.
    progress = {f"paintings-{stage}" for stage in ("embed", "load", "index")}
    assert {artifact.key for artifact in shown} - progress == {f"paintings-{kind}" for kind in kinds}
    (summary,) = [artifact for artifact in shown if artifact.key == "paintings-summary"]
    assert str(summary.data).startswith("## Consistent: 50 vectors agree with the source.")


def test_a_run_that_a_command_has_started_sends_a_heartbeat(
    prefect_api: None, prefect_server: PrefectServer, source: Connection, paintings: Pipeline
) -> None:
    """Prefect's own sender would keep the run for up to a second."""
    now = get_settings_context()
    flows = now.settings.flows.model_copy(update={"heartbeat_frequency": 30})
    with SettingsContext(profile=now.profile, settings=now.settings.model_copy(update={"flows": flows})), reporting():
        report = sync(pipeline=paintings, cause="alive")
    run = next(run for run in runs("Completed") if run.name == f"paintings-alive-{report.run_id}")
    sent = {"event": {"name": ["prefect.flow-run.heartbeat"]}, "resource": {"id": [f"prefect.flow-run.{run.id}"]}}
    url = f"{prefect_server.api}/events/filter"
    wait_for(lambda: answered("POST", url, {"filter": sent})["total"])
    (heartbeat,) = answered("POST", url, {"filter": sent})["events"]
    assert run.start_time is not None
    assert run.end_time is not None
    assert run.start_time <= datetime.fromisoformat(heartbeat["occurred"]) <= run.end_time
    assert {one["prefect.resource.role"]: one["prefect.resource.name"] for one in heartbeat["related"]} == {
        "flow": "sync"
    }


def test_several_batches_go_through_at_once(
    prefect_api: None, source: Connection, paintings: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rowvec.ledger.plans.MIN_BATCH_ROWS", 40)
    fill(source, 110, start=51)
    report = sync(pipeline=paintings, cause="batches")
    assert (report.embedded, report.artifacts, report.rows) == (160, 4, 160)
    assert_in_step(source)


def test_the_flow_has_a_task_for_each_stage_of_a_batch_in_the_cores_order() -> None:
    assert list(stages.OF_BATCH) == list(order.BATCH_STAGES)
    assert [task.fn.__name__ for task in stages.OF_BATCH.values()] == list(order.BATCH_STAGES)


def test_a_retriable_failure_is_tried_again(
    prefect_api: None, source: Connection, paintings: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge_run, failures = merge.run, iter([DatabaseUnavailable("the database restarted")])

    def failing_once(pipeline: Pipeline, run: Run) -> Merged:
        for failure in failures:
            raise failure
        return merge_run(pipeline, run)

    monkeypatch.setattr(merge, "run", failing_once)
    assert sync(pipeline=paintings, cause="retry").consistent
    assert_in_step(source)


def test_a_fatal_failure_fails_the_run_at_once(prefect_api: None, source: Connection, paintings: Pipeline) -> None:
    gallery.sync(paintings)
    source.execute("DELETE FROM paintings WHERE id > 1")
    with pytest.raises(DeleteLimitExceeded, match="would delete 49 of 50"):
        sync(pipeline=paintings, cause="emptied")
    failed = next(run for run in runs("Failed") if run.name.startswith("paintings-emptied-"))
    assert failed.state is not None
    assert logged(failed, logging.ERROR) == [failed.state.message]
    row = source.execute("SELECT state, error FROM rowvec.runs ORDER BY run_id DESC LIMIT 1").fetchone()
    assert row is not None
    assert row[0] == "failed"
    assert row[1].startswith("this run would delete 49 of 50 vectors")


def test_a_run_that_failed_holds_the_pipeline_until_its_last_batch_has_ended(
    prefect_api: None, source: Connection, paintings: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rowvec.ledger.plans.MIN_BATCH_ROWS", 25)
    upload_run, embed_run = upload.run, embed.run
    failed, states = threading.Event(), list[str]()

    def failing_first(pipeline: Pipeline, batch: batch_stage.Batch) -> batch_stage.Batch:
        if batch.number:
            return upload_run(pipeline, batch)
        failed.set()
        raise StoreRefused("the store is full")

    def slow_second(pipeline: Pipeline, batch: batch_stage.Batch) -> batch_stage.Batch:
        if batch.number:
            assert failed.wait(PATIENCE_SECONDS)
            time.sleep(2)  # by now the flow knows of the failure
        batch = embed_run(pipeline, batch)
        states.extend(row[0] for row in source.execute("SELECT state FROM rowvec.runs"))
        return batch

    monkeypatch.setattr(upload, "run", failing_first)
    monkeypatch.setattr(embed, "run", slow_second)
    with pytest.raises(StoreRefused, match="full"):
        sync(pipeline=paintings, cause="second")
    assert states == ["running", "running"]
    assert source.execute("SELECT state FROM rowvec.runs").fetchall() == [("failed",)]


def test_an_inconsistent_run_is_a_failed_run(prefect_api: None, source: Connection, paintings: Pipeline) -> None:
    gallery.sync(paintings)
    source.execute("UPDATE vectors.paintings SET embedding_bits = ~embedding_bits WHERE id = 8")
    with pytest.raises(Inconsistent, match="bits"):
        sync(pipeline=paintings, cause="tampered")
    assert any(run.name.startswith("paintings-tampered-") for run in runs("Failed"))


def test_the_next_run_follows_an_edited_pipeline_file(
    prefect_api: None, source: Connection, paintings: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = write_pipeline(paintings, tmp_path)
    assert gallery.sync(load(file)).embedded == 50
    file.write_text(file.read_text().replace("{title}", "{author}"))
    assert sync(pipeline=file.name).changed == 50
    assert source.execute("SELECT count(*) FROM vectors.paintings WHERE content LIKE 'Author%'").fetchone() == (50,)
    file.write_text(file.read_text().replace("kind: local", "kind: locla"))
    with pytest.raises(UsageError, match=rf"^{file.name}:\d+: embedder"):
        sync(pipeline=file.name)
    failed = runs("Failed")[0]
    assert (failed.name, failed.parameters["pipeline"]) == ("paintings-manual", file.name)


def test_a_rebuild_that_fails_leaves_no_page_of_its_generation_and_the_summary_as_it_was(
    prefect_api: None, source: Connection, paintings: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = paintings.model_copy(update={"name": "rebuilt"})
    sync(pipeline=named, cause="before")

    def failing(*_: object) -> None:
        raise StoreRefused("the store is full")

    monkeypatch.setattr("rowvec.operations.rebuild.compare", failing)
    longer = named.model_copy(update={"embedder": named.embedder.model_copy(update={"dimensions": 128})})
    with pytest.raises(StoreRefused, match="full"):
        rebuild(pipeline=longer)
    with get_client(sync_client=True) as client:
        shown = client.read_artifacts(
            artifact_filter=ArtifactFilter(key=ArtifactFilterKey(like_="rebuilt-%")), sort=ArtifactSort.CREATED_DESC
        )
    newest = {str(artifact.key): str(artifact.description) for artifact in reversed(shown)}
    assert not [key for key in newest if key.startswith("rebuilt-2-")]
    assert newest["rebuilt-rebuild"] == "FAILED: the store is full"
    assert newest["rebuilt-summary"].startswith("Consistent")


def test_an_erasure_by_the_policy_shows_its_certificate_and_no_key(
    prefect_api: None, source: Connection, paintings: Pipeline
) -> None:
    gallery.sync(paintings)
    source.execute("DELETE FROM paintings WHERE id = 7")
    gallery.sync(paintings)
    time.sleep(1.1)
    at_once = paintings.artifacts.model_copy(update={"erase_deleted_after": "1s"})
    found = forget(pipeline=paintings.model_copy(update={"artifacts": at_once}))
    assert (found.keys, found.artifacts) == (1, 1)
    with get_client(sync_client=True) as client:
        (shown,) = client.read_artifacts(
            artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=["paintings-forget"]))
        )
    assert str(shown.data).startswith("# Certificate of erasure 1")
    assert str(shown.description).startswith("Erased the traces of 1 key: 1 artifact, 2 journal entries")
