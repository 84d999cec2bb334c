"""The main job: one run brings a vector table in step with its source, and proves it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, ParamSpec, TypeVar, cast

from prefect import flow
from prefect.futures import PrefectFuture, wait
from prefect.task_runners import ThreadPoolTaskRunner
from rowvec_tasks import stages
from rowvec_tasks.artifacts import show
from rowvec_tasks.cancellation import SyncCancelled, asking, cancellable
from rowvec_tasks.engines import chosen_cluster, on_cluster
from rowvec_tasks.events import tell_late, tell_sync
from rowvec_tasks.flow_body import cause_of, job_with_policy, number_run, run_name
from rowvec_tasks.given import PipelineOrFile, loaded
from rowvec_tasks.hooks import clear_up
from rowvec_tasks.when_busy import WAIT_MINUTES, WhenBusy

from rowvec.ledger.generations import effective
from rowvec.ledger.runs import Run, running
from rowvec.pipeline import Pipeline
from rowvec.runtime.figures import counted
from rowvec.runtime.memory import MANY_BATCHES, ONE_BATCH, is_tight, require
from rowvec.stages.batch import Batch, embedded_at_once
from rowvec.stages.cluster import batch_weight, check_reachable
from rowvec.stages.order import CHANGES, Stages, batch_stages, in_process, through_all_rounds
from rowvec.stages.report import SyncReport, conclude
from rowvec.stages.retries import retrying

# While batches embed, the ones before them are binarized, uploaded and loaded: each holds files, not memory.
BATCHES_IN_FLIGHT = 2

P = ParamSpec("P")
R = TypeVar("R")

Chain = dict[str, PrefectFuture[Batch]]
"""The future of each stage of one batch, by the name of the stage."""


@flow(
    name="sync",
    description=__doc__,
    flow_run_name=run_name,
    # Prefect's own types disagree here: its decorator names the base class of futures, its runner a child of it.
    task_runner=cast("Any", ThreadPoolTaskRunner(max_workers=4 * (BATCHES_IN_FLIGHT + 1))),
    persist_result=False,
    on_cancellation=[clear_up],
    on_crashed=[clear_up],
)
@job_with_policy
def sync(
    pipeline: PipelineOrFile,
    allow_deletes: bool = False,
    when_busy: WhenBusy = "wait",
    wait_minutes: float = WAIT_MINUTES,
    cause: str = "",
) -> SyncReport:
    """Bring the vector table in step with its source.

    Args:
        pipeline: The pipeline file: a path on the worker, or an https URL. It is read when the run starts.
        allow_deletes: Whether this run may delete more vectors than the pipeline's own limit in validation allows.
        when_busy: While another run of the pipeline is at work: wait for it, skip this run, or fail.
        wait_minutes: How many minutes to wait for it at most; then the run fails.
        cause: Why this run was started, for its name and the ledger; empty: schedule or manual, as it was.
    """
    del when_busy, wait_minutes  # `job_with_policy` reads them: it calls this again once the other run has ended
    pipeline = effective(loaded(pipeline).with_delete_limit(1.0 if allow_deletes else None))
    with running(pipeline, cause_of(cause)) as run, cancellable():
        number_run(run)
        if cause == CHANGES:
            report = watched(pipeline, run)
        else:
            tell_late(pipeline)  # a watcher sends the alarm itself
            report = through_all_rounds(pipeline, run, as_tasks(pipeline))
        show(pipeline, report)
        tell_sync(pipeline, report)
        return conclude(report)


def watched(pipeline: Pipeline, run: Run) -> SyncReport:
    """The stages of a run that a watcher starts every few seconds: only batches that can overlap are tasks.

    Each task costs some 50 ms of this run, and as much of the server's processor. The log has one line per stage.
    """
    retry = retrying()
    with asking() as check:

        def attempt(stage: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
            check()
            return retry(stage, *args, **kwargs)

        alone, tasks = in_process(attempt), as_tasks(pipeline, check)

        def batches(pipeline: Pipeline, run: Run, count: int) -> list[Batch]:
            return (tasks if count > 1 else alone).batches(pipeline, run, count)

        return through_all_rounds(pipeline, run, replace(alone, batches=batches))


def as_tasks(pipeline: Pipeline, check: Callable[[], None] = lambda: None) -> Stages:
    """Every stage as a Prefect task; batches on a cluster if one is configured, else on threads of this process.

    ``check`` is called before each batch on threads, and may raise.
    """
    cluster = chosen_cluster()
    if cluster:
        check_reachable(pipeline)
    return Stages(
        unchanged=in_process(retrying()).unchanged,
        extract=partial(stages.extract, weight=batch_weight(pipeline) if cluster else 1),
        submit_jobs=stages.submit_jobs,
        lost_images=stages.lost_images,
        batches=partial(on_cluster, cluster) if cluster else partial(in_threads, check=check),
        merge=stages.merge,
        index=stages.index,
        validate=stages.validate,
    )


def in_threads(pipeline: Pipeline, run: Run, batches: int, check: Callable[[], None]) -> list[Batch]:
    """Take all batches through their stages in this process, a few at a time."""
    # Before the first text is paid for: the system would kill the process in the middle of its work.
    if batches:
        require(MANY_BATCHES if batches > 1 else ONE_BATCH, f"a sync of {counted(batches, 'batches', 'batch')}")
    chains: deque[Chain] = deque()
    done: list[Batch] = []
    at_once, in_flight = embedded_at_once(pipeline), 0 if is_tight() else BATCHES_IN_FLIGHT
    try:
        for number in range(batches):
            check()
            chains.append(submit(pipeline, run, number, after=chains[-at_once] if len(chains) >= at_once else {}))
            if len(chains) > in_flight:
                done.append(finished(chains.popleft()))
        done.extend(finished(chain) for chain in chains)
    except (Exception, SyncCancelled):
        # What is still at work pays and writes for this run, so the pipeline is held until it has ended.
        wait([future for chain in chains for future in chain.values()])
        raise
    return done


def submit(pipeline: Pipeline, run: Run, number: int, after: Chain) -> Chain:
    """Queue a batch's stages, each after the one before; it is embedded only when the batch ``after`` has been.

    The embedder has a concurrency of its own. A batch's images are uploaded while the batch before is embedded.
    """
    chain: Chain = {}
    before: PrefectFuture[Batch] | None = None
    for name in batch_stages(pipeline):
        wait_for = [before] if before else []
        if name == "embed" and name in after:
            wait_for.append(after[name])
        result = before.result if before else None
        before = chain[name] = stages.OF_BATCH[name].submit(pipeline, run, number, result, wait_for=wait_for)
    return chain


def finished(chain: Chain) -> Batch:
    """The batch at the end of its chain; the first stage that failed raises its own error."""
    results: list[Any] = [future.result() for future in chain.values()]
    return results[-1]
