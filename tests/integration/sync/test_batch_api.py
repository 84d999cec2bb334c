"""Texts embedded by the Batch API: the same results as direct requests, and no text is paid twice if a job fails."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rowvec.errors import AwaitingJobs, EmbedderRefused, QuotaExhausted
from rowvec.operations import rejects
from rowvec.pipeline import Pipeline
from rowvec.postgres.connection import Connection
from rowvec.stages import dry_run
from tests.support import paintings
from tests.support.paintings import assert_in_step, sync
from tests.support.servers.openai_server import KEY, Fault, OpenAIServer, failing, quota, serve

PRICE = 0.02


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Generator[OpenAIServer]:
    """The provider, with its key in the environment."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serve(key=KEY, poison="POISON") as opened:
        yield opened


def pipeline(server: OpenAIServer, tmp_path: Path, embedder: dict[str, Any] | None = None, **batch: Any) -> Pipeline:
    """The gallery's pipeline with jobs for five texts or more; a run does not wait for its jobs."""
    common = {"kind": "openai", "model": "text-embedding-3-small", "dimensions": 96, "base_url": server.url}
    how = {"at_least": 5, "wait_minutes": 0, **batch}
    return paintings.pipeline(
        str(tmp_path / "artifacts"), embedder={**common, "max_attempts": 3, "batch": how, **(embedder or {})}
    )


def by_jobs(server: OpenAIServer) -> int:
    """The number of requests that were made by jobs."""
    return sum(request.path == "/v1/batches" for request in server.requests)


def directly(server: OpenAIServer) -> int:
    """The number of requests that were made directly."""
    return sum(request.path != "/v1/batches" for request in server.requests)


def paid_once(server: OpenAIServer) -> bool:
    """Whether no text was billed twice."""
    return max(server.paid.values(), default=0) <= 1


def leave(batched: Pipeline) -> AwaitingJobs:
    """Run a sync that leaves its jobs to the next sync."""
    with pytest.raises(AwaitingJobs) as awaited:
        sync(batched)
    return awaited.value


def test_a_first_load_by_a_job_costs_half(source: Connection, server: OpenAIServer, tmp_path: Path) -> None:
    batched = pipeline(server, tmp_path)
    server.batches.hold = True
    awaited = leave(batched)
    assert (awaited.jobs, awaited.texts) == (1, 50)
    assert source.execute("SELECT state FROM rowvec.runs").fetchall() == [("waiting",)]
    leave(batched)
    assert len(server.batches.jobs) == 1
    server.batches.finish()
    report = sync(batched)
    assert (report.embedded, report.reused, report.rows, report.consistent) == (50, 0, 50, True)
    assert (by_jobs(server), directly(server)) == (50, 0)
    assert report.tokens == server.tokens_billed
    assert report.cost_usd == pytest.approx(report.tokens * PRICE / 2 / 1e6)
    spent = source.execute("SELECT sum(settled_usd), sum(reserved_usd) FROM rowvec.spending").fetchone()
    assert spent == pytest.approx((report.cost_usd, 0))
    of_vectors = source.execute("SELECT sum(cost_usd) FROM rowvec.embeddings").fetchone()
    assert of_vectors == pytest.approx((report.cost_usd,), rel=1e-4)
    assert_in_step(source)
    assert server.batches.files == {}
    again = sync(batched)
    assert (again.embedded, again.tokens, again.cost_usd) == (0, 0, 0)


def test_a_job_that_is_done_at_once_is_waited_for(source: Connection, server: OpenAIServer, tmp_path: Path) -> None:
    report = sync(pipeline(server, tmp_path, wait_minutes=1))
    assert (report.embedded, by_jobs(server), directly(server)) == (50, 50, 0)


def test_few_texts_are_requested_directly(source: Connection, server: OpenAIServer, tmp_path: Path) -> None:
    batched = pipeline(server, tmp_path, at_least=51)
    report = sync(batched)
    assert (report.embedded, by_jobs(server)) == (50, 0)
    assert report.cost_usd == pytest.approx(report.tokens * PRICE / 1e6)


def test_rows_written_meanwhile_are_requested_directly(
    source: Connection, server: OpenAIServer, tmp_path: Path
) -> None:
    batched = pipeline(server, tmp_path)
    server.batches.hold = True
    leave(batched)
    paintings.fill(source, 3, start=51)
    source.execute("UPDATE paintings SET title = 'another' WHERE id = 1")
    source.execute("DELETE FROM paintings WHERE id = 2")
    server.batches.finish()
    report = sync(batched)
    assert (report.rows, report.consistent) == (52, True)
    assert (by_jobs(server), len(server.batches.jobs)) == (50, 1)
    assert_in_step(source)
    assert paid_once(server)


@pytest.mark.parametrize(
    ("end", "fallback"),
    [
        ("expired", "direct"),
        ("cancelled", "batch"),
        ("failed", "batch"),
        pytest.param("expired", "batch", marks=pytest.mark.soak),
        pytest.param("cancelled", "direct", marks=pytest.mark.soak),
        pytest.param("failed", "direct", marks=pytest.mark.soak),
    ],
)
def test_a_job_that_ends_early_keeps_what_it_answered(
    source: Connection, server: OpenAIServer, tmp_path: Path, end: Any, fallback: str
) -> None:
    batched = pipeline(server, tmp_path, fallback=fallback)
    server.batches.hold = True
    leave(batched)
    server.batches.finish(end, answered=20)
    came = 0 if end == "failed" else 20
    server.batches.hold = False
    report = sync(batched)
    assert (report.rows, report.embedded, report.consistent) == (50, 50, True)
    assert by_jobs(server) == (50 if fallback == "batch" else came)
    assert paid_once(server)
    assert_in_step(source)


def test_a_job_that_always_fails_is_given_up_after_three(
    source: Connection, server: OpenAIServer, tmp_path: Path
) -> None:
    batched = pipeline(server, tmp_path)
    server.batches.end = "failed"
    assert sync(batched).consistent
    assert (len(server.batches.jobs), by_jobs(server)) == (3, 0)


def test_runs_that_waited_for_too_long_request_the_rest_directly(
    source: Connection, server: OpenAIServer, tmp_path: Path
) -> None:
    batched = pipeline(server, tmp_path, patience_hours=1)
    server.batches.hold = True
    leave(batched)
    paintings.fill(source, 20, start=51)
    server.batches.finish()
    source.execute("UPDATE rowvec.jobs SET created_at = created_at - interval '2 hours'")
    report = sync(batched)
    assert (report.rows, by_jobs(server), len(server.batches.jobs)) == (70, 50, 1)


def test_poison_in_a_job_is_rejected(source: Connection, server: OpenAIServer, tmp_path: Path) -> None:
    source.execute("UPDATE paintings SET title = 'POISON ' || id WHERE id % 10 = 0")
    batched = pipeline(server, tmp_path)
    report = sync(batched)
    assert (report.rows, report.rejected, report.consistent) == (45, 5, True)
    assert directly(server) == 0
    found = rejects.rejects(batched, retry=True).as_json()["rejects"]
    assert {(r["key"][0], r["reason"]) for r in found} == {(str(i), "invalid_input") for i in range(10, 51, 10)}
    server.poison = None
    assert sync(batched).rejected == 0
    assert_in_step(source)


def test_unusable_answers_in_a_job_are_requested_again(
    source: Connection, server: OpenAIServer, tmp_path: Path
) -> None:
    source.execute("UPDATE paintings SET title = 'ODD' WHERE id = 1")
    source.execute("UPDATE paintings SET title = 'DOWN' WHERE id = 2")
    server.add(Fault(spoil="nan", marker="ODD"), failing(500))
    batched = pipeline(server, tmp_path)
    report = sync(batched)
    assert (report.rows, report.rejected, by_jobs(server)) == (50, 0, 50)
    assert 0 < directly(server) <= 2
    assert_in_step(source)


def test_a_quota_error_in_a_jobs_lines_stops_the_run_and_keeps_the_rest(
    source: Connection, server: OpenAIServer, tmp_path: Path
) -> None:
    server.add(replace(quota(), after=20))
    batched = pipeline(server, tmp_path)
    with pytest.raises(QuotaExhausted):
        sync(batched)
    assert source.execute("SELECT count(*) FROM rowvec.answers").fetchone() == (20,)
    server.reset()
    assert sync(batched).rows == 50
    assert by_jobs(server) == 30


def test_a_lost_acknowledgement_makes_no_second_job(source: Connection, server: OpenAIServer, tmp_path: Path) -> None:
    server.batches.cut_creates = 1
    assert sync(pipeline(server, tmp_path)).embedded == 50
    assert len(server.batches.jobs) == 1


def test_a_run_that_never_heard_of_its_job_finds_it(source: Connection, server: OpenAIServer, tmp_path: Path) -> None:
    batched = pipeline(server, tmp_path, {"max_attempts": 1})
    server.batches.hold = True
    server.batches.cut_creates = 1
    with pytest.raises(Exception, match="does not answer"):
        sync(batched)
    assert source.execute("SELECT state, provider_id FROM rowvec.jobs").fetchall() == [("prepared", None)]
    # Other jobs of the account come before it in the list.
    for number in range(5):
        job = replace(server.batches.jobs["batch_1"], id=f"other_{number}", metadata={}, status="completed")
        server.batches.jobs[job.id] = job
    leave(batched)
    server.batches.finish()
    assert sync(batched).embedded == 50
    assert by_jobs(server) == 50


def test_a_job_the_provider_never_received_is_submitted_again(
    source: Connection, server: OpenAIServer, tmp_path: Path
) -> None:
    batched = pipeline(server, tmp_path, {"max_attempts": 1})
    server.batches.cut_creates = 1
    with pytest.raises(Exception, match="does not answer"):
        sync(batched)
    server.batches.jobs.clear()
    server.reset()
    assert sync(batched).embedded == 50
    assert by_jobs(server) == 50
    assert source.execute("SELECT sum(reserved_usd) FROM rowvec.spending").fetchone() == (0,)


def test_a_download_that_is_cut_is_fetched_again(source: Connection, server: OpenAIServer, tmp_path: Path) -> None:
    batched = pipeline(server, tmp_path)
    server.batches.cut_downloads = 1
    assert sync(batched).embedded == 50
    assert paid_once(server)


def test_a_job_the_provider_has_forgotten_is_submitted_again(
    source: Connection, server: OpenAIServer, tmp_path: Path
) -> None:
    batched = pipeline(server, tmp_path, fallback="direct")
    server.batches.hold = True
    leave(batched)
    server.batches.jobs.clear()
    report = sync(batched)
    assert (report.rows, by_jobs(server)) == (50, 0)


def test_jobs_fit_the_queue_of_the_account(source: Connection, server: OpenAIServer, tmp_path: Path) -> None:
    tokens = dry_run.plan(pipeline(server, tmp_path)).tokens
    batched = pipeline(server, tmp_path, max_tokens=tokens // 3)
    report = sync(batched)
    assert report.rows == 50
    assert len(server.batches.jobs) >= 3
    assert paid_once(server)
    assert_in_step(source)


def test_a_queue_that_is_too_short_is_named(source: Connection, server: OpenAIServer, tmp_path: Path) -> None:
    server.batches.queue_tokens = 10
    batched = pipeline(server, tmp_path)
    with pytest.raises(EmbedderRefused, match="max_tokens"):
        sync(batched)
    assert source.execute("SELECT count(*) FROM rowvec.jobs").fetchone() == (0,)


def test_a_server_without_a_batch_api_says_so(source: Connection, server: OpenAIServer, tmp_path: Path) -> None:
    server.batches.missing = True
    with pytest.raises(EmbedderRefused, match=r"no Batch API at 127\.0\.0\.1; set embedder\.batch to false"):
        sync(pipeline(server, tmp_path))


def test_answers_of_a_model_of_another_name_are_refused(
    source: Connection, server: OpenAIServer, tmp_path: Path
) -> None:
    server.answers_as = "text-embedding-ada-002"
    batched = pipeline(server, tmp_path)
    with pytest.raises(EmbedderRefused, match="vectors of two models"):
        sync(batched)
    assert source.execute("SELECT count(*) FROM rowvec.answers").fetchone() == (0,)


def test_the_plan_reports_jobs_and_half_the_price(source: Connection, server: OpenAIServer, tmp_path: Path) -> None:
    batched = pipeline(server, tmp_path)
    planned = dry_run.plan(batched)
    assert planned.cost_usd == pytest.approx(planned.tokens * PRICE / 2 / 1e6)
    assert planned.as_json()["awaiting"] == {"jobs": 0, "texts": 0}
    server.batches.hold = True
    leave(batched)
    assert dry_run.plan(batched).as_json()["awaiting"] == {"jobs": 1, "texts": 50}


def test_paths_and_deployment_of_azure(
    source: Connection, server: OpenAIServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", KEY)
    azure = {"kind": "azure_openai", "model": "small", "base_url": server.origin, "cost_per_million_tokens": PRICE}
    batched = pipeline(server, tmp_path, azure, model="small-batch")
    assert sync(batched).embedded == 50
    assert {request.model for request in server.requests} == {"small-batch"}


def test_jobs_are_fetched_though_batch_was_switched_off(
    source: Connection, server: OpenAIServer, tmp_path: Path
) -> None:
    server.batches.hold = True
    leave(pipeline(server, tmp_path))
    paintings.fill(source, 10, start=51)
    off = pipeline(server, tmp_path, {"batch": False})
    server.batches.finish()
    report = sync(off)
    assert (report.rows, by_jobs(server), len(server.batches.jobs)) == (60, 50, 1)
    assert paid_once(server)


def test_jobs_of_deleted_rows_are_fetched_nevertheless(
    source: Connection, server: OpenAIServer, tmp_path: Path
) -> None:
    batched = pipeline(server, tmp_path)
    server.batches.hold = True
    leave(batched)
    source.execute("DELETE FROM paintings")
    server.batches.finish()
    assert sync(batched).rows == 0
    assert source.execute("SELECT state, answered FROM rowvec.jobs").fetchall() == [("collected", 50)]
    paintings.fill(source, 50)
    assert sync(batched).rows == 50
    assert paid_once(server)


def test_a_rebuild_goes_on_when_its_jobs_are_done(source: Connection, server: OpenAIServer, tmp_path: Path) -> None:
    sync(pipeline(server, tmp_path))
    server.batches.hold = True
    longer = pipeline(server, tmp_path, {"dimensions": 128})
    with pytest.raises(AwaitingJobs):
        paintings.rebuild(longer)
    server.batches.finish()
    assert paintings.rebuild(longer).switched
    assert by_jobs(server) == 100
    assert_in_step(source)
