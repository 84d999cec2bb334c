"""The main job: one run brings a vector table in step with its source, and proves it."""

from __future__ import annotations

from collections import deque
from typing import Any, cast

from prefect import flow
from prefect.futures import PrefectFuture, wait
from prefect.task_runners import ThreadPoolTaskRunner
from rowvec_tasks import stages
from rowvec_tasks.artifacts import show
from rowvec_tasks.engines import chosen_cluster, on_cluster
from rowvec_tasks.events import tell_sync
from rowvec_tasks.flow_body import cause_of, job, run_name
from rowvec_tasks.hooks import clear_up
from rowvec_tasks.when_busy import WAIT_MINUTES, WhenBusy

from rowvec.ledger.generations import effective
from rowvec.ledger.runs import Run, running
from rowvec.pipeline import Pipeline
from rowvec.sync.batch import Batch, embedded_at_once
from rowvec.sync.batch_api.ask import asks_ahead
from rowvec.sync.cluster import batch_weight, check_reachable
from rowvec.sync.merge import Round
from rowvec.sync.report import SyncReport, conclude

# While batches embed, the ones before them are binarized, uploaded and loaded: each holds files, not memory.
BATCHES_IN_FLIGHT = 2
# Rows that are written while a round runs are the next round's; a source that never rests is left to the next run.
MAX_ROUNDS = 3

Chain = list[PrefectFuture[Batch]]


@flow(
    name="sync",
    flow_run_name=run_name,
    # Prefect's own types disagree here: its decorator names the base class of futures, its runner a child of it.
    task_runner=cast("Any", ThreadPoolTaskRunner(max_workers=4 * (BATCHES_IN_FLIGHT + 1))),
    persist_result=False,
    on_cancellation=[clear_up],
    on_crashed=[clear_up],
)
@job
def sync(
    pipeline: Pipeline, cause: str | None = None, when_busy: WhenBusy = "wait", wait_minutes: float = WAIT_MINUTES
) -> SyncReport:
    """Bring the vector table in step with its source.

    Args:
        pipeline: What is embedded, how, and where it goes: the content of a pipeline file.
        cause: Why this run was started, for its name and the ledger; left out: schedule or manual, as it was.
        when_busy: While another run of the pipeline is at work: wait for it, skip this run, or fail.
        wait_minutes: How long to wait for it at most; then the run fails.
    """
    del when_busy, wait_minutes  # the job's: it calls this again when the other run is over
    pipeline = effective(pipeline)
    with running(pipeline, cause_of(cause)) as run:
        rounds = [bring_up_to_date(pipeline, run)]
        while rounds[-1].merged.pending and len(rounds) < MAX_ROUNDS:
            rounds.append(bring_up_to_date(pipeline, run))
        report = stages.validate(pipeline, run, rounds, stages.index(pipeline, run))
        show(pipeline, report)
        tell_sync(pipeline, report)
        return conclude(report)


def bring_up_to_date(pipeline: Pipeline, run: Run) -> Round:
    """One plan, its batches through all stages, one merge."""
    cluster = chosen_cluster()
    if cluster:
        check_reachable(pipeline)
    plan = stages.extract(pipeline, run, batch_weight(pipeline) if cluster else 1)
    if asks_ahead(pipeline):
        stages.ask_ahead(pipeline, run).conclude(pipeline)
    again = stages.lost_images(pipeline, run) if plan.lost_images else 0
    done = on_cluster(cluster, pipeline, run, plan.batches) if cluster else in_threads(pipeline, run, plan.batches)
    return Round(plan=plan, batches=tuple(done), merged=stages.merge(pipeline, run), images_again=again)


def in_threads(pipeline: Pipeline, run: Run, batches: int) -> list[Batch]:
    """All batches through their stages in this process, a few at a time."""
    chains: deque[Chain] = deque()
    done: list[Batch] = []
    at_once = embedded_at_once(pipeline)
    try:
        for number in range(batches):
            chains.append(submit(pipeline, run, number, after=chains[-at_once] if len(chains) >= at_once else None))
            if len(chains) > BATCHES_IN_FLIGHT:
                done.append(finished(chains.popleft()))
        done.extend(finished(chain) for chain in chains)
    except Exception:
        # What is still at work pays and writes for this run, so the pipeline is held until it has ended.
        wait([future for chain in chains for future in chain])
        raise
    return done


def submit(pipeline: Pipeline, run: Run, number: int, after: Chain | None) -> Chain:
    """Queue a batch's stages; it is embedded when ``after`` has been, for the embedder has its own concurrency."""
    # Its images, where it has any, are uploaded while the batch before it is embedded.
    images = [stages.images.submit(pipeline, run, number)] if pipeline.source.kind == "images" else []
    first = [*images, *(after[-4:-3] if after else [])]
    embedded = stages.embed.submit(pipeline, run, number, images[0].result if images else None, wait_for=first)
    bits = stages.binarize.submit(pipeline, number, embedded.result, wait_for=[embedded])
    uploaded = stages.upload.submit(pipeline, number, bits.result, wait_for=[bits])
    return [
        *images,
        embedded,
        bits,
        uploaded,
        stages.load.submit(pipeline, number, uploaded.result, wait_for=[uploaded]),
    ]


def finished(chain: Chain) -> Batch:
    """The batch at the end of its chain; the first stage that failed raises its own error."""
    results: list[Any] = [future.result() for future in chain]
    return results[-1]
