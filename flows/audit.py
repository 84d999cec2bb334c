"""Compares source, artifacts and vector table both ways, and repairs what it finds if asked to."""

from __future__ import annotations

from prefect import flow
from rowvec_flows.sync import sync
from rowvec_tasks import jobs
from rowvec_tasks.artifacts import show_audit
from rowvec_tasks.events import tell
from rowvec_tasks.flow_body import job, run_name
from rowvec_tasks.given import PipelineOrFile, loaded
from rowvec_tasks.hooks import clear_up

from rowvec.errors import raise_if_awaiting
from rowvec.operations.audit import AuditReport, conclude_audit


@flow(
    name="audit",
    description=__doc__,
    flow_run_name=run_name,
    persist_result=False,
    on_cancellation=[clear_up],
    on_crashed=[clear_up],
)
@job
def audit(pipeline: PipelineOrFile, repair: bool = False) -> AuditReport:
    """Compare source, artifacts and vector table both ways; the run fails if they disagree.

    Raises ``Inconsistent`` if something is wrong, or is still wrong after the repair.

    Args:
        pipeline: The pipeline file: a path on the worker, or an https URL. It is read when the run starts.
        repair: Whether to repair what is found, from artifacts first; only vectors that exist nowhere are paid for.
    """
    pipeline = loaded(pipeline)
    found, repaired = (jobs.prepare_repair if repair else jobs.audit)(pipeline), 0
    if repair and not found.is_finished:
        raise_if_awaiting(sync(pipeline, cause="repair"))
        left = jobs.audit(pipeline)
        repaired, found = found.total - left.total, left
    report = AuditReport(pipeline=pipeline.name, found=found, repaired=repaired)
    show_audit(report)
    tell(pipeline, report.alarms())
    return conclude_audit(report)
