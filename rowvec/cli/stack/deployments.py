"""What ``rowvec up`` deploys per pipeline: scheduled syncs and maintenance, and the flows that are run by hand."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

from rowvec.pipeline import Pipeline

POOL = "rowvec"

_Deployment = dict[str, Any]


def prefect_file(pipelines: list[Pipeline], folder: Path, every_minutes: int, since: datetime) -> dict[str, Any]:
    """The content of a ``prefect.yaml``: runs have ``folder`` as working directory, and syncs are due every
    ``every_minutes`` minutes from ``since`` on."""
    step = "prefect.deployments.steps.set_working_directory"
    return {
        "name": "rowvec",
        "pull": [{step: {"directory": str(folder)}}],
        "deployments": [
            deployment for pipeline in pipelines for deployment in _deployments(pipeline, every_minutes, since)
        ],
    }


def _deployments(pipeline: Pipeline, every_minutes: int, since: datetime) -> list[_Deployment]:
    interval = {"slug": "up", "interval": every_minutes * 60, "anchor_date": since.isoformat()}
    audit, prune = ({"slug": "up", "cron": cron, "timezone": "UTC"} for cron in ("15 5 * * *", "45 5 * * 0"))
    return [
        _deployment(pipeline, "sync", "Brings the vector table in step with its source.", interval),
        _deployment(pipeline, "audit", "Compares source, artifacts and vector table both ways.", audit),
        _deployment(pipeline, "prune", "Deletes what is old and no longer needed.", prune, apply=True),
        _deployment(pipeline, "rebuild", "Changes model, length or precision; put the new settings into the form."),
        _deployment(pipeline, "restore", "Builds the vector table from its artifacts alone."),
        _deployment(pipeline, "index", "Maintains the index; with tune, measures which one is best."),
    ]


def _deployment(
    pipeline: Pipeline, flow: str, description: str, schedule: dict[str, Any] | None = None, **parameters: Any
) -> _Deployment:
    return {
        "name": pipeline.name,
        "entrypoint": f"rowvec_flows.{flow}:{flow}",
        "description": description,
        "tags": ["rowvec", flow],
        # References stay unresolved, as in the file, because everybody who sees the UI can read the parameters.
        "parameters": {"pipeline": pipeline.model_dump(mode="json", exclude_none=True), **parameters},
        "schedules": [schedule] if schedule else [],
        "work_pool": {"name": POOL},
        # A late sync should still run; a second audit after a running one should not.
        "concurrency_limit": {"limit": 1, "collision_strategy": "ENQUEUE" if flow == "sync" else "CANCEL_NEW"},
    }
