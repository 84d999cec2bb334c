"""Creates or updates the automations of docs/how-to/operations.md: ``python deployments/automations.py``.

With ``--webhook BLOCK`` each alarm is also posted to a Webhook block of that name; with ``--repair`` an audit with
repair follows an inconsistency. They are not in prefect.yaml, because ``prefect deploy`` would fill in the templates
that they hold.
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
    "rowvec: recall low": ({"rowvec.sync.recall_low"}, "An index finds less than its pipeline requires."),
    "rowvec: budget exceeded": ({"rowvec.sync.budget_exceeded"}, "A run stopped at a limit on what it may cost."),
}
SILENT = "rowvec: no sync for a day"
# The sentence is for people and holds no row's content; the rest of the payload is figures, checks and keys.
_BODY = "{{ event.resource.name }}: {{ event.payload.sentence }}"


def wanted(webhook: UUID | None, audits: dict[str, UUID]) -> list[AutomationCore]:
    """The automations, for the id of a Webhook block and, by pipeline name, the id of the audit to repair with."""
    notify: list[Any] = [CallWebhook(block_document_id=webhook, payload=_BODY) if webhook else DoNothing()]
    automations = [
        AutomationCore(
            name=name,
            description=f"{why} docs/how-to/operations.md says what to do.",
            trigger=_when(events),
            actions=notify,
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
    automations.append(AutomationCore(name=SILENT, description=description, trigger=silent, actions=notify))
    for pipeline, deployment in audits.items():
        repair = RunDeployment(
            source="selected", deployment_id=deployment, parameters={"repair": True}, job_variables=None
        )
        automations.append(
            AutomationCore(
                name=f"rowvec: repair {pipeline}",
                description="An audit with repair follows an inconsistency that a sync has found.",
                trigger=_when({"rowvec.sync.inconsistent"}, pipeline),
                actions=[repair],
            )
        )
    return automations


def apply(automations: list[AutomationCore]) -> list[str]:
    """Create the automations, and replace those of the same name; returns their names. Others stay as they are."""
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
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Make rowvec's automations on the Prefect server.")
    parser.add_argument("--webhook", metavar="BLOCK", help="the Webhook block that alarms are posted to")
    parser.add_argument("--repair", action="store_true", help="let an audit with repair follow an inconsistency")
    arguments = parser.parse_args()
    webhook: UUID | None = None
    if arguments.webhook:
        try:
            block = cast("Webhook", Webhook.load(arguments.webhook))
        except ValueError:
            sys.exit(f"there is no Webhook block {arguments.webhook!r}; create it in the Prefect UI under Blocks")
        webhook = block._block_document_id  # pyright: ignore[reportPrivateUsage] # Prefect has no public name for it
    audits = audit_deployments() if arguments.repair else {}
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
