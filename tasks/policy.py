"""How often Prefect tries a stage again: only the branch of the error decides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from prefect import Task, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun

from rowvec.errors import RetriableError
from rowvec.stages.retries import JITTER, WAITS_SECONDS

R = TypeVar("R")


def is_retriable(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Whether the same stage may succeed if it is tried again."""
    return isinstance(state.data, RetriableError)


def stage(run_name: str) -> Callable[[Callable[..., R]], Task[..., R]]:
    """Make a stage a Prefect task. ``run_name`` begins with the stage and, for a batch, ends with its number.

    There is no time-out, because Prefect cannot interrupt a task in a thread: embedder, blob client and database have
    their own. There are no tags: for each tagged task run Prefect asks the server for a slot of the tag's limit, even
    if the tag has no limit, and that took 2 s of every second task run (docs/decisions/0006-operated.md).
    """
    return task(
        task_run_name=run_name,
        retries=len(WAITS_SECONDS),
        retry_delay_seconds=list(WAITS_SECONDS),
        retry_jitter_factor=JITTER,
        retry_condition_fn=is_retriable,
        cache_policy=NO_CACHE,
        persist_result=False,
    )
