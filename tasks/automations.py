"""The automations of docs/how-to/monitor.md: which alarms they watch for, whom they tell, and what they start.

They are not in prefect.yaml, because ``prefect deploy`` would fill in the templates that they hold.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from prefect.blocks.abstract import NotificationBlock
from prefect.blocks.core import Block
from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterTags
from prefect.client.schemas.responses import DeploymentResponse
from prefect.events import ResourceSpecification
from prefect.events.actions import CallWebhook, DoNothing, RunDeployment, SendNotification
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from rowvec_tasks.deployments import pipeline_tag

from rowvec.errors import UsageError

ALARMS = {
    "rowvec: inconsistent": (
        {"rowvec.sync.inconsistent", "rowvec.audit.inconsistent"},
        "A vector table does not agree with its source.",
    ),
    "rowvec: recall low": ({"rowvec.sync.recall_low"}, "An index finds less than its pipeline requires."),
    "rowvec: changes missed": (
        {"rowvec.changes.missed"},
        "Somebody writes to a source past its triggers, or has edited a vector table.",
    ),
    "rowvec: changes late": ({"rowvec.changes.late"}, "Changes wait for longer than their pipeline allows."),
    "rowvec: budget exceeded": ({"rowvec.sync.budget_exceeded"}, "A run stopped at a limit on what it may cost."),
}
SILENT = "rowvec: no sync for a day"
# The sentence is for people and holds no row's content; the rest of the payload is figures, checks and keys.
_BODY = "{{ event.resource.name }}: {{ event.payload.sentence }}"
_TAG = pipeline_tag("")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """An automation, for a person."""

    name: str
    description: str
    present: bool
    """Whether the server has one of this name."""


def receiver(block: str) -> Any:
    """The action that tells a block ``TYPE/NAME``: a webhook, or a notification such as ``slack-webhook/alarms``.

    Raises ``UsageError`` if the server has no such block, or if it is of another kind.
    """
    if block.count("/") != 1:
        raise UsageError(f"{block!r} names no block; write TYPE/NAME, as webhook/alarms or slack-webhook/alarms")
    try:
        found: Any = Block.load(block)
    except ValueError:
        raise UsageError(f"there is no block {block!r}; create it in the Prefect UI under Blocks") from None
    block_id: UUID = found._block_document_id  # Prefect has no public name for it
    if isinstance(found, Webhook):
        return CallWebhook(block_document_id=block_id, payload=_BODY)
    if isinstance(found, NotificationBlock):
        return SendNotification(block_document_id=block_id, subject="rowvec: {{ event.resource.name }}", body=_BODY)
    raise UsageError(f"the block {block!r} can tell nobody; name a webhook or a notification block")


def alarms(notify: Any = None) -> list[AutomationCore]:
    """The automations that tell a receiver of each alarm; without one they are only good for being listed."""
    actions: list[Any] = [notify or DoNothing()]
    automations = [
        AutomationCore(
            name=name,
            description=f"{why} docs/how-to/monitor.md says what to do.",
            trigger=_when(events),
            actions=actions,
        )
        for name, (events, why) in ALARMS.items()
    ]
    silent = EventTrigger(
        after={"rowvec.sync.completed"},
        expect={"rowvec.sync.completed"},
        match=_pipelines("*"),
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        threshold=1,
        within=timedelta(days=1),
    )
    description = "A pipeline that has synced before has had no successful sync for a day."
    return [*automations, AutomationCore(name=SILENT, description=description, trigger=silent, actions=actions)]


def repairs(audits: dict[str, UUID]) -> list[AutomationCore]:
    """The automations that start an audit with repair, for the deployments of audits by the name of their pipeline."""
    return [
        AutomationCore(
            name=f"rowvec: repair {pipeline}",
            description="An audit with repair follows an inconsistency that a sync has found.",
            trigger=_when({"rowvec.sync.inconsistent"}, pipeline),
            actions=[
                RunDeployment(
                    source="selected", deployment_id=deployment, parameters={"repair": True}, job_variables=None
                )
            ],
        )
        for pipeline, deployment in audits.items()
    ]


def compare(client: SyncPrefectClient, automations: list[AutomationCore]) -> list[Shown]:
    """Which of these automations the server has, by their names."""
    return [
        Shown(
            name=one.name,
            description=one.description or "",
            present=bool(client.read_automations_by_name(one.name)),
        )
        for one in automations
    ]


def apply(client: SyncPrefectClient, automations: list[AutomationCore]) -> None:
    """Create the automations, and replace those of the same name. Others stay as they are."""
    for automation in automations:
        for present in client.read_automations_by_name(automation.name):
            client.delete_automation(present.id)
        client.create_automation(automation)


def audit_deployments(client: SyncPrefectClient) -> dict[str, UUID]:
    """The deployments of the flow ``audit``, by the name of their pipeline."""
    found = client.read_deployments(
        deployment_filter=DeploymentFilter(tags=DeploymentFilterTags(all_=["rowvec", "audit"]))
    )
    return {_pipeline_of(deployment): deployment.id for deployment in found}


def _pipeline_of(deployment: DeploymentResponse) -> str:
    """By its tag; a deployment that was written by hand may have none, and is called as its pipeline."""
    return next((tag.removeprefix(_TAG) for tag in deployment.tags if tag.startswith(_TAG)), deployment.name)


def _pipelines(name: str) -> ResourceSpecification:
    return ResourceSpecification.model_validate({"prefect.resource.id": f"rowvec.pipeline.{name}"})


def _when(events: set[str], pipeline: str = "*") -> EventTrigger:
    return EventTrigger(
        expect=events, match=_pipelines(pipeline), posture=Posture.Reactive, threshold=1, within=timedelta(0)
    )
