"""What ``rowvec up`` deploys per pipeline: scheduled syncs and maintenance, and the flows that are run by hand."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

from rowvec.pipeline import Pipeline

POOL = "rowvec"

_Deployment = dict[str, Any]


def prefect_file(files: dict[Path, Pipeline], folder: Path, every_minutes: int, since: datetime) -> dict[str, Any]:
    """The content of a ``prefect.yaml``: runs read their pipeline file when they start, and have ``folder`` as working
    directory; syncs are due every ``every_minutes`` minutes from ``since`` on."""
    step = "prefect.deployments.steps.set_working_directory"
    return {
        "name": "rowvec",
        "pull": [{step: {"directory": str(folder)}}],
        "deployments": [
            deployment
            for file, pipeline in files.items()
            for deployment in _deployments(str(file.absolute()), pipeline, every_minutes, since)
        ],
    }


def _deployments(file: str, pipeline: Pipeline, every_minutes: int, since: datetime) -> list[_Deployment]:
    name = pipeline.name
    interval = {"slug": "up", "interval": every_minutes * 60, "anchor_date": since.isoformat()}
    crons = ("15 5 * * *", "45 5 * * 0", "15 6 * * 0")
    audit, prune, forget = ({"slug": "up", "cron": cron, "timezone": "UTC"} for cron in crons)
    return [
        _deployment(file, name, "sync", interval),
        *(_watcher(file, name, since) if pipeline.source.is_queued else ()),
        _deployment(file, name, "audit", audit),
        _deployment(file, name, "prune", prune, apply=True),
        *([_deployment(file, name, "forget", forget)] if pipeline.artifacts.erase_deleted_after else []),
        _deployment(file, name, "rebuild"),
        _deployment(file, name, "restore"),
        _deployment(file, name, "index"),
    ]


def _watcher(file: str, name: str, since: datetime) -> list[_Deployment]:
    """Each hour a watcher takes over from the last one, so that one that was killed is replaced."""
    hourly = {"slug": "up", "interval": 3600, "anchor_date": since.isoformat()}
    made = _deployment(file, name, "watch", hourly)
    return [{**made, "parameters": {"pipelines": [file], "minutes": 59.8}}]


def _deployment(
    file: str, name: str, flow: str, schedule: dict[str, Any] | None = None, **parameters: Any
) -> _Deployment:
    return {
        "name": name,
        "entrypoint": f"rowvec_flows.{flow}:{flow}",
        "tags": ["rowvec", flow, f"pipeline:{name}"],
        "parameters": {"pipeline": file, **parameters},
        "schedules": [schedule] if schedule else [],
        "work_pool": {"name": POOL},
        # A late sync should still run; a second audit after a running one should not.
        "concurrency_limit": {
            "limit": 1,
            "collision_strategy": "ENQUEUE" if flow in ("sync", "watch") else "CANCEL_NEW",
        },
    }
