"""Makes the automations of docs/operations.md, or brings them up to date: ``python deployments/automations.py``.

With ``--webhook BLOCK`` each alarm is also posted to a Webhook block of that name; with ``--repair`` an audit with
repair follows an inconsistency. In Python and not in prefect.yaml, for ``prefect deploy`` would take the templates in
them for its own.
"""

from __future__ import annotations

import argparse
import sys
from datetime import timedelta
from typing import Any, cast
from uuid import UUID

from prefect import get_client
from prefect.blocks.webhook import Webhook
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterTags
from prefect.events import ResourceSpecification
from prefect.events.actions import CallWebhook, DoNothing, RunDeployment
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

ALARMS = {
    "rowvec: inconsistent": (
        {"rowvec.sync.inconsistent", "rowvec.audit.inconsistent"},
        "A vector table does not agree with its source.",
    ),
    "rowvec: recall low": ({"rowvec.sync.recall_low"}, "An index finds less than its pipeline asks for."),
    "rowvec: budget exceeded": ({"rowvec.sync.budget_exceeded"}, "A run stopped at a limit on what it may cost."),
}
SILENT = "rowvec: no sync for a day"
# The sentence is made for people and holds no row's content; the rest of the payload is figures, checks and keys.
_BODY = "{{ event.resource.name }}: {{ event.payload.sentence }}"


def wanted(webhook: UUID | None, audits: dict[str, UUID]) -> list[AutomationCore]:
    """The automations, given the id of a Webhook block and the deployments to repair with, by pipeline."""
    tell: list[Any] = [CallWebhook(block_document_id=webhook, payload=_BODY) if webhook else DoNothing()]
    made = [
        AutomationCore(
            name=name,
            description=f"{why} docs/operations.md says what to do.",
            trigger=_when(events),
            actions=tell,
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
    what = "A pipeline that has synced has not come to a good end again for a day."
    made.append(AutomationCore(name=SILENT, description=what, trigger=silent, actions=tell))
    for pipeline, deployment in audits.items():
        repair = RunDeployment(
            source="selected", deployment_id=deployment, parameters={"repair": True}, job_variables=None
        )
        made.append(
            AutomationCore(
                name=f"rowvec: repair {pipeline}",
                description="An audit with repair follows an inconsistency that a sync has found.",
                trigger=_when({"rowvec.sync.inconsistent"}, pipeline),
                actions=[repair],
            )
        )
    return made


def apply(automations: list[AutomationCore]) -> list[str]:
    """Make them, those of the same name being replaced; returns their names. Others are left alone."""
    with get_client(sync_client=True) as client:
        for automation in automations:
            for present in client.read_automations_by_name(automation.name):
                client.delete_automation(present.id)
            client.create_automation(automation)
    return [automation.name for automation in automations]


def audit_deployments() -> dict[str, UUID]:
    """The deployments of the flow ``audit``, by the name of their pipeline."""
    with get_client(sync_client=True) as client:
        found = client.read_deployments(
            deployment_filter=DeploymentFilter(tags=DeploymentFilterTags(all_=["rowvec", "audit"]))
        )
    return {deployment.parameters["pipeline"]["name"]: deployment.id for deployment in found}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Make rowvec's automations on the Prefect server.")
    parser.add_argument("--webhook", metavar="BLOCK", help="the Webhook block that alarms are posted to")
    parser.add_argument("--repair", action="store_true", help="let an audit with repair follow an inconsistency")
    asked = parser.parse_args()
    webhook: UUID | None = None
    if asked.webhook:
        try:
            block = cast("Webhook", Webhook.load(asked.webhook))
        except ValueError:
            sys.exit(f"there is no Webhook block {asked.webhook!r}; make it in the Prefect UI under Blocks")
        webhook = block._block_document_id  # pyright: ignore[reportPrivateUsage] # Prefect has no public name for it
    audits = audit_deployments() if asked.repair else {}
    for name in apply(wanted(webhook, audits)):
        sys.stdout.write(f"{name}\n")


def _pipelines(name: str) -> ResourceSpecification:
    return ResourceSpecification.model_validate({"prefect.resource.id": f"rowvec.pipeline.{name}"})


def _when(events: set[str], pipeline: str = "*") -> EventTrigger:
    return EventTrigger(
        expect=events, match=_pipelines(pipeline), posture=Posture.Reactive, threshold=1, within=timedelta(0)
    )


if __name__ == "__main__":
    main()
