"""A run: one pipeline, held by one process and recorded in the ledger from its start to its verdict."""

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
from rowvec.ledger.pipelines import PipelineId, register, written_id
from rowvec.pipeline import Pipeline
from rowvec.pipeline.references import resolve
from rowvec.postgres.connection import Connection, connect, lost_connections_are_retriable, open_target, target_url
from rowvec.postgres.locks import LockSpace
from rowvec.postgres.migrations import install
from rowvec.postgres.queries import query
from rowvec.runtime.telemetry import span
from rowvec.runtime.telemetry_export import flush
from rowvec.vectors.fingerprint import Identity

RunId = NewType("RunId", int)

State = Literal["planned", "running", "succeeded", "failed", "abandoned", "waiting"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run that is under way."""

    run_id: RunId
    pipeline_id: PipelineId
    started: float
    """On the monotonic clock of the machine that runs the flow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a run ended. A field that is None leaves the ledger's value as it is; only ``error`` is always written."""

    state: State
    report: object = None
    """The report, as JSON."""
    checks: object = None
    """The checks of the report, as JSON."""
    error: str | None = None
    """The sentence that the run failed with."""
    manifest: str | None = None
    """The name of the manifest that the run wrote to the store."""
    manifest_sha256: str | None = None


@contextmanager
def running(
    pipeline: Pipeline,
    cause: str,
    *,
    needed: frozenset[str] | None = None,
    identity: Identity | None = None,
    above: int = 0,
) -> Generator[Run]:
    """Lock the pipeline, clear what killed runs left, and record how this run ends.

    ``needed``: the parts of the pipeline whose references must resolve; None means all. ``identity``: the identity of
    the vectors; if it is given, no embedder is opened. ``above``: in an empty ledger, the run's number is greater.

    Raises ``PipelineBusy`` if another run holds the pipeline. An error inside is recorded and raised again.
    """
    started = time.monotonic()
    resolved = resolve(pipeline, needed)
    by_the_file = identity is None
    identity = identity or open_embedder(resolved.embedder).identity
    with open_target(resolved) as connection:
        install(connection)
        pipeline_id = register(connection, pipeline, identity, settled=by_the_file)
    with exclusively(target_url(resolved.target.url), pipeline.name, pipeline_id):
        with open_target(resolved) as connection:
            number_above(connection, above)
            run_id = start_run(connection, pipeline_id, cause)
            clear_leftovers(connection, pipeline_id, run_id)
        try:
            with span("rowvec run", pipeline=pipeline.name, run_id=run_id, cause=cause):
                yield Run(run_id=run_id, pipeline_id=pipeline_id, started=started)
        except BaseException as error:
            # Any end of a run is recorded, an interrupt included. After a kill, the next run records it.
            _record_failure(resolved, run_id, error)
            raise
        finally:
            flush()


def number_above(connection: Connection, number: int) -> None:
    """Reserve the numbers up to ``number`` for runs that a restore brings back; numbers in use do not change."""
    if number:
        connection.execute(query("runs", "number_above"), {"number": number})


def start_run(connection: Connection, pipeline_id: PipelineId, cause: str, state: State = "running") -> RunId:
    """Record a new run."""
    values = {"pipeline_id": pipeline_id, "cause": cause, "state": state}
    return RunId(written_id(connection, query("runs", "start"), values))


def start_plan(connection: Connection, pipeline_id: PipelineId) -> RunId:
    """Record a new plan. No other process clears it away while this connection is open."""
    values = {"pipeline_id": pipeline_id, "space": LockSpace.PLAN}
    return RunId(written_id(connection, query("runs", "start_plan"), values))


def finish_run(connection: Connection, run_id: RunId, ending: Ending) -> None:
    """Close a run in the ledger."""
    values = {
        "run_id": run_id,
        "state": ending.state,
        "report": None if ending.report is None else Jsonb(ending.report),
        "checks": None if ending.checks is None else Jsonb(ending.checks),
        "error": ending.error,
        "manifest": ending.manifest,
        "manifest_sha256": ending.manifest_sha256,
    }
    connection.execute(query("runs", "finish"), values)


@contextmanager
def exclusively(url: str, name: str, pipeline_id: PipelineId) -> Generator[None]:
    """Lock the pipeline for one run, on a connection of its own.

    The lock belongs to that connection's session, so it ends with a killed process and needs no cleaning up. Raises
    ``PipelineBusy`` if another run holds the lock for longer than the server needs to notice that a session has ended.
    """
    values = {"space": LockSpace.RUN, "pipeline_id": pipeline_id}
    with connect(url, application="rowvec lock") as holder:
        with lost_connections_are_retriable():
            try:
                holder.execute(query("runs", "lock_timeout"))
                holder.execute(query("runs", "lock"), values)
            except pg.LockNotAvailable:
                raise PipelineBusy(
                    f"another run of the pipeline {name} is at work; wait for it, or stop it first"
                ) from None
        yield
        # Unlock explicitly: the next run may start before the server notices that this connection was closed.
        # If the server was restarted, the session is gone and holds no lock.
        with suppress(pg.OperationalError):
            holder.execute(query("runs", "unlock"), values)


def clear_leftovers(connection: Connection, pipeline_id: PipelineId, run_id: RunId) -> list[str]:
    """Mark what killed runs left as abandoned and drop their tables; returns the names of the tables dropped.

    ``run_id`` is the run that is under way, which is left alone. The caller must hold the pipeline's lock.
    """
    values = {"pipeline_id": pipeline_id, "run_id": run_id, "space": LockSpace.PLAN}
    connection.execute(query("runs", "abandoned"), values)
    return _drop_tables(connection, pipeline_id, run_id)


def supersede_plans(connection: Connection, pipeline_id: PipelineId, run_id: RunId) -> None:
    """Drop the plans that ``rowvec plan`` made before the plan ``run_id``; runs under way are not touched."""
    values = {"pipeline_id": pipeline_id, "run_id": run_id, "space": LockSpace.PLAN}
    connection.execute(query("runs", "supersede"), values)
    _drop_tables(connection, pipeline_id, run_id)


def _record_failure(resolved: Pipeline, run_id: RunId, error: BaseException) -> None:
    sentence = str(error) if isinstance(error, RowvecError) else f"unexpected: {type(error).__name__}"
    try:
        with open_target(resolved) as connection:
            state = "waiting" if isinstance(error, AwaitingJobs) else "failed"
            finish_run(connection, run_id, Ending(state=state, error=sentence))
    except RowvecError as unreachable:
        error.add_note(f"the failure could not be recorded in the ledger: {unreachable}")


def _drop_tables(connection: Connection, pipeline_id: PipelineId, run_id: RunId) -> list[str]:
    values = {"pipeline_id": pipeline_id, "run_id": run_id}
    tables = [row[0] for row in connection.execute(query("runs", "leftovers"), values)]
    for table in tables:
        connection.execute(query("runs", "drop", table=sql.Identifier("rowvec", table)))
    return tables
