"""A run: one pipeline, held by one process and recorded in the ledger from its start to its verdict."""

from __future__ import annotations

import shutil
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Literal, NewType

from psycopg import errors as pg
from psycopg import sql
from psycopg.types.json import Jsonb

from rowvec.embedders import open_embedder
from rowvec.errors import AwaitingJobs, LeaseLost, RowvecError, RunCancelled
from rowvec.ledger.held_lease import exclusively
from rowvec.ledger.lease import Lease, check_owner, open_owned, owned
from rowvec.ledger.pipelines import PipelineId, register, written_id
from rowvec.ledger.workdir import runs_with_files, workdir
from rowvec.pipeline import Pipeline
from rowvec.pipeline.references import resolve
from rowvec.postgres.connection import Connection, open_target, target_url
from rowvec.postgres.kept import connections_kept
from rowvec.postgres.migrations import install
from rowvec.postgres.queries import query
from rowvec.runtime.home import local_faults
from rowvec.runtime.telemetry import span
from rowvec.runtime.telemetry_export import flush
from rowvec.vectors.fingerprint import Identity

RunId = NewType("RunId", int)

KEPT_RUNS = 1_000
"""So many of a pipeline's runs stay in the ledger with their reports, whatever they did, and so many certificates."""
_FEW = 100
"""How many of the older ones each run looks at; each adds one, so they pass by a hundred times."""

State = Literal["planned", "running", "succeeded", "failed", "abandoned", "waiting", "lost", "cancelled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run that is under way."""

    run_id: RunId
    pipeline_id: PipelineId
    lease: Lease
    """What each process that works for the run must hold to pay and to write."""
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
    """Take the pipeline's lease, clear what killed runs left, and record how this run ends.

    ``needed``: the parts of the pipeline whose references must resolve; None means all. ``identity``: the identity of
    the vectors; if it is given, no embedder is opened. ``above``: in an empty ledger, the run's number is greater.

    Raises ``PipelineBusy`` if another run holds the pipeline. An error inside is recorded and raised again; it becomes
    ``LeaseLost`` if another run has taken over.
    """
    started = time.monotonic()
    resolved = resolve(pipeline, needed)
    by_the_file = identity is None
    identity = identity or open_embedder(resolved.embedder).identity
    with connections_kept():
        with open_target(resolved) as connection:
            install(connection)
            pipeline_id = register(connection, pipeline, identity, settled=by_the_file)
        with exclusively(target_url(resolved.target.url), pipeline.name, pipeline_id) as lease:
            with open_owned(resolved, lease) as connection:
                number_above(connection, above)
                run_id = start_run(connection, pipeline_id, cause, lease)
                clear_leftovers(connection, pipeline_id, run_id)
            run = Run(run_id=run_id, pipeline_id=pipeline_id, lease=lease, started=started)
            try:
                with span("rowvec run", pipeline=pipeline.name, run_id=run_id, cause=cause), local_faults():
                    yield run
            except BaseException as error:
                # Any end of a run is recorded, an interrupt included. After a kill, the next run records it.
                ending = _record_failure(resolved, run, error)
                if ending is not error:
                    raise ending from error
                raise
            finally:
                flush()


def number_above(connection: Connection, number: int) -> None:
    """Reserve the numbers up to ``number`` for runs that a restore brings back; numbers in use do not change."""
    if number:
        connection.execute(query("runs", "number_above"), {"number": number})


def start_run(connection: Connection, pipeline_id: PipelineId, cause: str, lease: Lease) -> RunId:
    """Record a new run."""
    values = {"pipeline_id": pipeline_id, "cause": cause, "lease": lease.number}
    return RunId(written_id(connection, query("runs", "start"), values))


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


def clear_leftovers(connection: Connection, pipeline_id: PipelineId, run_id: RunId) -> list[str]:
    """Mark what killed runs left as abandoned, and remove their tables and files; returns the names of the tables.

    Only files on this machine are removed. Sessions of a run that was stopped, or cut off, and that still hold its
    tables are ended. A few old runs that nothing needs any more are deleted.

    ``run_id`` is the run that is under way, which is left alone. The caller must hold the pipeline's lease.
    """
    parts: dict[str, sql.Composable] = {"pipeline_id": sql.Literal(pipeline_id), "run_id": sql.Literal(run_id)}
    parts["tables"] = query("runs", "tables")
    kept = sql.Literal(KEPT_RUNS)
    left, many = connection.execute(query("runs", "look_back", kept=kept, **parts)).fetchone() or (True, True)
    if many:
        old = _old_runs(pipeline_id)
        shorten = query("runs", "shorten", is_settled=old["is_settled"])
        connection.execute(query("runs", "forget_some", few=sql.Literal(_FEW), shorten=shorten, **old))
        connection.execute(query("certificates", "pack", block=kept, kept=kept, pipeline_id=parts["pipeline_id"]))
    if left:
        connection.execute(query("runs", "end_sessions", **parts))
        connection.execute(query("runs", "abandoned", **parts))
    if with_files := runs_with_files(connection):
        values = {"pipeline_id": pipeline_id, "run_id": run_id, "run_ids": with_files}
        for (over,) in connection.execute(query("runs", "over"), values).fetchall():
            shutil.rmtree(workdir(connection, over), ignore_errors=True)
    return _drop_tables(connection, query("runs", "leftovers", **parts)) if left else []


def forget_runs(connection: Connection, pipeline_id: PipelineId, table: sql.Composable, *, apply: bool) -> int:
    """Delete the runs of a pipeline that nothing needs any more, beyond the newest; returns their number.

    A run by itself looks at a few of those that have written nothing; this looks at all, and reads all fingerprints
    and the ``run_id`` of each row of the vector table ``table``. Of the others the reports become short, and what the
    deleted ones have spent is summed up by month. Without ``apply`` they are only counted.
    """
    old = _old_runs(pipeline_id)
    older = query("runs", "old", pipeline_id=old["pipeline_id"], kept=old["kept"])
    runs = query("runs", "forgettable", old=older, table=table, not_needed=old["not_needed"])
    if not apply:
        counted = connection.execute(query("runs", "count_forgettable", runs=runs)).fetchone()
        return counted[0] if counted else 0
    with connection.transaction():
        forgotten = connection.execute(query("runs", "forget", runs=runs)).rowcount
        shorten = query("runs", "shorten", is_settled=old["is_settled"])
        connection.execute(query("runs", "shorten_old", shorten=shorten, old=older))
        connection.execute(query("spending", "sum_up", pipeline_id=old["pipeline_id"]))
    return forgotten


def _old_runs(pipeline_id: PipelineId) -> dict[str, sql.Composable]:
    settled = query("runs", "is_settled")
    return {
        "pipeline_id": sql.Literal(pipeline_id),
        "kept": sql.Literal(KEPT_RUNS),
        "is_settled": settled,
        "not_needed": query("runs", "not_needed", is_settled=settled),
    }


def _record_failure(resolved: Pipeline, run: Run, error: BaseException) -> BaseException:
    """Record how a run failed; returns the error, or ``LeaseLost`` if the run has failed because of that."""
    expected = isinstance(error, (RowvecError, RunCancelled))
    sentence = str(error) if expected else f"unexpected: {type(error).__name__}"
    try:
        with open_target(resolved) as connection:
            if isinstance(error, Exception) and not isinstance(error, LeaseLost):
                error = _reason(connection, run.lease, error)
            if isinstance(error, LeaseLost):
                values = {"run_id": run.run_id, "lease": run.lease.number, "error": str(error)}
                connection.execute(query("runs", "lost"), values)
            else:
                with owned(connection, run.lease):
                    finish_run(connection, run.run_id, Ending(state=_state_after(error), error=sentence))
    except RowvecError as unreachable:
        error.add_note(f"the failure could not be recorded in the ledger: {unreachable}")
    return error


def _state_after(error: BaseException) -> State:
    if isinstance(error, AwaitingJobs):
        return "waiting"
    return "cancelled" if isinstance(error, RunCancelled) else "failed"


def _reason(connection: Connection, lease: Lease, error: Exception) -> Exception:
    """The error, or ``LeaseLost``: another run has then dropped the tables that this one missed, for example."""
    try:
        check_owner(connection, lease)
    except LeaseLost as reason:
        return reason
    return error


def _drop_tables(connection: Connection, leftovers: sql.Composed) -> list[str]:
    """Drop the tables of runs that are over; returns the names of the tables dropped.

    A table that another session holds stays for a later run.
    """
    dropped: list[str] = []
    for (table,) in connection.execute(leftovers).fetchall():
        with suppress(pg.LockNotAvailable), connection.transaction():
            connection.execute(query("runs", "drop_patience"))
            connection.execute(query("runs", "drop", table=sql.Identifier("rowvec", table)))
            dropped.append(table)
    return dropped
