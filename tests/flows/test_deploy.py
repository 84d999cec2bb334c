"""``rowvec deploy`` and ``rowvec automations`` on a real Prefect server: twice, after changes in the UI, refused."""

from __future__ import annotations

import json
from collections.abc import Generator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect import get_client
from prefect.blocks.webhook import Webhook
from prefect.client.schemas.actions import DeploymentScheduleCreate, DeploymentUpdate
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule
from prefect.settings import PREFECT_API_URL, temporary_settings
from pydantic import SecretStr
from rowvec_tasks.automations import ALARMS, SILENT

from rowvec.cli.commands.deploy import automations, deploy
from rowvec.errors import MachineError, UsageError
from rowvec.pipeline import Pipeline
from tests.support.cli_process import write_pipeline

pytestmark = pytest.mark.flow

POOL = "deploy-test"
NAME = "sync/deployed"
YEARLY = "0 0 1 1 *"


@pytest.fixture
def file(prefect_api: None, paintings: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[Path]:
    """A pipeline file in the current folder; what was deployed of it is deleted in the end."""
    monkeypatch.chdir(tmp_path)
    target = paintings.target.model_copy(update={"url": "${MY_DSN}"})
    yield write_pipeline(paintings.model_copy(update={"name": "deployed", "target": target}), tmp_path)
    with get_client(sync_client=True) as client:
        for found in client.read_deployments():
            if found.name == "deployed":
                client.delete_deployment(found.id)


def rowvec(capsys: pytest.CaptureFixture[str], file: Path, **options: Any) -> dict[str, Any]:
    """What ``rowvec deploy --json`` prints."""
    given: dict[str, Any] = {"pool": POOL, "every": None, "cron": None, "timezone": "UTC", "name": None}
    deploy([str(file)], **{**given, **options}, as_json=True)
    return json.loads(capsys.readouterr().out)


def present() -> DeploymentResponse:
    with get_client(sync_client=True) as client:
        return client.read_deployment_by_name(NAME)


def test_deployed_twice_it_is_one_deployment_and_keeps_what_was_set_in_the_ui(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = rowvec(capsys, file, cron=YEARLY)
    assert (first["pool"], first["variables"]) == ({"name": POOL, "type": "process", "created": True}, ["MY_DSN"])
    (made,) = first["deployments"]
    assert (made["name"], made["created"], made["schedules"]) == (NAME, True, [f"cron {YEARLY} (UTC)"])
    before = present()
    assert made["url"].endswith(f"/deployments/deployment/{before.id}")
    assert (before.entrypoint, before.parameters) == ("rowvec_flows.sync:sync", {"pipeline": "deployed.yaml"})
    assert before.pull_steps == [{"prefect.deployments.steps.set_working_directory": {"directory": str(file.parent)}}]
    with get_client(sync_client=True) as client:
        (ours,) = before.schedules
        client.update_deployment_schedule(before.id, ours.id, active=False)
        own = CronSchedule(cron="0 0 2 1 *")
        client.create_deployment_schedules(before.id, [DeploymentScheduleCreate(schedule=own, active=True)])
        changed = {"pipeline": "deployed.yaml", "when_busy": "skip"}
        client.update_deployment(before.id, DeploymentUpdate(parameters=changed))
    again = rowvec(capsys, file, cron=YEARLY)
    assert (again["pool"]["created"], again["deployments"][0]["created"]) == (False, False)
    after = present()
    assert (after.id, after.parameters) == (before.id, changed)
    assert {(_cron(one.schedule), one.active) for one in after.schedules} == {(YEARLY, False), ("0 0 2 1 *", True)}
    # Without a schedule all stay; with another one, ours is replaced alone.
    rowvec(capsys, file)
    assert len(present().schedules) == 2
    rowvec(capsys, file, every=60 * 24 * 365)
    intervals = [one for one in present().schedules if isinstance(one.schedule, IntervalSchedule)]
    rowvec(capsys, file, every=60 * 24 * 365)
    same = [one for one in present().schedules if isinstance(one.schedule, IntervalSchedule)]
    assert (len(present().schedules), len(intervals)) == (2, 1)
    assert same[0].schedule == intervals[0].schedule


def test_a_watcher_is_started_each_hour_and_ends_before_the_next_one(
    file: Path, paintings: Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    queued = paintings.model_dump(mode="json", exclude_none=True)
    queued["source"]["changes"] = {"by": "trigger"}
    write_pipeline(Pipeline.model_validate({**queued, "name": "deployed"}), file.parent)
    (made,) = rowvec(capsys, file, watch=True)["deployments"]
    assert (made["name"], made["schedules"]) == ("watch/deployed", ["cron 0 * * * * (UTC)"])
    with get_client(sync_client=True) as client:
        found = client.read_deployment_by_name("watch/deployed")
    assert (found.entrypoint, found.parameters) == (
        "rowvec_flows.watch:watch",
        {"pipelines": ["deployed.yaml"], "minutes": 59.8},
    )


def test_what_cannot_be_deployed_is_one_sentence_and_changes_nothing(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for options, sentence in (
        ({"every": 5, "cron": YEARLY}, "exclude each other"),
        ({"every": 5, "watch": True}, "exclude each other"),
        ({"watch": True}, r"write changes: \{by: trigger\} into its source"),
        ({"cron": "at noon"}, "'at noon' in UTC is no schedule"),
        ({"cron": YEARLY, "timezone": "Mars/Olympus"}, "in Mars/Olympus is no schedule"),
    ):
        with pytest.raises(UsageError, match=sentence):
            rowvec(capsys, file, **options)
    with pytest.raises(UsageError, match="cannot be read"):
        rowvec(capsys, file.with_name("none.yaml"))
    with pytest.raises(UsageError, match="two of the files are of one pipeline"):
        deploy([str(file), "./deployed.yaml"], POOL)
    with (
        temporary_settings({PREFECT_API_URL: "http://127.0.0.1:1/api"}),
        pytest.raises(MachineError, match=r"no Prefect server answers at http://127\.0\.0\.1:1/api"),
    ):
        rowvec(capsys, file)
    with temporary_settings({PREFECT_API_URL: ""}), pytest.raises(UsageError, match="set PREFECT_API_URL"):
        rowvec(capsys, file)
    with get_client(sync_client=True) as client:
        assert "deployed" not in [one.name for one in client.read_deployments()]


def test_automations_without_a_receiver_say_so_and_with_one_tell_it(
    prefect_api: None, capsys: pytest.CaptureFixture[str]
) -> None:
    automations()
    listed = capsys.readouterr()
    assert listed.out.count(": missing.") == 6
    assert "No receiver is named, so alarms reach nobody" in listed.err
    with pytest.raises(UsageError, match="nobody would be told: name the block to tell with --to"):
        automations(apply=True)
    for block, sentence in (("alarms", "names no block"), ("webhook/none", "there is no block 'webhook/none'")):
        with pytest.raises(UsageError, match=sentence):
            automations(apply=True, receiver=block)
    block_id = Webhook(url=SecretStr("https://a.example/hook")).save("rowvec-test-alarms", overwrite=True)
    assert isinstance(block_id, UUID)
    try:
        for _ in range(2):
            automations(apply=True, receiver="webhook/rowvec-test-alarms")
        assert capsys.readouterr().out.count(": made.") == 12
        with get_client(sync_client=True) as client:
            (made,) = client.read_automations_by_name("rowvec: inconsistent")
        (action,) = made.actions
        assert getattr(action, "block_document_id", None) == block_id
    finally:
        with get_client(sync_client=True) as client:
            for name in (*ALARMS, SILENT):
                for one in client.read_automations_by_name(name):
                    client.delete_automation(one.id)


def _cron(schedule: object) -> str:
    assert isinstance(schedule, CronSchedule)
    return schedule.cron
