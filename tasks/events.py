"""Events that a run sends through Prefect to automations, dashboards and other flows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

from prefect.events import emit_event
from rowvec_tasks.artifacts import show_failure
from rowvec_tasks.names import source_asset, vector_asset

from rowvec.errors import Inconsistent, RowvecError
from rowvec.pipeline import Pipeline
from rowvec.runtime.display import shown
from rowvec.stages.alarms import Alarm, of_error, of_sync, of_waiting
from rowvec.stages.report import SyncReport


def tell_sync(pipeline: Pipeline, report: SyncReport) -> None:
    """Send the alarms of a sync, and the event that the vector table was materialised from its source."""
    tell(pipeline, of_sync(report))
    outcome = "succeeded" if report.consistent else "failed"
    # The event that @materialize sends. The decorator needs the assets when its module is loaded; a pipeline names its
    # assets only now.
    emit_event(
        event=f"prefect.asset.materialization.{outcome}",
        resource={"prefect.resource.id": vector_asset(pipeline), "prefect.resource.name": pipeline.target.table},
        related=[
            {"prefect.resource.id": source_asset(pipeline), "prefect.resource.role": "asset"},
            {"prefect.resource.id": "rowvec", "prefect.resource.role": "asset-materialized-by"},
        ],
        payload={"rows": report.rows, "checksum": report.checksum, "run_id": report.run_id},
    )


def tell_late(pipeline: Pipeline) -> None:
    """Send the alarm that changes wait for longer than the pipeline allows, if they do."""
    if pipeline.freshness.alarm_after is not None:
        from rowvec.operations.changes import look  # late: few pipelines have this alarm

        found = look(pipeline)
        tell(pipeline, of_waiting(pipeline, found.waiting, found.oldest_seconds))


def tell_failure(pipeline: Pipeline, error: RowvecError) -> None:
    """Send the alarms of an error, and replace the pipeline's summary by one that says why the run failed."""
    tell(pipeline, of_error(error))
    # An inconsistent run has already published its report, with the checks that failed.
    if not isinstance(error, Inconsistent):
        show_failure(pipeline, error)


def tell(pipeline: Pipeline, alarms: Iterable[Alarm]) -> None:
    """Send one event per alarm, of the resource ``rowvec.pipeline.NAME``.

    A generation that a rebuild builds, ``NAME.2``, is the resource ``rowvec.generation.NAME.2``. It is not synced under
    that name for long, so an automation that watches for pipelines without a sync must not see it as a pipeline.
    """
    resource = "generation" if "." in pipeline.name else "pipeline"
    for alarm in alarms:
        emit_event(
            event=alarm.name,
            resource={
                "prefect.resource.id": f"rowvec.{resource}.{pipeline.name}",
                "prefect.resource.name": pipeline.name,
                "rowvec.table": pipeline.target.table,
            },
            payload={name: _shown(value) for name, value in {"sentence": alarm.sentence, **alarm.payload}.items()},
        )


def _shown(value: Any) -> Any:
    """A payload whose texts hold no character that the terminal of a subscriber would obey."""
    if isinstance(value, str):
        return shown(value)
    if isinstance(value, list):
        return [_shown(one) for one in cast("list[Any]", value)]
    if isinstance(value, dict):
        return {name: _shown(one) for name, one in cast("dict[str, Any]", value).items()}
    return value
