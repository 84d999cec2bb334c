"""The validate stage: the checks that must hold before a run succeeds, and the verdict."""

from __future__ import annotations

import shutil
import time
from dataclasses import asdict, replace

from psycopg import sql

from rowvec.embedders.cache import opened_embedder
from rowvec.index.build_memory import index_and_buffers, small_buffers
from rowvec.index.checks import VectorCheck, check_index, check_vectors
from rowvec.index.recall import RecallReport, remedy
from rowvec.ledger import certificates, journal, rejects, reuse
from rowvec.ledger.changes import note_served, what_waits
from rowvec.ledger.journal import Closing, unrecorded
from rowvec.ledger.marked_store import standing
from rowvec.ledger.pipelines import PipelineId
from rowvec.ledger.plans import Plan, within_scope
from rowvec.ledger.runs import Ending, Run, finish_run
from rowvec.ledger.workdir import make_workdir, workdir
from rowvec.pipeline import Pipeline
from rowvec.postgres.connection import Connection, expect_few_keys
from rowvec.postgres.vector_index import IndexChoice
from rowvec.postgres.vector_table import VectorTable
from rowvec.runtime.figures import counted
from rowvec.runtime.telemetry import traced
from rowvec.sources.images.seen import forget_run, run_name
from rowvec.sources.row_security import restriction
from rowvec.stages.batch import Batch
from rowvec.stages.batch_api import jobs
from rowvec.stages.images.lost import check_images
from rowvec.stages.index import Indexed
from rowvec.stages.merge import Merged, Round
from rowvec.stages.report import MEMORY, PART, QUEUE, ROW_SECURITY, Check, SyncReport, record
from rowvec.stages.work import Work, open_stage
from rowvec.store.protocol import Store

# Reading every vector of a large table would cost more than the run did. Above this many rows a run checks the vectors
# that it wrote, and the daily audit checks the others.
_ALL_ROWS = 200_000


def check_merge(merged: Merged, *, of_files: bool = False) -> list[Check]:
    """Check that the vector table agrees with the source, by keys, by count and by checksum.

    ``of_files``: the source is files, which change only if they are replaced.
    """
    why = "the source's files were replaced while the run read them; " if of_files else ""
    checks = [
        Check(
            name="nothing missing",
            ok=not merged.missing,
            detail="every planned row has its vector"
            if not merged.missing
            else f"{counted(len(merged.missing), 'rows have', 'row has')} no vector for the present content; {why}run "
            "rowvec sync again",
            rows=merged.missing[:100],
        )
    ]
    if merged.source_rows is not None:
        same = merged.source_rows == merged.table_rows
        checks.append(
            Check(
                name="counts",
                ok=same,
                detail=f"the source has {merged.source_rows:,} rows to embed, the vector table {merged.table_rows:,}",
            )
        )
        checks.append(
            Check(
                name="checksum",
                ok=merged.source_checksum == merged.table_checksum,
                detail="keys and fingerprints of source and vector table agree: none stale, none orphaned"
                if merged.source_checksum == merged.table_checksum
                else "keys and fingerprints of source and vector table differ; rowvec audit names the rows",
            )
        )
    return checks


def check_removed(connection: Connection, pipeline_id: PipelineId) -> Check:
    """Check that the database has removed each outdated vector: a foreign key of the user's may refuse it."""
    left = rejects.not_removed(connection, pipeline_id)
    if left is None:
        return Check(name="nothing outdated", ok=True, detail="every outdated vector was removed")
    return Check(
        name="nothing outdated",
        ok=False,
        detail=f"{counted(left.count, 'outdated rows are', 'outdated row is')} still in the vector table, because the "
        f"database refuses the removal: {left.detail}; everything else is in step. Fix the constraint or trigger and "
        "run again",
        rows=left.keys,
    )


def check_table(
    connection: Connection, table: VectorTable, run_id: int | None, part: sql.Composable | None = None
) -> list[Check]:
    """Check the vectors themselves: all of them, or those that the given run wrote, or those of a part of the table."""
    return [_check(found) for found in check_vectors(connection, table, run_id=run_id, part=part)]


def check_written(work: Work, rows: int) -> list[Check]:
    """Check the vectors that the run wrote, and all others too if they are few."""
    plan = work.plan
    if plan.of_part:
        # The keys that no manifest covers yet: what the run has written, in all its rounds.
        written = within_scope(plan.table, unrecorded(plan.pipeline_id))
        with work.connection.transaction():
            expect_few_keys(work.connection)
            return check_table(work.connection, plan.table, None, written)
    return check_table(work.connection, plan.table, None if rows <= _ALL_ROWS else plan.run_id)


def check_queue(plans: list[Plan]) -> list[Check]:
    """Say what the rounds of a run compared; and whether the queue of changes missed something, which is an alarm."""
    found = [plan.queued for plan in plans if plan.queued is not None]
    if not found:
        return []
    queued = next((one for one in found if one.whole), None)
    if queued is None:
        keys, proved = sum(one.keys for one in found), found[0]
        detail = (
            f"{counted(keys, 'queued keys were', 'queued key was')} compared; the whole source was last compared at "
            f"{proved.verified_at}, by run {proved.verified_run}, and agreed"
        )
        return [Check(name=PART, ok=True, detail=detail)]
    detail = f"the whole source was compared: {queued.why}"
    if queued.missed:
        detail += (
            f"; the queue of changes had missed {counted(queued.missed, 'rows')}; this run has made their vectors "
            "right, but somebody writes to the source past its triggers, or has edited the vector table"
        )
    return [Check(name=QUEUE, ok=True, detail=detail, rows=queued.missed_keys, value=queued.missed)]


def check_artifacts(connection: Connection, store: Store, plan: Plan) -> Check:
    """Check that every artifact of this run is in the store and unchanged."""
    written = reuse.artifacts_of(connection, plan.run_id)
    lost = [a.name for a in written if store.checksum(a.name) != a.sha256]
    detail = f"{counted(len(written), 'artifacts of this run are', 'artifact of this run is')} in the store"
    if lost:
        detail = f"{counted(len(lost), 'artifacts are', 'artifact is')} missing from the store or changed there: "
        detail += f"{', '.join(lost[:3])}; rowvec audit --repair writes what is lost"
    return Check(name="artifacts", ok=not lost, detail=detail)


def check_serving(
    connection: Connection,
    table: VectorTable,
    choice: IndexChoice,
    recall: RecallReport | None,
    notes: tuple[str, ...] = (),
) -> list[Check]:
    """Check that the index is valid, is used, and has the required recall; ``notes``: what its upkeep found and did."""
    kept = [Check(name="index_kept_fit", ok=True, detail="; ".join(notes))] if notes else []
    if recall is None and choice.kind != "none":
        unmeasured = "not measured by this run: the next comparison of the whole source measures it"
        known = Check(name="recall", ok=True, detail=unmeasured)
        return [*(_check(found) for found in check_index(connection, table, choice)), *kept, known]
    if recall is None:
        return [Check(name="index", ok=True, detail=f"none is needed: {choice.reason}"), *kept]
    checks = [*(_check(found) for found in check_index(connection, table, choice)), *kept]
    detail = recall.note
    if recall.recall is not None:
        detail = (
            f"recall@{recall.k} {recall.recall:.3f} (95 % interval {recall.low:.3f} to {recall.high:.3f}, "
            f"{recall.queries} queries), at least {recall.at_least} wanted"
        )
        detail += f"; {recall.note}" if recall.note else ""
    if not recall.passed:
        detail += f"; {remedy(choice)}"
    value = None if recall.recall is None else round(recall.recall, 4)
    return [*checks, Check(name="recall", ok=recall.passed, detail=detail, value=value)]


def check_memory(connection: Connection, rounds: list[Round]) -> list[Check]:
    """Say whether the server's memory is too small for the index, and what a vector that is inserted costs there."""
    # A first load writes before there is an index.
    written = [one.merged for one in rounds if not one.plan.direct]
    vectors, seconds = sum(one.upserted for one in written), sum(one.seconds for one in written)
    cost = round(1000 * seconds / vectors, 2) if vectors else None
    sentence = small_buffers(*index_and_buffers(connection, rounds[-1].plan.table.identifier), cost)
    return [Check(name=MEMORY, ok=True, detail=sentence, value=cost)] if sentence else []


def check_store(connection: Connection, store: Store, pipeline_name: str) -> list[Check]:
    """Say whether another database writes to the same store."""
    sentence = standing(connection, store, pipeline_name).sentence()
    return [Check(name="store", ok=True, detail=sentence)] if sentence else []


def check_row_security(connection: Connection, pipeline: Pipeline) -> list[Check]:
    """Say whether policies of the source decide which rows the run was shown."""
    sentence = restriction(connection, pipeline)
    return [Check(name=ROW_SECURITY, ok=True, detail=sentence)] if sentence else []


def _check(found: VectorCheck) -> Check:
    keys = tuple("(" + ", ".join(key) + ")" for key in found.rows)
    detail = found.detail if found.passed else f"{counted(found.count, 'rows fail', 'row fails')} it: {found.detail}"
    return Check(name=found.name, ok=found.passed, detail=detail, rows=keys)


@traced("validate")
def run(pipeline: Pipeline, run: Run, rounds: list[Round], indexed: Indexed) -> SyncReport:
    """Check what must hold, write the manifest, and record the verdict in the ledger."""
    started = time.monotonic()
    with open_stage(pipeline, run, "validate") as work:
        connection, plan = work.connection, work.plan
        report = _report(work, run, rounds, indexed)
        recorded = journal.record(connection, work.store, _closing(plan, report), make_workdir(connection, plan.run_id))
        seconds = {**report.seconds, "validate": round(time.monotonic() - started, 3)}
        seconds["total"] = round(time.monotonic() - run.started, 3)
        report = replace(report, manifest=recorded and recorded.name, seconds=seconds)
        with connection.transaction():
            if recorded:
                recorded.confirm(connection)
            if last := certificates.newest(connection, run.pipeline_id):
                root = last.certificate.root if last.is_current else None
                report = replace(report, root=root, certified_run=last.certificate.run_id)
            jobs.report(connection, run.pipeline_id, run.run_id)
            if plan.queued and report.consistent:
                note_served(connection, run.pipeline_id, work.pipeline)
            ending = Ending(
                state="succeeded" if report.consistent else "failed",
                report=report.as_json(),
                checks=[asdict(check) for check in report.checks],
                manifest=recorded and recorded.name,
                manifest_sha256=recorded and recorded.sha256,
            )
            finish_run(connection, run.run_id, ending)
        shutil.rmtree(workdir(connection, run.run_id), ignore_errors=True)
    forget_run(run_name(run.run_id))
    record(report)
    return report


def _checks(work: Work, rounds: list[Round], indexed: Indexed) -> list[Check]:
    connection, table = work.connection, work.plan.table
    return [
        check_removed(connection, work.plan.pipeline_id),
        *check_merge(rounds[-1].merged, of_files=work.pipeline.source.kind != "postgres"),
        *check_written(work, indexed.rows),
        *check_queue([one.plan for one in rounds]),
        check_artifacts(connection, work.store, work.plan),
        *check_store(connection, work.store, work.pipeline.name),
        *check_row_security(connection, work.pipeline),
        *([check_images(connection, table, work.pipeline)] if work.pipeline.what == "images" else []),
        *check_memory(connection, rounds),
        *check_serving(connection, table, indexed.choice, indexed.recall, indexed.notes),
    ]


def _report(work: Work, run: Run, rounds: list[Round], indexed: Indexed) -> SyncReport:
    plans = [one.plan.counts for one in rounds]
    main = _most_telling(rounds)
    merged = rounds[-1].merged
    checks = [*_checks(work, rounds, indexed), *_told_of_empty(main.plan)]
    batches = [batch for one in rounds for batch in one.batches]
    # What Batch API jobs have answered since the last report; the batches found it among the answers, as reused.
    of_jobs = jobs.unreported(work.connection, run.pipeline_id)
    embedded, tokens = sum(b.embedded for b in batches), sum(b.tokens for b in batches)
    consistent, queued = all(check.ok for check in checks), rounds[-1].plan.queued
    waiting = what_waits(work.connection, run.pipeline_id) if queued else None
    return SyncReport(
        run_id=run.run_id,
        pipeline=work.pipeline.name,
        new=sum(counts.new for counts in plans),
        changed=sum(counts.changed for counts in plans),
        metadata_only=sum(counts.metadata_only for counts in plans),
        deleted=sum(counts.deleted for counts in plans),
        unchanged=plans[0].unchanged,
        empty=main.plan.counts.empty,
        rejected=rejects.count_rejects(work.connection, run.pipeline_id),
        embedded=embedded + of_jobs.texts,
        reused=max(0, sum(b.rows for b in batches) - embedded - of_jobs.texts),
        what=work.pipeline.what,
        images=sum(b.images for b in batches) + sum(one.images_again for one in rounds),
        tokens=tokens + of_jobs.tokens,
        cost_usd=opened_embedder(work.pipeline.embedder).cost(tokens) + of_jobs.usd,
        pending=merged.pending,
        rows=merged.table_rows,
        consistent=consistent,
        k=work.pipeline.validation.recall.k,
        recall_at_k=next((check.value for check in checks if check.name == "recall"), None),
        checksum=merged.table_checksum,
        artifacts=sum(b.artifact is not None for b in batches),
        manifest=None,
        checks=tuple(checks),
        seconds=_seconds(rounds, batches, indexed),
        waiting=waiting and waiting[0],
        oldest_seconds=waiting and waiting[1],
        verified_run=queued.verified_run if queued and not queued.whole else run.run_id if consistent else None,
        missed_by_queue=next(
            (one.plan.queued.missed for one in rounds if one.plan.queued and one.plan.queued.whole), None
        ),
    )


def _most_telling(rounds: list[Round]) -> Round:
    """The last round that compared the whole source, or else the first: the others saw what changed since."""
    return next((one for one in reversed(rounds) if one.plan.scope is None), rounds[0])


def _told_of_empty(plan: Plan) -> list[Check]:
    """That rows have no vector because they have no content: right, and perhaps not what somebody expects."""
    rows = plan.counts.empty
    if not rows:
        return []
    which = "of the source" if plan.scope is None else "of those that were compared"
    have = counted(rows, f"rows {which} have", f"row {which} has")
    detail = f"{have} no content, and so no vector; source.empty says what happens to such rows"
    return [Check(name="empty", ok=True, detail=detail, value=float(rows))]


def _seconds(rounds: list[Round], batches: list[Batch], indexed: Indexed) -> dict[str, float]:
    """Seconds by stage, added up over rounds and batches."""
    spent = [pair for one in rounds for pair in one.seconds] + [pair for batch in batches for pair in batch.seconds]
    seconds: dict[str, float] = {}
    for stage, value in [*spent, ("index", indexed.seconds)]:
        seconds[stage] = seconds.get(stage, 0.0) + value
    return {stage: round(value, 3) for stage, value in seconds.items()}


def _closing(plan: Plan, report: SyncReport) -> Closing:
    """What the run's manifest records."""
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
        compared_all=not plan.of_part,
    )
