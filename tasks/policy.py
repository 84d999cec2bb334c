"""How often a stage is tried again: the branch of the error decides, and nothing else."""

from __future__ import annotations

from typing import Any

from prefect import Task
from prefect.client.schemas.objects import State, TaskRun

from rowvec.errors import RetriableError

# The embedder and the blob client have waited and tried again by themselves before an error comes this far: these are
# for a database that restarts, or a provider that is down for a minute.
RETRIES = 4
WAITS_SECONDS = [2.0, 8.0, 20.0, 60.0]
JITTER = 0.5


def is_retriable(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Try again only what may go better next time."""
    return isinstance(state.data, RetriableError)
