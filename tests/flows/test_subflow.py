"""The flow ``sync`` as a step of another flow, and the tutorial that shows it."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
from prefect import State, flow, get_client, task
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName, FlowRunFilterParentFlowRunId
from rowvec_flows.sync import sync

import rowvec
from rowvec.errors import DeleteLimitExceeded
from rowvec.postgres.connection import Connection
from tests.support import paintings as gallery

pytestmark = pytest.mark.flow

TUTORIAL = Path(__file__).parents[2] / "docs/tutorials/python.md"


@task
def synced(pipeline: rowvec.Pipeline) -> rowvec.SyncReport:
    return sync(pipeline)


@flow(persist_result=False)
def parent(pipelines: list[rowvec.Pipeline]) -> int:
    """All pipelines at the same time."""
    futures = [synced.submit(pipeline) for pipeline in pipelines]
    return sum(future.result().rows for future in futures)


@flow(persist_result=False)
def of_one(pipeline: rowvec.Pipeline) -> str:
    return sync(pipeline).verdict()


def children(name: str) -> list[tuple[str, str]]:
    """Name and state of the runs under the runs of this name."""
    with get_client(sync_client=True) as client:
        parents = client.read_flow_runs(flow_run_filter=FlowRunFilter(name=FlowRunFilterName(any_=[name])))
        under = FlowRunFilterParentFlowRunId(any_=[run.id for run in parents])
        found = client.read_flow_runs(flow_run_filter=FlowRunFilter(parent_flow_run_id=under))
    # A run's name ends in its number in the ledger.
    return sorted((run.name.rpartition("-")[0], run.state_name or "") for run in found)


def test_two_syncs_at_once_are_runs_under_the_run_that_calls_them(
    prefect_api: None, source: Connection, paintings: rowvec.Pipeline, tmp_path: Path
) -> None:
    other = gallery.pipeline(str(tmp_path / "other"), target={"table": "vectors.other"})
    other = other.model_copy(update={"name": "other"})
    assert parent.with_options(flow_run_name="two at once")([paintings, other]) == 100
    assert children("two at once") == [("other-manual", "Completed"), ("paintings-manual", "Completed")]
    assert [one.verdict for one in rowvec.status([paintings, other])] == ["consistent", "consistent"]


def test_a_sync_that_fails_fails_the_run_that_calls_it_with_its_sentence(
    prefect_api: None, source: Connection, paintings: rowvec.Pipeline
) -> None:
    gallery.sync(paintings)
    source.execute("DELETE FROM paintings WHERE id > 1")
    state: State[str] = of_one.with_options(flow_run_name="bad")(paintings, return_state=True)
    assert state.is_failed()
    assert "this run would delete 49 of 50 vectors" in (state.message or "")
    assert "\n" not in (state.message or "")
    with pytest.raises(DeleteLimitExceeded):
        state.result()
    assert children("bad") == [("paintings-manual", "Failed")]


def test_the_tutorial_prints_what_it_says(
    prefect_api: None,
    database_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("ROWVEC_DATABASE_URL", database_url)
    monkeypatch.setenv("ROWVEC_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```(python|text)\n(.*?)^```", TUTORIAL.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    script = tmp_path / "tutorial.py"
    script.write_text("".join(block for kind, block in blocks if kind == "python"), "utf-8")
    runpy.run_path(str(script))
    assert capsys.readouterr().out == "".join(block for kind, block in blocks if kind == "text")
