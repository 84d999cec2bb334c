"""A run: one pipeline held by one process, recorded in the ledger from its first moment to its verdict."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

from rowvec.embedders import open_embedder
from rowvec.errors import AwaitingJobs, RowvecError
from rowvec.ledger import pipelines
from rowvec.ledger.pipelines import PipelineId, RunId
from rowvec.pipeline import Pipeline
from rowvec.pipeline.references import resolve
from rowvec.postgres.connection import Connection, connect, lost_connections_are_retriable, target_url
from rowvec.postgres.migrations import install
from rowvec.runtime.telemetry import span
from rowvec.runtime.telemetry_export import flush
from rowvec.vectors.fingerprint import Identity


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run that is under way."""

    run_id: RunId
    pipeline_id: PipelineId
    started: float
    """On the monotonic clock of the machine that runs the flow."""


@contextmanager
def open_target(pipeline: Pipeline, application: str = "rowvec") -> Generator[Connection]:
    """A connection to the vector table's database; the pipeline's references must be resolved.

    What the database raises meanwhile becomes one of our errors.
    """
    with (
        lost_connections_are_retriable(),
        connect(target_url(pipeline.target.url), application=application) as connection,
    ):
        yield connection


@contextmanager
def running(
    pipeline: Pipeline,
    cause: str,
    *,
    needed: frozenset[str] | None = None,
    identity: Identity | None = None,
    above: int = 0,
) -> Generator[Run]:
    """Hold the pipeline, clear what killed runs left, and record how this one ends.

    ``needed``: the parts of the pipeline whose references must resolve, by default all. ``identity``: of the vectors,
    where no embedder is to be opened. ``above``: the run gets a higher number than that, in an empty ledger.

    Raises ``PipelineBusy`` where another run holds it. What goes wrong inside is recorded and raised on.
    """
    started = time.monotonic()
    resolved = resolve(pipeline, needed)
    by_the_file = identity is None
    identity = identity or open_embedder(resolved.embedder).identity
    with open_target(resolved) as connection:
        install(connection)
        pipeline_id = pipelines.register(connection, pipeline, identity, settled=by_the_file)
    with pipelines.exclusively(target_url(resolved.target.url), pipeline.name, pipeline_id):
        with open_target(resolved) as connection:
            pipelines.number_above(connection, above)
            run_id = pipelines.start_run(connection, pipeline_id, cause)
            pipelines.clear_leftovers(connection, pipeline_id, run_id)
        try:
            with span("rowvec run", pipeline=pipeline.name, run_id=run_id, cause=cause):
                yield Run(run_id=run_id, pipeline_id=pipeline_id, started=started)
        except BaseException as error:
            # Whatever ends a run, an interrupt included, ends in the ledger; a kill is noticed by the next run.
            _record_failure(resolved, run_id, error)
            raise
        finally:
            flush()


def _record_failure(resolved: Pipeline, run_id: RunId, error: BaseException) -> None:
    sentence = str(error) if isinstance(error, RowvecError) else f"unexpected: {type(error).__name__}"
    try:
        with open_target(resolved) as connection:
            state = "waiting" if isinstance(error, AwaitingJobs) else "failed"
            pipelines.finish_run(connection, run_id, state, error=sentence)
    except RowvecError as unreachable:
        error.add_note(f"the ledger could not be told: {unreachable}")
