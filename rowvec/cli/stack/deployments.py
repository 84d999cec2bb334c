"""What ``rowvec up`` deploys: for each pipeline a sync by schedule, its upkeep, and what is run by hand."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

from rowvec.pipeline import Pipeline

POOL = "rowvec"

_Deployment = dict[str, Any]


def prefect_file(pipelines: list[Pipeline], folder: Path, every_minutes: int, since: datetime) -> dict[str, Any]:
    """The content of a ``prefect.yaml``; runs work in ``folder``, and syncs are due in steps from ``since`` on."""
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
        _deployment(pipeline, "prune", "Deletes what is old and not needed.", prune, apply=True),
        _deployment(pipeline, "rebuild", "Another model, length or precision, with the new settings in the form."),
        _deployment(pipeline, "restore", "The vector table from its artifacts alone."),
        _deployment(pipeline, "index", "Sees to the index; with tune, measures which one is best."),
    ]


def _deployment(
    pipeline: Pipeline, flow: str, description: str, schedule: dict[str, Any] | None = None, **parameters: Any
) -> _Deployment:
    return {
        "name": pipeline.name,
        "entrypoint": f"rowvec_flows.{flow}:{flow}",
        "description": description,
        "tags": ["rowvec", flow],
        # References unresolved, as in the file: parameters can be read by everybody who sees the UI.
        "parameters": {"pipeline": pipeline.model_dump(mode="json", exclude_none=True), **parameters},
        "schedules": [schedule] if schedule else [],
        "work_pool": {"name": POOL},
        # A sync that is late is worth waiting for; an audit on top of an audit is not.
        "concurrency_limit": {"limit": 1, "collision_strategy": "ENQUEUE" if flow == "sync" else "CANCEL_NEW"},
    }
