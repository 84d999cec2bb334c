"""What a run tells whoever listens to Prefect's events: automations, dashboards, other flows."""

from __future__ import annotations

from collections.abc import Iterable

from prefect.events import emit_event
from rowvec_tasks.artifacts import show_failure
from rowvec_tasks.names import source_asset, vector_asset

from rowvec.errors import Inconsistent, RowvecError
from rowvec.pipeline import Pipeline
from rowvec.sync.alarms import Alarm, of_error, of_sync
from rowvec.sync.report import SyncReport


def tell_sync(pipeline: Pipeline, report: SyncReport) -> None:
    """Send what came of a sync, and that the vector table was made anew from its source."""
    tell(pipeline, of_sync(report))
    came = "succeeded" if report.consistent else "failed"
    # What @materialize sends for a task whose assets are known when its module is loaded; ours are known by now.
    emit_event(
        event=f"prefect.asset.materialization.{came}",
        resource={"prefect.resource.id": vector_asset(pipeline), "prefect.resource.name": pipeline.target.table},
        related=[
            {"prefect.resource.id": source_asset(pipeline), "prefect.resource.role": "asset"},
            {"prefect.resource.id": "rowvec", "prefect.resource.role": "asset-materialized-by"},
        ],
        payload={"rows": report.rows, "checksum": report.checksum, "run_id": report.run_id},
    )


def tell_failure(pipeline: Pipeline, error: RowvecError) -> None:
    """Send what an error is a sign of, and let the pipeline's summary say that it failed, and why."""
    tell(pipeline, of_error(error))
    # An inconsistent run has shown its report, with the checks that failed.
    if not isinstance(error, Inconsistent):
        show_failure(pipeline, error)


def tell(pipeline: Pipeline, alarms: Iterable[Alarm]) -> None:
    """Send one event an alarm, of the resource ``rowvec.pipeline.NAME``.

    A generation that a rebuild builds, ``NAME.2``, is ``rowvec.generation.NAME.2``: nobody syncs it again by that name,
    and whoever is told when a pipeline is not synced any more need not hear of it.
    """
    what = "generation" if "." in pipeline.name else "pipeline"
    for alarm in alarms:
        emit_event(
            event=alarm.name,
            resource={
                "prefect.resource.id": f"rowvec.{what}.{pipeline.name}",
                "prefect.resource.name": pipeline.name,
                "rowvec.table": pipeline.target.table,
            },
            payload={"sentence": alarm.sentence, **alarm.payload},
        )
