"""One run a pipeline: what becomes of the second, by the policy it was started with."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rowvec_flows.index import index
from rowvec_flows.sync import sync
from rowvec_tasks import when_busy as turns
from rowvec_tasks.when_busy import SKIPPED, WAIT, Patience, WhenBusy

from rowvec.errors import PipelineBusy
from rowvec.ledger.runs import running
from rowvec.pipeline import Pipeline
from rowvec.postgres.connection import Connection
from rowvec.runtime.progress import listening
from tests.support.paintings import assert_in_step

SECONDS = st.floats(min_value=0, max_value=1e6)


@given(st.sampled_from(["wait", "skip", "fail"]), SECONDS, SECONDS, st.booleans())
def test_who_waits_does_so_until_its_time_is_over_and_a_part_of_a_run_is_never_skipped(
    when_busy: WhenBusy, until: float, now: float, within: bool
) -> None:
    step = Patience(when_busy=when_busy, since=0, until=until, within=within).next_step(now)
    assert (step == "wait") == (when_busy == "wait" and now < until)
    assert (step == "skip") == (when_busy == "skip" and not within)


@contextmanager
def held(pipeline: Pipeline, until: threading.Event) -> Generator[None]:
    """Another run at work, until something happens or this is left."""
    at_work = threading.Event()

    def work() -> None:
        with running(pipeline, "another"):
            at_work.set()
            until.wait()

    thread = threading.Thread(target=work)
    thread.start()
    assert at_work.wait(60)
    yield
    until.set()
    thread.join()


@pytest.mark.flow
def test_a_run_waits_for_the_one_at_work(
    prefect_api: None, source: Connection, paintings: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "_LOOK_SECONDS", 0.1)
    over, waited = threading.Event(), list[str]()

    def listen(stage: str, part: str, done: int, total: int) -> None:
        if stage == WAIT:
            waited.append(f"{part}: {total}")
            over.set()

    with held(paintings, over), listening(listen):
        report = sync(pipeline=paintings, cause="second", when_busy="wait", wait_minutes=1)
    assert waited
    assert set(waited) == {"for another run, seconds: 60"}
    assert report.consistent
    assert_in_step(source)


@pytest.mark.flow
def test_a_run_is_skipped_or_fails_where_it_was_told_to(
    prefect_api: None, source: Connection, paintings: Pipeline
) -> None:
    over = threading.Event()
    with held(paintings, over):
        skipped = sync(pipeline=paintings, cause="second", when_busy="skip", return_state=True)
        assert (skipped.name, skipped.is_cancelled()) == (SKIPPED, True)
        for when_busy in ("fail", "wait"):
            with pytest.raises(PipelineBusy, match="another run of the pipeline paintings"):
                sync(pipeline=paintings, cause="second", when_busy=when_busy, wait_minutes=0)
    assert source.execute("SELECT cause FROM rowvec.runs").fetchall() == [("another",)]


@pytest.mark.flow
def test_a_job_that_no_deployment_has_started_fails_at_once(
    prefect_api: None, source: Connection, paintings: Pipeline
) -> None:
    sync(pipeline=paintings, cause="first")
    with held(paintings, threading.Event()), pytest.raises(PipelineBusy):
        index(pipeline=paintings)
