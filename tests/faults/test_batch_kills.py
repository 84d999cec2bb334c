"""The real command with batch jobs, killed and continued on another machine: nothing is paid for twice."""

from __future__ import annotations

import json
import os
import threading
import urllib.request
from collections.abc import Callable, Generator
from pathlib import Path

import psycopg
import pytest

from rowvec.pipeline import Pipeline
from rowvec.postgres.connection import Connection
from tests.support import paintings
from tests.support.cli_process import Command, PrefectServer, start, write_pipeline
from tests.support.paintings import assert_in_step
from tests.support.servers.openai_server import KEY, OpenAIServer, serve

Rowvec = Callable[..., Command]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Generator[OpenAIServer]:
    """The provider, with its key in the environment."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serve(key=KEY) as opened:
        yield opened


@pytest.fixture
def batched(server: OpenAIServer, tmp_path: Path) -> Pipeline:
    """The gallery's pipeline with batch jobs; a run does not wait for them."""
    embedder = {"kind": "openai", "model": "text-embedding-3-small", "dimensions": 96, "base_url": server.url}
    batch = {"at_least": 5, "wait_minutes": 0}
    made = paintings.pipeline(str(tmp_path / "artifacts"), embedder={**embedder, "batch": batch})
    # Its summary is looked for on a server that has the runs of other tests too.
    return made.model_copy(update={"name": "batch-kills"})


@pytest.fixture
def rowvec(prefect_server: PrefectServer, batched: Pipeline, tmp_path: Path) -> Rowvec:
    """Start a sync of the pipeline on a machine of its own."""
    file = write_pipeline(batched, tmp_path)

    def sync(machine: str) -> Command:
        home = tmp_path / machine
        home.mkdir(exist_ok=True)
        own = {"ROWVEC_HOME": str(home), "ROWVEC_DATABASE_URL": os.environ["ROWVEC_DATABASE_URL"]}
        return start(prefect_server.api, "sync", file, "--json", **own)

    return sync


def states(api: str) -> set[tuple[str, str]]:
    """The name and type of the states of the last flow runs, read from Prefect's server."""
    body = json.dumps({"sort": "EXPECTED_START_TIME_DESC", "limit": 20}).encode()
    request = urllib.request.Request(  # noqa: S310 # our own server
        f"{api}/flow_runs/filter", data=body, headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310 # our own server
        return {(run["state_name"], run["state_type"]) for run in json.load(answer)}


def summary(api: str, pipeline: str) -> str:
    """The pipeline's last summary in Prefect's UI."""
    body = json.dumps({"sort": "CREATED_DESC", "artifacts": {"key": {"any_": [f"{pipeline}-summary"]}}}).encode()
    request = urllib.request.Request(  # noqa: S310 # our own server
        f"{api}/artifacts/filter", data=body, headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310 # our own server
        return json.load(answer)[0]["data"]


def test_a_kill_between_submit_and_record_finds_the_job_again(
    source: Connection, server: OpenAIServer, rowvec: Rowvec, prefect_server: PrefectServer
) -> None:
    server.batches.hold, server.batches.held_create = True, threading.Event()
    rowvec("first").when(lambda: server.batches.held).kill()
    assert source.execute("SELECT state, provider_id FROM rowvec.jobs").fetchall() == [("prepared", None)]
    server.batches.held_create.set()
    server.batches.held_create = None
    left = rowvec("second").wait()
    assert (left.status, left.json["awaiting"]) == (3, {"jobs": 1, "texts": 50}), left.stderr
    assert "next sync continues from here" in left.json["message"]
    assert ("AwaitingBatch", "COMPLETED") in states(prefect_server.api)
    shown = summary(prefect_server.api, "batch-kills")
    assert shown.startswith("## Waiting: batch-kills is as it was")
    assert "**Texts in them**: 50" in shown
    server.batches.finish()
    done = rowvec("third").wait()
    assert (done.status, done.json["embedded"], done.json["consistent"]) == (0, 50, True), done.stderr
    assert summary(prefect_server.api, "batch-kills").startswith("## Consistent: ")
    assert (len(server.batches.jobs), max(server.paid.values())) == (1, 1)
    assert_in_step(source)


def test_a_kill_between_download_and_answers_loses_nothing(
    source: Connection, server: OpenAIServer, rowvec: Rowvec, direct_url: str
) -> None:
    with psycopg.connect(direct_url) as keeper:
        keeper.execute("LOCK TABLE rowvec.answers IN SHARE MODE")
        waiting = "SELECT true FROM pg_locks WHERE NOT granted AND relation = 'rowvec.answers'::regclass"
        rowvec("first").when(lambda: source.execute(waiting).fetchone()).kill()
    assert source.execute("SELECT state, answered FROM rowvec.jobs").fetchall() == [("submitted", 0)]
    done = rowvec("second").wait()
    assert (done.status, done.json["embedded"], done.json["consistent"]) == (0, 50, True), done.stderr
    assert (len(server.batches.jobs), max(server.paid.values())) == (1, 1)
    assert done.json["tokens"] == server.tokens_billed
    assert_in_step(source)
