"""A run that has nothing to do: a look at the queue of changes and at the ledger shows it, and no stage has to run."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

from rowvec.embedders.cache import opened_embedder
from rowvec.ledger.changes import Known, known, last_report, note_look
from rowvec.ledger.lease import open_owned
from rowvec.ledger.runs import Ending, Run, finish_run
from rowvec.pipeline import Pipeline
from rowvec.pipeline.references import resolve
from rowvec.runtime.telemetry import traced
from rowvec.stages.extract.open import open_source
from rowvec.stages.extract.request import Request
from rowvec.stages.report import PART, Check, SyncReport, record


def run(pipeline: Pipeline, run: Run) -> SyncReport | None:
    """The recorded report, if the run has nothing to do; None if the stages must run.

    There is nothing to do if the queue of changes is empty, no doubt stands against it, no whole comparison is due, and
    the run before was a good sync that has left settings, index and search functions as they are now.
    """
    return _looked(pipeline, run) if pipeline.source.is_queued else None


@traced("unchanged")
def _looked(pipeline: Pipeline, run: Run) -> SyncReport | None:
    began = time.monotonic()
    resolved = resolve(pipeline)
    identity = opened_embedder(resolved.embedder).identity
    with open_owned(resolved, run.lease, "rowvec unchanged") as connection:
        with connection.transaction():
            last = last_report(connection, (run.pipeline_id, run.run_id), pipeline, resolved)
            proved = known(connection, run.pipeline_id)
        if last is None or proved is None:
            return None
        request = Request(pipeline=resolved, identity=identity, pipeline_id=run.pipeline_id, run_id=run.run_id)
        queue = open_source(connection, resolved, identity, run.pipeline_id).at_rest(request, proved)
        if queue is None:
            return None
        now = time.monotonic()
        seconds = {"unchanged": round(now - began, 3), "total": round(now - run.started, 3)}
        report = _report(pipeline, run, proved, last, seconds)
        with connection.transaction():
            note_look(connection, run.pipeline_id, queue)
            checks = [asdict(check) for check in report.checks]
            finish_run(connection, run.run_id, Ending(state="succeeded", report=report.as_json(), checks=checks))
    record(report)
    return report


def _report(
    pipeline: Pipeline, run: Run, proved: Known, last: tuple[int, dict[str, Any]], seconds: dict[str, float]
) -> SyncReport:
    before, report = last
    return SyncReport(
        run_id=run.run_id,
        pipeline=pipeline.name,
        new=0,
        changed=0,
        metadata_only=0,
        deleted=0,
        unchanged=proved.rows,
        rejected=report["rejected"],
        embedded=0,
        reused=0,
        what=pipeline.what,
        tokens=0,
        cost_usd=0.0,
        pending=0,
        rows=proved.rows,
        consistent=True,
        k=pipeline.validation.recall.k,
        recall_at_k=None,
        checksum=proved.checksum,
        root=report.get("root"),
        certified_run=report.get("certified_run"),
        artifacts=0,
        manifest=None,
        checks=(
            Check(
                name=PART,
                ok=True,
                detail=f"0 queued keys were compared; the whole source was last compared at {proved.verified_at}, by "
                f"run {proved.verified_run}, and agreed",
            ),
            Check(
                name="nothing changed",
                ok=True,
                detail=f"settings, index and search functions are as run {before} left them, and it was consistent",
            ),
        ),
        seconds=seconds,
        waiting=0,
        verified_run=proved.verified_run,
    )
