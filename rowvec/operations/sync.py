"""One sync in this process, without Prefect: for scripts, notebooks and other orchestrators."""

from __future__ import annotations

from rowvec.pipeline import Pipeline
from rowvec.runtime.private import private_files
from rowvec.stages import order
from rowvec.stages.report import SyncReport
from rowvec.stages.retries import retrying


def sync(pipeline: Pipeline, *, cause: str = "python") -> SyncReport:
    """Bring the vector table in step with its source, in this process and without Prefect.

    It has the lease, the ledger, the budget, the checks and the report of the flow ``rowvec_flows.sync.sync``, and
    tries a stage again as often as the flow does. A call that was killed is continued by the next one. What only the
    flow has: batches that overlap (here one batch is embedded, stored and loaded before the next one begins) or run on
    Dask or Ray; a wait for another run (here ``PipelineBusy`` at once); alarms, artifacts and the run in Prefect's UI.
    While it runs, files that this process creates can be read by its user alone.

    Args:
        pipeline: What is embedded, how, and where it goes.
        cause: Why this run was started, in one word, for the ledger.

    Returns the report of a run whose checks all hold. Raises ``Inconsistent``, with the report, if a check failed;
    ``PipelineBusy`` if another run of the pipeline is at work; ``AwaitingJobs`` if jobs at the provider's Batch API are
    unfinished, and a later call continues; and every other error of ``rowvec.errors`` but ``RowError``.
    """
    with private_files():
        return order.sync(pipeline, cause, order.in_process(retrying()))
