"""Where batches are processed: in threads of the flow's own process, or on the workers of a Dask or a Ray cluster."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

from prefect.task_runners import TaskRunner
from rowvec_tasks import stages

from rowvec.errors import ClusterUnavailable, UsageError
from rowvec.ledger.runs import Run
from rowvec.pipeline import Pipeline
from rowvec.runtime.progress import tell
from rowvec.stages.batch import Batch

if TYPE_CHECKING:
    from prefect.futures import PrefectFuture

Engine = Literal["dask", "ray"]

# A cluster that scales from zero takes a while. Without this limit, a cluster without workers would make the run wait
# for ever.
_FIRST_WORKER_SECONDS = 120
_CONNECT_SECONDS = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """A running cluster."""

    engine: Engine
    address: str
    """Address of its scheduler: ``tcp://HOST:8786`` of Dask, ``ray://HOST:10001`` or ``HOST:6379`` of Ray."""


def chosen_cluster() -> Cluster | None:
    """The cluster that ``ROWVEC_RUNNER`` and ``ROWVEC_CLUSTER`` name; None for threads.

    Raises ``UsageError`` if the two variables do not name a cluster.
    """
    engine, address = os.environ.get("ROWVEC_RUNNER") or "threads", os.environ.get("ROWVEC_CLUSTER", "").strip()
    if engine == "threads":
        return None
    if engine not in ("dask", "ray"):
        raise UsageError(f"ROWVEC_RUNNER is {engine!r}; set it to threads, dask or ray")
    if not address:
        raise UsageError(f"ROWVEC_RUNNER is {engine}, and ROWVEC_CLUSTER is not set; give the cluster's address there")
    return Cluster(engine=engine, address=address)


def on_cluster(cluster: Cluster, pipeline: Pipeline, run: Run, batches: int) -> list[Batch]:
    """Process all batches, one task each; returns them in order of their numbers.

    Only references travel: pipeline, run and number to the worker, a ``Batch`` back. Raises the error of the first
    batch that fails; ``UsageError`` if ``ROWVEC_CLUSTER`` is no address; ``ClusterUnavailable`` if the cluster does not
    answer, or loses a batch.
    """
    if not batches:
        return []
    _check_address(cluster)
    done: list[Batch] = []
    with _OPENED[cluster.engine](cluster) as runner:
        futures: list[PrefectFuture[Batch]] = [
            runner.submit(stages.batch, {"pipeline": pipeline, "run": run, "number": number})
            for number in range(batches)
        ]
        for number, future in enumerate(futures):
            done.append(future.result())
            # The workers report progress in their own processes, where no terminal and no Prefect listens.
            tell("embed", f"batch {number}", 1, 1)
            tell("load", f"batch {number}", 1, 1)
    return done


def _check_address(cluster: Cluster) -> None:
    """Check that a server listens there: Ray looks for a missing cluster for minutes, and then ends the process."""
    host, _, port = cluster.address.rpartition("//")[2].rpartition(":")
    if not (host and port.isdecimal()):
        raise UsageError(f"ROWVEC_CLUSTER is {cluster.address!r}; it must end in HOST:PORT")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise _silent(cluster) from error


@contextmanager
def _dask(cluster: Cluster) -> Generator[TaskRunner[Any]]:
    try:
        # Late: they are extras, slow to import, and a run on threads needs none of them.
        from distributed import CancelledError
        from distributed.scheduler import KilledWorker
        from prefect_dask.task_runners import DaskTaskRunner
    except ImportError:
        raise _missing(cluster) from None
    with DaskTaskRunner(address=cluster.address) as runner:
        try:
            runner.client.wait_for_workers(1, timeout=_FIRST_WORKER_SECONDS)
        except (OSError, ValueError) as error:
            raise _silent(cluster) from error
        try:
            yield cast("TaskRunner[Any]", runner)
        except (KilledWorker, CancelledError) as error:
            raise _lost(error) from error


@contextmanager
def _ray(cluster: Cluster) -> Generator[TaskRunner[Any]]:
    try:
        import ray.exceptions
        from prefect_ray.task_runners import RayTaskRunner
    except ImportError:
        raise _missing(cluster) from None
    with ExitStack() as stack:
        try:
            runner = stack.enter_context(RayTaskRunner(address=cluster.address))
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise _silent(cluster) from error
        try:
            yield cast("TaskRunner[Any]", runner)
        except ray.exceptions.RayError as error:
            raise _lost(error) from error


_OPENED: dict[Engine, Callable[[Cluster], Any]] = {"dask": _dask, "ray": _ray}


def _missing(cluster: Cluster) -> UsageError:
    return UsageError(
        f"ROWVEC_RUNNER is {cluster.engine}, and its packages are not installed; pip install 'rowvec[{cluster.engine}]'"
    )


def _lost(error: Exception) -> ClusterUnavailable:
    return ClusterUnavailable(
        f"the cluster gave up a batch, because its worker ended ({type(error).__name__}); "
        "look at the workers' memory and logs, then run again: the answers so far are kept"
    )


def _silent(cluster: Cluster) -> ClusterUnavailable:
    return ClusterUnavailable(
        f"the {cluster.engine} cluster at {cluster.address} does not answer, or has no workers; "
        "check that it runs and that ROWVEC_CLUSTER is its address"
    )
