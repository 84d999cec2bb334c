"""Syncs pipelines as their rows change: one long run, with a sync below it only if something has changed."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from functools import partial
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Completed, Failed
from rowvec_flows.sync import sync
from rowvec_tasks.cancellation import cancellable, unless_cancelled
from rowvec_tasks.events import tell
from rowvec_tasks.given import stem
from rowvec_tasks.hooks import clear_up
from rowvec_tasks.logging_filter import log_sentences

from rowvec.errors import RowvecError, RunCancelled, raise_if_awaiting
from rowvec.operations.watch import Watched
from rowvec.operations.watch import watch as look
from rowvec.pipeline import Pipeline
from rowvec.runtime.display import one_line
from rowvec.runtime.figures import counted
from rowvec.runtime.private import private_files
from rowvec.stages.order import CHANGES
from rowvec.stages.report import SyncReport
from rowvec.store.pipeline_files import read_pipeline

_NAMED = 3


def run_name() -> str:
    """What the UI calls a run: the files that it watches."""
    given: list[Any] = flow_run.get_parameters()["pipelines"]
    more = f"-and-{len(given) - _NAMED}-more" if len(given) > _NAMED else ""
    return f"watch-{'-'.join(stem(one) for one in given[:_NAMED])}{more}"


@flow(
    name="watch",
    description=__doc__,
    flow_run_name=run_name,
    persist_result=False,
    on_cancellation=[clear_up],
    on_crashed=[clear_up],
)
def watch(pipelines: list[str], every: float = 1.0, minutes: float = 0.0) -> State[Any]:
    """Sync each pipeline as soon as a row of its source has changed.

    Args:
        pipelines: Pipeline files: paths on the worker, or https URLs. Each is read again before a sync.
        every: Seconds between two looks at a queue of changes.
        minutes: So many minutes after the time that the run was scheduled for, it ends, and leaves the rest to the next
            one: a schedule then replaces a watcher that was killed. 0: it goes on.
    """
    log_sentences()
    log = get_run_logger()
    watched = [Watched(read=partial(read_pipeline, place), sync=partial(_sync, place)) for place in pipelines]
    try:
        with private_files(), cancellable():
            syncs = look(
                watched,
                threading.Event(),
                tell=partial(log.info, "%s"),
                alarm=tell,
                every=every,
                seconds=max(0.0, 60 * minutes - _late_seconds()) if minutes else None,
            )
    except RunCancelled as cancelled:
        log.warning("%s", cancelled)
        raise
    except RowvecError as error:
        # A file that cannot be read or has no queue; what fails later ends no watcher.
        get_run_logger().error("%s", one_line(str(error)))
        return Failed(message=str(error), data=error)
    return Completed(message=counted(syncs, "syncs"), data=syncs)


def _late_seconds() -> float:
    """How long ago the run should have begun."""
    due: datetime = flow_run.get_scheduled_start_time()
    return (datetime.now(UTC) - due).total_seconds()


def _sync(place: str, _read: Pipeline) -> SyncReport:
    """One sync below this run. It reads its file itself, so that its parameters show where the file is."""
    return unless_cancelled(lambda: raise_if_awaiting(sync(place, cause=CHANGES, when_busy="wait", wait_minutes=1)))
