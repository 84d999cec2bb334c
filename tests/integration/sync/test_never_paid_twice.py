"""Syncs with an embedder that costs money: no text is paid for twice, whichever fault occurs."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

import pytest

from rowvec.errors import PipelineBusy, QuotaExhausted
from rowvec.ledger.runs import running
from rowvec.operations import rejects
from rowvec.pipeline import Pipeline
from rowvec.postgres.connection import Connection
from rowvec.stages import dry_run
from tests.support import paintings
from tests.support.cli_process import PrefectServer, start, write_pipeline
from tests.support.paintings import assert_in_step, dying_after, fill, sync
from tests.support.servers.openai_server import KEY, OpenAIServer, quota, serve


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Generator[OpenAIServer]:
    """The embedder's server, with its key in the environment."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serve(key=KEY, poison="POISON") as opened:
        yield opened


@pytest.fixture
def paid(server: OpenAIServer, tmp_path: Path) -> Pipeline:
    """The gallery's pipeline with an embedder that costs money, four texts per request."""
    embedder = {
        "kind": "openai",
        "model": "text-embedding-3-small",
        "dimensions": 96,
        "base_url": server.url,
        "max_batch_inputs": 4,
        "concurrency": 2,
    }
    return paintings.pipeline(str(tmp_path / "artifacts"), embedder=embedder)


def test_tokens_and_cost_are_what_the_provider_says(source: Connection, paid: Pipeline, server: OpenAIServer) -> None:
    planned = dry_run.plan(paid)
    assert server.requests == []
    report = sync(paid)
    assert report.tokens == server.tokens_billed == planned.tokens
    assert report.cost_usd == pytest.approx(report.tokens * 0.02 / 1e6)
    assert planned.cost_usd == pytest.approx(report.cost_usd)
    assert sorted(server.texts) == sorted(set(server.texts))
    assert sync(paid).tokens == 0


def test_one_poison_row_in_each_request_stays_one_poison_row(
    source: Connection, paid: Pipeline, server: OpenAIServer
) -> None:
    source.execute("UPDATE paintings SET title = 'POISON ' || id WHERE id % 5 = 0")
    report = sync(paid)
    assert (report.rows, report.rejected, report.consistent) == (40, 10, True)
    found = rejects.rejects(paid).as_json()["rejects"]
    assert {r["key"][0] for r in found} == {str(i) for i in range(5, 51, 5)}
    assert {r["reason"] for r in found} == {"invalid_input"}
    sent = len(server.texts)
    again = sync(paid)
    assert (again.rejected, again.new, len(server.texts)) == (10, 0, sent)
    source.execute("UPDATE paintings SET title = 'mended' WHERE id = 5")
    retried = sync(paid)
    assert (retried.rejected, retried.embedded, retried.rows) == (9, 1, 41)
    rejects.rejects(paid, retry=True)
    assert sync(paid).rejected == 9
    assert len(server.texts) > sent + 1


def test_a_row_that_becomes_poison_loses_its_old_vector(source: Connection, paid: Pipeline) -> None:
    sync(paid)
    source.execute("UPDATE paintings SET title = 'POISON' WHERE id = 1")
    report = sync(paid)
    assert (report.rows, report.rejected, report.consistent) == (49, 1, True)
    source.execute("DELETE FROM paintings WHERE id = 1")
    assert sync(paid).rejected == 0


def test_a_used_up_quota_stops_at_once_and_what_was_paid_is_kept(
    source: Connection, paid: Pipeline, server: OpenAIServer
) -> None:
    server.add(replace(quota(), after=3))
    with pytest.raises(QuotaExhausted):
        sync(paid)
    answered = source.execute("SELECT count(*) FROM rowvec.answers").fetchone()
    assert answered == (len(server.paid),)
    assert 0 < len(server.paid) < 50
    paid_before = len(server.paid)
    server.reset()
    report = sync(paid)
    assert report.embedded == len(server.paid) == 50 - paid_before
    assert source.execute("SELECT count(*) FROM rowvec.answers").fetchone() == (0,)
    assert_in_step(source)


@pytest.mark.parametrize("stage", ["embed", "binarize", "upload", "load", "merge", "index"])
def test_a_run_that_dies_after_any_stage_is_continued_without_paying_again(
    source: Connection, paid: Pipeline, server: OpenAIServer, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with dying_after(stage, monkeypatch):
        sync(paid)
    sync(paid)
    assert len(server.paid) == 50
    assert_in_step(source)
    leftovers = source.execute("SELECT tablename FROM pg_tables WHERE tablename ~ '^(plan|staging)_'").fetchall()
    assert leftovers == []


@pytest.mark.parametrize("after_requests", [0, 2, 6])
def test_a_run_killed_in_the_middle_of_embedding_pays_again_only_for_what_was_in_flight(
    source: Connection,
    paid: Pipeline,
    server: OpenAIServer,
    tmp_path: Path,
    prefect_server: PrefectServer,
    after_requests: int,
) -> None:
    """The whole command is killed while requests are in flight. A second run pays again only for those."""
    fill(source, 30, start=51)
    file = write_pipeline(paid, tmp_path)
    server.latency = 0.3
    command = start(prefect_server.api, "sync", file, "--json")
    command.when(lambda: len(server.requests) > after_requests).kill()
    in_flight = 2 * 4
    server.latency = 0.0
    report = sync(paid)
    assert report.consistent
    assert_in_step(source)
    assert len(server.paid) <= 80 + in_flight
    assert set(server.paid) == {f"Painting {i}\nIt shows the number {i}" for i in range(1, 81)}
    states = source.execute("SELECT state FROM rowvec.runs ORDER BY run_id").fetchall()
    assert states == [("abandoned",), ("succeeded",)]


def test_two_runs_of_one_pipeline_exclude_each_other(source: Connection, paid: Pipeline, server: OpenAIServer) -> None:
    with running(paid, "test"), pytest.raises(PipelineBusy, match="another run of the pipeline paintings"):
        sync(paid)
    assert sync(paid).consistent


def test_no_secret_is_anywhere(source: Connection, paid: Pipeline, server: OpenAIServer, tmp_path: Path) -> None:
    sync(paid)
    server.add(quota())
    fill(source, 2, start=200)
    with pytest.raises(QuotaExhausted) as failure:
        sync(paid)
    assert KEY not in str(failure.value)
    for table in ("runs", "plans", "pipelines", "rejects", "artifacts"):
        rows = source.execute(f"SELECT t::text FROM rowvec.{table} AS t".encode()).fetchall()  # noqa: S608 # our names
        assert all(KEY not in row[0] for row in rows)
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or KEY.encode() not in file.read_bytes(), file
