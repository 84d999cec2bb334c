"""How every flow begins and ends in Prefect: its pipeline is read, its progress shown, and its end is one sentence."""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast
from uuid import UUID

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.exceptions import PrefectException, TerminationSignal
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Crashed, Failed
from rowvec_tasks.artifacts import show_waiting, verdict
from rowvec_tasks.cancellation import SyncCancelled, cancellable
from rowvec_tasks.events import tell_failure
from rowvec_tasks.given import PipelineOrFile, loaded, stem
from rowvec_tasks.heartbeat import alive
from rowvec_tasks.logging_filter import log_sentences
from rowvec_tasks.progress import published
from rowvec_tasks.run_log import told
from rowvec_tasks.when_busy import run_alone

from rowvec.errors import AwaitingJobs, RowvecError, RunCancelled
from rowvec.ledger.runs import Run
from rowvec.pipeline import Pipeline
from rowvec.postgres.kept import connections_kept
from rowvec.runtime.display import one_line
from rowvec.runtime.home import local_faults
from rowvec.runtime.private import private_files

logger = logging.getLogger(__name__)

F = TypeVar("F", bound=Callable[..., Any])

AWAITING = "AwaitingBatch"
"""Name of the state of a run that ends before it is done and that a later run finishes; its type is Completed."""

_SCHEDULED = "auto-scheduled"
"""The tag that Prefect's scheduler gives to the runs that it creates."""
_POLICY = ("when_busy", "wait_minutes")
"""The parameters of a flow whose caller chooses its policy; ``run_alone`` takes them by the same names."""


def cause_of(given: str) -> str:
    """Why a run exists, in one word: as its caller said, otherwise ``schedule`` or ``manual``."""
    tags: list[str] = flow_run.get_tags()
    return given or ("schedule" if _SCHEDULED in tags else "manual")


def run_name() -> str:
    """What the UI calls a run: pipeline and cause of a sync; pipeline, flow and cause of every other flow."""
    parameters: dict[str, Any] = flow_run.get_parameters()
    given = parameters["pipeline"]
    try:
        name = loaded(given).name
    except RowvecError:
        # The run itself fails by this error, and says so.
        name = stem(given)
    flow_name = flow_run.get_flow_name()
    cause = cause_of(parameters.get("cause") or "")
    return f"{name}-{cause}" if flow_name == "sync" else f"{name}-{flow_name}-{cause}"


def number_run(run: Run) -> None:
    """Add the run's number in the ledger to its name in the UI: ``articles-schedule-42``."""
    run_id, name = flow_run.get_id(), flow_run.get_name()
    if run_id is None:
        return
    try:
        with get_client(sync_client=True) as client:
            client.set_flow_run_name(UUID(run_id), f"{name}-{run.run_id}")
    except (httpx.HTTPError, PrefectException) as error:
        # The run goes on: what it is called is no reason to fail.
        logger.warning("the UI does not show the number of this run, %d: %s", run.run_id, error)


def job(body: F) -> F:
    """Wrap the body of a flow whose first parameter is the pipeline; the body gets it read.

    A ``RowvecError`` ends the run as Failed, with the error's own sentence as its message. Raised through Prefect, the
    error would be a page of traceback in the logs, and its message would begin with the name of a class. The caller of
    the flow gets the error itself. Any other exception is a defect of ours: Prefect logs its traceback. If another run
    of the pipeline is at work, the runs of a deployment wait, and all others fail. A good run has its verdict as the
    message of its state.
    """
    return _wrap(body, ())


def job_with_policy(body: F) -> F:
    """As ``job``, for a flow whose parameters ``when_busy`` and ``wait_minutes`` say what it does if it finds another
    run at work.

    Raises ``TypeError`` at import if the flow lacks one of the two parameters.
    """
    missing = [name for name in _POLICY if name not in inspect.signature(body).parameters]
    if missing:
        raise TypeError(f"the flow {body.__name__} has no parameter {' and no parameter '.join(missing)}")
    return _wrap(body, _POLICY)


def _wrap(body: F, policy_parameters: tuple[str, ...]) -> F:
    signature = inspect.signature(body, eval_str=True)

    @wraps(body)
    def run(pipeline: PipelineOrFile, *args: Any, **kwargs: Any) -> Any:
        log_sentences()
        given = signature.bind(pipeline, *args, **kwargs)
        given.apply_defaults()
        policy = {name: given.arguments[name] for name in policy_parameters}
        with told(), alive():
            try:
                with private_files(), cancellable():
                    return _ended(loaded(pipeline), lambda read: body(read, *args, **kwargs), policy)
            except SyncCancelled as cancelled:
                get_run_logger().warning("%s", cancelled)
                return Cancelled(message=str(cancelled))
            except RunCancelled as cancelled:
                get_run_logger().warning("%s", cancelled)
                raise
            except (KeyboardInterrupt, TerminationSignal):
                _set_state_crashed()
                raise
            except RowvecError as error:
                get_run_logger().error("%s", one_line(str(error)))
                return Failed(message=str(error), data=error)

    # Prefect makes a form from the signature. Without this line it would look up the names of the types in this
    # module, where `run` is written, and not in the flow's.
    cast("Any", run).__signature__ = signature
    return cast("F", run)


def _ended(pipeline: Pipeline, body: Callable[[Pipeline], Any], policy: dict[str, Any]) -> State[Any]:
    """The state in which a run ends that has read its pipeline. Raises the ``RowvecError`` of a run that fails."""
    try:
        with local_faults(), published(pipeline.name), connections_kept():
            result = run_alone(pipeline.name, lambda: body(pipeline), **policy)
    except AwaitingJobs as pause:
        show_waiting(pipeline, pause)
        # Neither a failure nor a success: a caller gets the pause as the result, and should pass it to
        # ``raise_if_awaiting``.
        return Completed(name=AWAITING, message=str(pause), data=pause)
    except RowvecError as error:
        tell_failure(pipeline, error)
        raise
    return result if isinstance(result, State) else Completed(message=verdict(result), data=result)


def _set_state_crashed() -> None:
    """Tell the server at once that the run was interrupted: Prefect would first wait for the threads at work.

    A worker does this for the runs that it has started, and knows whether one was cancelled.
    """
    run_id = flow_run.get_id()
    if run_id is None or "PREFECT__FLOW_RUN_ID" in os.environ:
        return
    try:
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(run_id, Crashed(message="the command was interrupted"), force=True)
    except (httpx.HTTPError, PrefectException) as error:
        logger.warning("the server does not know that this run was interrupted: %s", error)
