"""A run that a command has started sends its heartbeats, as Prefect would, and does not wait for its sender."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from uuid import uuid4

import pytest
from prefect.context import SettingsContext, get_settings_context
from prefect.events import Event
from prefect.runtime import flow_run
from prefect.settings import get_current_settings
from rowvec_tasks import heartbeat

from tests.support.waiting import wait_for

RUN = str(uuid4())


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The resources of the heartbeats that were sent, for a flow run."""
    found: list[str] = []

    def note(event: str, resource: dict[str, str]) -> Event | None:
        assert event == "prefect.flow-run.heartbeat"
        found.append(resource["prefect.resource.id"])

    monkeypatch.setenv("PREFECT__FLOW_RUN_ID", RUN)
    monkeypatch.setattr(flow_run, "get_name", lambda: "articles-command")
    monkeypatch.setattr(heartbeat, "emit_event", note)
    return found


@contextmanager
def every(seconds: float | None) -> Generator[None]:
    """The frequency that a user has set; Prefect itself takes no less than 30 seconds."""
    now = get_settings_context()
    flows = now.settings.flows.model_copy(update={"heartbeat_frequency": seconds})
    with SettingsContext(profile=now.profile, settings=now.settings.model_copy(update={"flows": flows})):
        yield


def test_the_first_is_sent_at_once_the_next_ones_at_the_users_frequency_and_none_after_the_end(
    sent: list[str],
) -> None:
    with every(0.01), heartbeat.own_heartbeats():
        assert get_current_settings().flows.heartbeat_frequency is None
        with heartbeat.alive():
            assert sent[0] == f"prefect.flow-run.{RUN}"
            wait_for(lambda: len(sent) > 2)
        ended = list(sent)
        time.sleep(0.05)
    assert sent == ended


def test_a_run_does_not_wait_for_the_next_one(sent: list[str]) -> None:
    with every(30), heartbeat.own_heartbeats():
        began = time.monotonic()
        with heartbeat.alive():
            assert len(sent) == 1
        assert time.monotonic() - began < 0.5


@pytest.mark.parametrize(("seconds", "are_sent"), [(None, True), (30, False)])
def test_none_is_sent_if_the_user_wants_none_or_nobody_reads_them(
    sent: list[str], seconds: float | None, are_sent: bool
) -> None:
    with every(seconds), heartbeat.own_heartbeats(are_sent=are_sent), heartbeat.alive():
        assert get_current_settings().flows.heartbeat_frequency is None
    assert not sent


def test_outside_of_a_command_they_are_left_to_prefect(sent: list[str]) -> None:
    with every(30), heartbeat.alive():
        assert get_current_settings().flows.heartbeat_frequency == 30
    assert not sent
