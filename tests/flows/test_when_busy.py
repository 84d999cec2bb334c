"""One run per pipeline at a time: what a second run does, by the policy it was started with."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rowvec_flows.index import index
from rowvec_flows.sync import sync
from rowvec_tasks import when_busy
from rowvec_tasks.flow_body import job_with_policy
from rowvec_tasks.when_busy import SKIPPED, WAIT, BusyPolicy, WhenBusy

from rowvec.errors import PipelineBusy
from rowvec.ledger.runs import running
from rowvec.pipeline import Pipeline
from rowvec.postgres.connection import Connection
from rowvec.runtime.progress import listening
from tests.support import paintings as gallery
from tests.support.paintings import assert_in_step
from tests.support.waiting import PATIENCE_SECONDS

SECONDS = st.floats(min_value=0, max_value=1e6)


@given(st.sampled_from(["wait", "skip", "fail"]), SECONDS, SECONDS, st.booleans())
def test_a_run_waits_until_its_time_is_over_and_a_nested_run_is_never_skipped(
    choice: WhenBusy, until: float, now: float, nested: bool
) -> None:
    step = BusyPolicy(when_busy=choice, since=0, until=until, nested=nested).next_step(now)
    assert (step == "wait") == (choice == "wait" and now < until)
    assert (step == "skip") == (choice == "skip" and not nested)


def test_a_flow_that_renames_a_parameter_of_its_policy_is_refused_at_import() -> None:
    def flow(pipeline: Pipeline, if_busy: WhenBusy = "wait", wait_minutes: float = 60) -> None:
        del pipeline, if_busy, wait_minutes

    with pytest.raises(TypeError, match="the flow flow has no parameter when_busy"):
        job_with_policy(flow)


@contextmanager
def held(pipeline: Pipeline, until: threading.Event) -> Generator[None]:
    """Another run is at work until the event is set or the context ends."""
    at_work = threading.Event()

    def work() -> None:
        with running(pipeline, "another"):
            at_work.set()
            until.wait()

    thread = threading.Thread(target=work)
    thread.start()
    assert at_work.wait(PATIENCE_SECONDS)
    yield
    until.set()
    thread.join()


@pytest.mark.flow
def test_a_run_waits_for_the_run_at_work(
    prefect_api: None, source: Connection, paintings: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(when_busy, "_LOOK_SECONDS", 0.1)
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
def test_a_run_is_skipped_or_fails_if_its_policy_says_so(
    prefect_api: None, source: Connection, paintings: Pipeline
) -> None:
    over = threading.Event()
    with held(paintings, over):
        skipped = sync(pipeline=paintings, cause="second", when_busy="skip", return_state=True)
        assert (skipped.name, skipped.is_cancelled()) == (SKIPPED, True)
        for choice in ("fail", "wait"):
            with pytest.raises(PipelineBusy, match="another run of the pipeline paintings"):
                sync(pipeline=paintings, cause="second", when_busy=choice, wait_minutes=0)
    assert source.execute("SELECT cause FROM rowvec.runs").fetchall() == [("another",)]


@pytest.mark.flow
def test_a_flow_that_no_deployment_has_started_fails_at_once(
    prefect_api: None, source: Connection, paintings: Pipeline
) -> None:
    gallery.sync(paintings)
    with held(paintings, threading.Event()), pytest.raises(PipelineBusy):
        index(pipeline=paintings)
