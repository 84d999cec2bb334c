"""The stages that a run has once a round or once at all: what an orchestrator calls around those of its batches."""

from __future__ import annotations

import logging
import shutil
import time
from dataclasses import asdict, dataclass, replace
from typing import TypeVar

from rowvec.embedders.cache import opened_embedder
from rowvec.embedders.protocol import Embedder
from rowvec.errors import Inconsistent
from rowvec.index.sparsity import make_room
from rowvec.ledger import journal, pipelines, rejects
from rowvec.ledger.journal import Closing
from rowvec.ledger.pipelines import RunId
from rowvec.ledger.plans import Plan, open_plan
from rowvec.ledger.runs import Run, open_target
from rowvec.ledger.workdir import spool, spooled
from rowvec.pipeline import Pipeline
from rowvec.pipeline.parts import table_identifier
from rowvec.pipeline.references import resolve
from rowvec.postgres.vector_table import make_schema
from rowvec.runtime.progress import tell
from rowvec.runtime.telemetry import record, traced
from rowvec.sources.images.locations import open_places
from rowvec.sources.images.seen import forget_run, run_name
from rowvec.store.open import open_store
from rowvec.sync import load, validate
from rowvec.sync.batch import Batch
from rowvec.sync.batch_api import jobs
from rowvec.sync.batch_api.jobs import Collected
from rowvec.sync.extract.chunks import is_joined
from rowvec.sync.extract.stage import Request, extract
from rowvec.sync.images import upload
from rowvec.sync.images.lost import check_images, forget_lost_images, wanting_images
from rowvec.sync.index import Indexed, serve
from rowvec.sync.merge import Merged, compare, merge
from rowvec.sync.report import Check, RestoreReport, SyncReport, what_of

logger = logging.getLogger(__name__)

R = TypeVar("R", SyncReport, RestoreReport)

# Reading every vector of a large table back would cost more than the run did: beyond this many rows a run checks what
# it wrote itself, and the daily audit the rest.
_ALL_ROWS = 200_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One plan, its batches, and the merge that ended it."""

    plan: Plan
    batches: tuple[Batch, ...]
    merged: Merged
    images_again: int = 0
    """Those that were put into the store a second time, for it had lost them."""

    @property
    def seconds(self) -> tuple[tuple[str, float], ...]:
        """Time spent in the stages that are not a batch's."""
        return (("extract", self.plan.seconds), ("merge", self.merged.seconds))


@traced("extract")
def extract_rows(pipeline: Pipeline, run: Run, weight: int = 1) -> Plan:
    """Compare source and vector table; the plan is stored and waits for its batches to be worked on.

    ``weight``: how many times its usual least size a batch is to have.
    """
    started = time.monotonic()
    resolved = resolve(pipeline)
    identity = opened_embedder(resolved.embedder).identity
    with open_target(resolved, "rowvec extract") as connection:
        shows_images = resolved.source.kind == "images"
        if shows_images:
            forget_lost_images(connection, open_store(resolved.artifacts), pipeline.name)
        request = Request(
            pipeline=resolved,
            identity=identity,
            pipeline_id=run.pipeline_id,
            run_id=run.run_id,
            note_all_images=shows_images and any(wanting_images(connection, pipeline)),
            batch_weight=weight,
        )
        # Not in the extract's transaction, nor in the merge's: others may be making the same schema.
        make_schema(connection, table_identifier(pipeline.target.table)[0])
        plan = extract(connection, request)
        pipelines.keep_settings(connection, run.pipeline_id, pipeline)
        # Without a single row to embed, a first load still makes the (empty) vector table.
        if plan.batches or plan.direct:
            load.create_staging(connection, run.run_id, plan.table, plan.staging, direct=plan.direct)
        lost = wanting_images(connection, pipeline)[0] if shows_images else 0
    return replace(plan, lost_images=lost, seconds=time.monotonic() - started)


def upload_lost_images(pipeline: Pipeline, run_id: RunId) -> int:
    """Put images into the store again that has lost them; returns how many. Those of the plan are its batches'."""
    resolved = resolve(pipeline)
    if resolved.source.kind != "images":
        return 0
    with open_target(resolved, "rowvec images") as connection:
        plan = open_plan(connection, resolved, run_id)
        uploaded = upload.upload_lost_images(
            connection,
            open_store(resolved.artifacts),
            open_places(resolved.source, listed=False),
            plan.table,
            pipeline.name,
            lambda done, total: tell("images", "lost", done, total),
        )
        return uploaded.images


@traced("merge")
def merge_rows(pipeline: Pipeline, run_id: RunId) -> Merged:
    """One transaction, after which the vector table agrees with the source."""
    started = time.monotonic()
    resolved = resolve(pipeline)
    with open_target(resolved, "rowvec merge") as connection:
        plan = open_plan(connection, resolved, run_id)
        if said := make_room(connection, plan, resolved.index):
            logger.warning("%s.%s: %s", plan.table.schema, plan.table.name, said)
        merged = merge(connection, resolved, plan)
        if not is_joined(resolved):
            merged = compare(connection, resolved, plan, merged)
    return replace(merged, seconds=time.monotonic() - started)


@traced("index")
def index_rows(pipeline: Pipeline, run_id: RunId) -> Indexed:
    """See to it that the vector table has the index it is to have, and the search function that uses it."""
    resolved = resolve(pipeline)
    with open_target(resolved, "rowvec index") as connection:
        return serve(connection, open_plan(connection, resolved, run_id).table, resolved)


@traced("validate")
def validate_rows(pipeline: Pipeline, run: Run, rounds: list[Round], indexed: Indexed) -> SyncReport:
    """Check what must hold, write the manifest, and record the verdict in the ledger."""
    started = time.monotonic()
    resolved = resolve(pipeline)
    store = open_store(resolved.artifacts)
    with open_target(resolved, "rowvec validate") as connection:
        plan = open_plan(connection, resolved, run.run_id)
        merged = rounds[-1].merged
        checks = [
            *validate.check_merge(merged, of_files=resolved.source.kind != "postgres"),
            *validate.check_table(connection, plan.table, None if indexed.rows <= _ALL_ROWS else plan.run_id),
            validate.check_artifacts(connection, store, plan),
            *([check_images(connection, plan.table, pipeline)] if resolved.source.kind == "images" else []),
            *validate.check_serving(connection, plan.table, indexed.choice, indexed.recall, indexed.said),
        ]
        report = _report(pipeline, run, rounds, indexed, checks, opened_embedder(resolved.embedder))
        report = _with_jobs(report, jobs.unreported(connection, run.pipeline_id))
        report = replace(report, rejected=rejects.count(connection, run.pipeline_id))
        recorded = journal.record(connection, store, _closing(plan, report), spool(connection, plan.run_id))
        seconds = {**report.seconds, "validate": round(time.monotonic() - started, 3)}
        seconds["total"] = round(time.monotonic() - run.started, 3)
        report = replace(report, manifest=recorded and recorded.name, seconds=seconds)
        with connection.transaction():
            if recorded:
                recorded.tell(connection)
            jobs.report(connection, run.pipeline_id, run.run_id)
            pipelines.finish_run(
                connection,
                run.run_id,
                "succeeded" if report.consistent else "failed",
                report=report.as_json(),
                checks=[asdict(check) for check in checks],
                manifest=recorded and recorded.name,
                manifest_sha256=recorded and recorded.sha256,
            )
        shutil.rmtree(spooled(connection, run.run_id), ignore_errors=True)
    forget_run(run_name(run.run_id))
    record(report)
    return report


def conclude(report: R) -> R:
    """The report of a run that succeeded. Raises ``Inconsistent`` with it otherwise."""
    if report.consistent:
        return report
    first = report.failed_checks[0]
    rows = f" (rows {', '.join(first.rows[:5])})" if first.rows else ""
    raise Inconsistent(
        f"run {report.run_id} of {report.pipeline} is inconsistent: {first.name}: {first.detail}{rows}", report
    )


def _report(
    pipeline: Pipeline, run: Run, rounds: list[Round], indexed: Indexed, checks: list[Check], embedder: Embedder
) -> SyncReport:
    first, last = rounds[0].plan.counts, rounds[-1]
    batches = [batch for one in rounds for batch in one.batches]
    embedded, tokens = sum(b.embedded for b in batches), sum(b.tokens for b in batches)
    seconds: dict[str, float] = {}
    spent = [pair for one in rounds for pair in one.seconds] + [pair for batch in batches for pair in batch.seconds]
    for stage, value in [*spent, ("index", indexed.seconds)]:
        seconds[stage] = seconds.get(stage, 0.0) + value
    recall = next((check.value for check in checks if check.name == "recall"), None)
    return SyncReport(
        run_id=run.run_id,
        pipeline=pipeline.name,
        new=sum(one.plan.counts.new for one in rounds),
        changed=sum(one.plan.counts.changed for one in rounds),
        metadata_only=sum(one.plan.counts.metadata_only for one in rounds),
        deleted=sum(one.plan.counts.deleted for one in rounds),
        unchanged=first.unchanged,
        rejected=0,
        embedded=embedded,
        reused=sum(b.rows for b in batches) - embedded,
        what=what_of(pipeline),
        images=sum(b.images for b in batches) + sum(one.images_again for one in rounds),
        tokens=tokens,
        cost_usd=embedder.cost(tokens),
        pending=last.merged.pending,
        rows=last.merged.table_rows,
        consistent=all(check.ok for check in checks),
        k=pipeline.validation.recall.k,
        recall_at_k=recall,
        checksum=last.merged.table_checksum,
        artifacts=sum(b.artifact is not None for b in batches),
        manifest=None,
        checks=tuple(checks),
        seconds={stage: round(value, 3) for stage, value in seconds.items()},
    )


def _with_jobs(report: SyncReport, brought: Collected) -> SyncReport:
    """The report with what jobs have answered since the last one, which its batches found among the answers."""
    return replace(
        report,
        embedded=report.embedded + brought.texts,
        reused=max(0, report.reused - brought.texts),
        tokens=report.tokens + brought.tokens,
        cost_usd=report.cost_usd + brought.usd,
    )


def _closing(plan: Plan, report: SyncReport) -> Closing:
    """What the run's manifest is to say."""
    names = ("new", "changed", "metadata_only", "deleted", "unchanged", "rows", "rejected")
    return Closing(
        run_id=plan.run_id,
        pipeline_id=plan.pipeline_id,
        pipeline=report.pipeline,
        table=plan.table,
        identity=plan.identity,
        counts={name: getattr(report, name) for name in names},
        checksum=report.checksum,
        embedded=report.embedded,
        tokens=report.tokens,
        cost_usd=report.cost_usd,
    )
