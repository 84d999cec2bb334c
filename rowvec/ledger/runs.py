"""A run: one pipeline held by one process, recorded in the ledger from its first moment to its verdict."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Literal, NewType

from psycopg import errors as pg
from psycopg import sql
from psycopg.types.json import Jsonb

from rowvec.embedders import open_embedder
from rowvec.errors import AwaitingJobs, PipelineBusy, RowvecError
from rowvec.ledger import pipelines
from rowvec.ledger.pipelines import PipelineId, one
from rowvec.pipeline import Pipeline
from rowvec.pipeline.references import resolve
from rowvec.postgres.connection import Connection, connect, lost_connections_are_retriable, open_target, target_url
from rowvec.postgres.locks import LockSpace
from rowvec.postgres.migrations import install
from rowvec.postgres.queries import query
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
    with exclusively(target_url(resolved.target.url), pipeline.name, pipeline_id):
        with open_target(resolved) as connection:
            number_above(connection, above)
            run_id = start_run(connection, pipeline_id, cause)
            clear_leftovers(connection, pipeline_id, run_id)
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
            finish_run(connection, run_id, state, error=sentence)
    except RowvecError as unreachable:
        error.add_note(f"the ledger could not be told: {unreachable}")


RunId = NewType("RunId", int)


State = Literal["planned", "running", "succeeded", "failed", "abandoned", "waiting"]


def number_above(connection: Connection, number: int) -> None:
    """Leave the numbers up to this one to runs that come back from a store; those given already stay given."""
    if number:
        connection.execute(query("ledger", "number_above"), {"number": number})


def start_run(connection: Connection, pipeline_id: PipelineId, cause: str, state: State = "running") -> RunId:
    """A new run."""
    return RunId(one(connection, "start", pipeline_id=pipeline_id, cause=cause, state=state))


def start_plan(connection: Connection, pipeline_id: PipelineId) -> RunId:
    """A new plan, which nobody clears away while this connection is open."""
    return RunId(one(connection, "start_plan", pipeline_id=pipeline_id, space=LockSpace.PLAN))


def finish_run(
    connection: Connection,
    run_id: RunId,
    state: State,
    *,
    report: object = None,
    checks: object = None,
    error: str | None = None,
    manifest: str | None = None,
    manifest_sha256: str | None = None,
) -> None:
    """Close a run with its report, or with the sentence it failed with."""
    connection.execute(
        query("ledger", "finish"),
        {
            "run_id": run_id,
            "state": state,
            "report": None if report is None else Jsonb(report),
            "checks": None if checks is None else Jsonb(checks),
            "error": error,
            "manifest": manifest,
            "manifest_sha256": manifest_sha256,
        },
    )


@contextmanager
def exclusively(url: str, name: str, pipeline_id: PipelineId) -> Generator[None]:
    """Hold the pipeline for one run, on a connection of its own.

    The lock belongs to that session, so it goes with a killed process and nobody has to clean up after it. Raises
    ``PipelineBusy`` where another run holds it for longer than a session that has just ended needs to be gone.
    """
    values = {"space": LockSpace.RUN, "pipeline_id": pipeline_id}
    with connect(url, application="rowvec lock") as holder:
        with lost_connections_are_retriable():
            try:
                holder.execute(query("ledger", "lock_patience"))
                holder.execute(query("ledger", "lock"), values)
            except pg.LockNotAvailable:
                raise PipelineBusy(
                    f"another run of the pipeline {name} is at work; wait for it, or stop it first"
                ) from None
        yield
        # Said, and not left to the closing of the connection: the next run may come before the server notices that.
        # A session that a restarted server has ended holds nothing any more.
        with suppress(pg.OperationalError):
            holder.execute(query("ledger", "unlock"), values)


def clear_leftovers(connection: Connection, pipeline_id: PipelineId, run_id: RunId) -> list[str]:
    """Mark what killed runs left as abandoned and drop their tables; returns the names of the tables dropped."""
    values = {"pipeline_id": pipeline_id, "run_id": run_id, "space": LockSpace.PLAN}
    connection.execute(query("ledger", "abandoned"), values)
    return _drop_tables(connection, pipeline_id, run_id)


def supersede_plans(connection: Connection, pipeline_id: PipelineId, run_id: RunId) -> None:
    """Drop the plans that ``rowvec plan`` left before this one; runs at work are not touched."""
    values = {"pipeline_id": pipeline_id, "run_id": run_id, "space": LockSpace.PLAN}
    connection.execute(query("ledger", "supersede"), values)
    _drop_tables(connection, pipeline_id, run_id)


def _drop_tables(connection: Connection, pipeline_id: PipelineId, run_id: RunId) -> list[str]:
    values = {"pipeline_id": pipeline_id, "run_id": run_id}
    tables = [row[0] for row in connection.execute(query("ledger", "leftovers"), values)]
    for table in tables:
        connection.execute(query("ledger", "drop", table=sql.Identifier("rowvec", table)))
    return tables
