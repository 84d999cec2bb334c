"""The order of a sync's stages, written once: the flow, the cluster, tests and benchmarks all follow it.

Each caller says how a stage is run: ``IN_PROCESS`` calls it, the flow runs it as a Prefect task.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import ParamSpec, Protocol, TypeVar

from rowvec.ledger.generations import effective
from rowvec.ledger.plans import Plan
from rowvec.ledger.runs import Run, running
from rowvec.pipeline import Pipeline
from rowvec.postgres.kept import connections_kept
from rowvec.runtime.figures import counted
from rowvec.runtime.memory import ONE_BATCH, require
from rowvec.runtime.progress import under_way
from rowvec.stages import binarize, embed, index, load, merge, story, unchanged, upload, validate
from rowvec.stages.batch import Batch
from rowvec.stages.batch_api import submit
from rowvec.stages.batch_api.submit import Awaited, may_have_jobs
from rowvec.stages.extract import stage as extract
from rowvec.stages.images import lost
from rowvec.stages.images import upload as images
from rowvec.stages.index import Indexed
from rowvec.stages.merge import Merged, Round
from rowvec.stages.report import SyncReport, conclude

P = ParamSpec("P")
R = TypeVar("R")

# Rows written while a round runs are read by the next round; a source that never rests is left to the next run.
MAX_ROUNDS = 3

CHANGES = "changes"
"""The cause of a run that a watcher starts because rows have changed."""

logger = logging.getLogger(__name__)
"""Says at level INFO what each stage did, in one line per stage and round."""


class Attempt(Protocol):
    """Calls a stage, and perhaps calls it again if it fails."""

    def __call__(self, stage: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """What the stage returns."""
        ...


def call_once(stage: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
    """An ``Attempt`` that raises the first error."""
    return stage(*args, **kwargs)


class BatchStage(Protocol):
    """The module of a stage that works on one batch."""

    def run(self, pipeline: Pipeline, batch: Batch) -> Batch:
        """Do the stage's work on a batch; returns the batch with the stage's figures."""
        ...


BATCH_STAGES: dict[str, BatchStage] = {
    "images": images,
    "embed": embed,
    "binarize": binarize,
    "upload": upload,
    "load": load,
}
"""Name and module of each stage of a batch, first to last."""

WHOLE = ("extract", "merge", "validate")
"""Stages whose progress is only that they have begun or are done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stages:
    """How a caller runs each stage of a round."""

    unchanged: Callable[[Pipeline, Run], SyncReport | None]
    """Before all others: the report, if nothing has to be done."""
    extract: Callable[[Pipeline, Run], Plan]
    submit_jobs: Callable[[Pipeline, Run], Awaited]
    lost_images: Callable[[Pipeline, Run], int]
    batches: Callable[[Pipeline, Run, int], list[Batch]]
    """Takes so many batches through ``batch_stages``, in any order and at any time, and returns them all."""
    merge: Callable[[Pipeline, Run], Merged]
    index: Callable[[Pipeline, Run], Indexed]
    validate: Callable[[Pipeline, Run, list[Round], Indexed], SyncReport]


def batch_stages(pipeline: Pipeline) -> list[str]:
    """The names of the stages that a batch of this pipeline goes through, first to last."""
    return [name for name in BATCH_STAGES if name != "images" or pipeline.what == "images"]


def through_all_stages(pipeline: Pipeline, run: Run, number: int, attempt: Attempt = call_once) -> Batch:
    """Take one batch through all its stages in this process; ``attempt`` calls each of them."""
    batch = Batch.of(run, number)
    for name in batch_stages(pipeline):
        batch = attempt(BATCH_STAGES[name].run, pipeline, batch)
    return batch


def bring_up_to_date(pipeline: Pipeline, run: Run, stages: Stages) -> Round:
    """One round: a plan, its batches through all their stages, and a merge."""
    with under_way("extract", "rows"):
        plan = stages.extract(pipeline, run)
    logger.info(story.of_extract(plan, pipeline.what))
    if may_have_jobs(pipeline):
        stages.submit_jobs(pipeline, run).conclude(pipeline)
    again = stages.lost_images(pipeline, run) if plan.lost_images else 0
    done = stages.batches(pipeline, run, plan.batches)
    for line in story.of_batches(done, batch_stages(pipeline), pipeline.what):
        logger.info(line)
    with under_way("merge", "rows"):
        merged = stages.merge(pipeline, run)
    logger.info(story.of_merge(merged))
    return Round(plan=plan, batches=tuple(done), merged=merged, images_again=again)


def through_all_rounds(pipeline: Pipeline, run: Run, stages: Stages) -> SyncReport:
    """A whole sync within a run: rounds until nothing is pending, then the index and the verdict.

    If the source has a queue of changes, and a look shows that nothing has to be done, the verdict comes at once.
    """
    if (report := stages.unchanged(pipeline, run)) is not None:
        logger.info(story.of_unchanged(report))
        return report
    rounds = [bring_up_to_date(pipeline, run, stages)]
    while rounds[-1].merged.pending and len(rounds) < MAX_ROUNDS:
        rounds.append(bring_up_to_date(pipeline, run, stages))
    indexed = stages.index(pipeline, run)
    logger.info(story.of_index(indexed))
    with under_way("validate", "result"):
        report = stages.validate(pipeline, run, rounds, indexed)
    logger.info(story.of_validate(report))
    return report


def _one_by_one(pipeline: Pipeline, run: Run, count: int, attempt: Attempt) -> list[Batch]:
    # Before the first text is paid for: the system would kill the process in the middle of its work.
    if count:
        require(ONE_BATCH, f"a sync of {counted(count, 'batches', 'batch')}")
    return [through_all_stages(pipeline, run, number, attempt) for number in range(count)]


def in_process(attempt: Attempt = call_once) -> Stages:
    """Every stage called in this process by ``attempt``, one after the other, without an orchestrator."""
    # Each looks its stage up when it is called, so that a stage that was replaced is the one that runs.
    return Stages(
        unchanged=lambda pipeline, run: attempt(unchanged.run, pipeline, run),
        extract=lambda pipeline, run: attempt(extract.run, pipeline, run),
        submit_jobs=lambda pipeline, run: attempt(submit.run, pipeline, run),
        lost_images=lambda pipeline, run: attempt(lost.run, pipeline, run),
        batches=lambda pipeline, run, count: _one_by_one(pipeline, run, count, attempt),
        merge=lambda pipeline, run: attempt(merge.run, pipeline, run),
        index=lambda pipeline, run: attempt(index.run, pipeline, run),
        validate=lambda pipeline, run, rounds, indexed: attempt(validate.run, pipeline, run, rounds, indexed),
    )


IN_PROCESS = in_process()
"""Every stage called once."""


def sync(pipeline: Pipeline, cause: str, stages: Stages = IN_PROCESS) -> SyncReport:
    """One run of a pipeline, from its start in the ledger to its verdict.

    Raises ``PipelineBusy`` if another run holds the pipeline, ``Inconsistent`` with the report if a check failed, and
    what the stages raise.
    """
    with connections_kept():
        pipeline = effective(pipeline)
        with running(pipeline, cause) as run:
            return conclude(through_all_rounds(pipeline, run, stages))
