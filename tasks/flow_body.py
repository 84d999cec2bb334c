"""How every flow begins and ends in Prefect: progress shown, and an expected failure told as a sentence."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

from prefect.runtime import flow_run
from prefect.states import Completed, Failed
from rowvec_tasks.artifacts import show_waiting
from rowvec_tasks.events import tell_failure
from rowvec_tasks.logging_filter import tell_sentences
from rowvec_tasks.progress import published
from rowvec_tasks.when_busy import in_turn

from rowvec.errors import AwaitingJobs, RowvecError
from rowvec.pipeline import Pipeline

F = TypeVar("F", bound=Callable[..., Any])
R = TypeVar("R")

AWAITING = "AwaitingBatch"
"""The state, of Prefect's type Completed, of a run that a later one goes on with."""

_SCHEDULED = "auto-scheduled"
"""The tag that Prefect's scheduler gives the runs it makes."""


def cause_of(given: str | None) -> str:
    """Why a run is there, in a word: as it was told, else by who made it."""
    tags: list[str] = flow_run.get_tags()
    return given or ("schedule" if _SCHEDULED in tags else "manual")


def run_name() -> str:
    """What the UI calls a run: its pipeline and its cause; for jobs other than a sync, the job."""
    parameters: dict[str, Any] = flow_run.get_parameters()
    pipeline = parameters["pipeline"]
    name = pipeline.name if isinstance(pipeline, Pipeline) else pipeline["name"]
    job_name = flow_run.get_flow_name()
    cause = cause_of(parameters.get("cause"))
    return f"{name}-{cause}" if job_name == "sync" else f"{name}-{job_name}-{cause}"


def job(body: F) -> F:
    """Wrap a flow's body, whose first parameter is the pipeline.

    An error of ours ends the run Failed with the error's own sentence as its message: raised through Prefect it would
    be a page of traceback in the logs, and its message begin with the name of a class. Whoever calls the flow gets the
    error itself. Anything else is a mistake of ours, and its traceback is wanted. Where another run of the pipeline is
    at work, ``rowvec_tasks.when_busy`` says what becomes of this one.
    """

    @wraps(body)
    def told(pipeline: Pipeline, *args: Any, **kwargs: Any) -> Any:
        tell_sentences()
        try:
            with published(pipeline.name):
                return in_turn(pipeline.name, lambda: body(pipeline, *args, **kwargs))
        except AwaitingJobs as pause:
            show_waiting(pipeline, pause)
            # No failure, and no success either: whoever calls gets the pause as the result, see ``ended``.
            return Completed(name=AWAITING, message=str(pause), data=pause)
        except RowvecError as error:
            tell_failure(pipeline, error)
            return Failed(message=str(error), data=error)

    # Prefect makes a form of the signature, and would look for the names of its types here, where `told` is written.
    cast("Any", told).__signature__ = inspect.signature(body, eval_str=True)
    return cast("F", told)


def ended(result: R | AwaitingJobs) -> R:
    """What a flow called as a function has come to. Raises ``AwaitingJobs`` where a later run is to go on with it."""
    if isinstance(result, AwaitingJobs):
        raise result
    return result
