"""The queue of a source's changes from outside a run: install it, remove it, show it, and look whether a run is due."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

from rowvec.errors import UsageError
from rowvec.ledger.changes import Known, known
from rowvec.ledger.generations import effective
from rowvec.ledger.pipelines import PipelineId, is_readable
from rowvec.pipeline import Pipeline
from rowvec.pipeline.references import resolve, without_key
from rowvec.pipeline.sources import PostgresSource
from rowvec.postgres.connection import Connection, open_target
from rowvec.postgres.queries import query
from rowvec.sources.change_queue import ChangeQueue, check_has_no_queue
from rowvec.sources.postgres import describe, is_in_target_database

_NEEDED = frozenset({"source", "target"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangesState:
    """The queue of one pipeline; ``as_json`` is what ``rowvec changes --json`` prints."""

    pipeline: str
    table: str
    """The source's table."""
    installed: bool
    """Whether the queue and all triggers are there."""
    waiting: int
    """Entries of the queue; a row that changed twice has two."""
    verified_at: str | None
    """When a run last compared the whole source, and it agreed."""
    verified_run: int | None
    done: Literal["installed", "removed"] | None = None
    """What the command did."""

    def as_json(self) -> dict[str, Any]:
        """As one JSON object."""
        return asdict(self)


def state(pipeline: Pipeline) -> ChangesState:
    """How the queue stands. Raises as ``install_queue``."""
    with _opened(pipeline) as (connection, queue):
        return _state(connection, pipeline, queue, None)


def install_queue(pipeline: Pipeline) -> ChangesState:
    """Make the queue and its triggers; nothing happens to those that are there.

    Raises ``UsageError`` if the pipeline has no queue, and ``SourceError`` if the table cannot have one, or if the role
    may not make it.
    """
    with _opened(pipeline) as (connection, queue):
        if not queue.facts(connection, {}).complete:
            queue.install(connection)
        return _state(connection, pipeline, queue, "installed")


def remove_queue(pipeline: Pipeline) -> ChangesState:
    """Drop the triggers and the queue; the next run makes them again, unless the file says ``by: compare``.

    Raises ``UsageError`` if the pipeline's source is no table of Postgres.
    """
    with _opened(pipeline, wanted=False) as (connection, queue):
        queue.remove(connection)
        return _state(connection, pipeline, queue, "removed")


def statements(pipeline: Pipeline) -> str:
    """The SQL that installs the queue, for an administrator to run. Raises as ``install_queue``."""
    with _opened(pipeline) as (connection, queue):
        made = (*queue.statements(connection), *queue.grants(connection))
        texts = [statement.as_string(connection).strip() for statement in made]
    return "BEGIN;\n" + "".join(f"{text};\n" for text in texts) + "COMMIT;\n"


def reason_to_run(pipeline: Pipeline) -> str | None:
    """Why a sync is due now, in a few words; None if nothing has changed since the last one.

    It looks at the queue and the ledger, never at the source's rows. Raises as ``install_queue``.
    """
    with _opened(pipeline) as (connection, queue):
        before = _known(connection, pipeline)
        if before is None:
            return "the whole source was never compared"
        if not queue.facts(connection, {}).complete:
            return "the triggers are not complete"
        if before.seconds >= _source(pipeline).changes.verify_seconds:
            return "the whole source is due to be compared"
        return "rows have changed" if queue.any_entry(connection) else None


def _state(
    connection: Connection, pipeline: Pipeline, queue: ChangeQueue, done: Literal["installed", "removed"] | None
) -> ChangesState:
    complete = queue.facts(connection, {}).complete
    before = _known(connection, pipeline)
    return ChangesState(
        pipeline=pipeline.name,
        table=queue.shown,
        installed=complete,
        waiting=queue.count(connection) if complete else 0,
        verified_at=before.verified_at if before else None,
        verified_run=before.verified_run if before else None,
        done=done,
    )


def _known(connection: Connection, pipeline: Pipeline) -> Known | None:
    if not is_readable(connection, "changes", "facts"):
        return None
    row = connection.execute(query("pipelines", "find"), {"name": pipeline.name}).fetchone()
    return known(connection, PipelineId(row[0])) if row else None


def _source(pipeline: Pipeline) -> PostgresSource:
    source = pipeline.source
    if source.kind != "postgres" or source.table is None:
        raise UsageError(f"the source of {pipeline.name} is no table of Postgres, so no trigger can queue its changes")
    return source


@contextmanager
def _opened(pipeline: Pipeline, *, wanted: bool = True) -> Generator[tuple[Connection, ChangeQueue]]:
    """A connection to the source's database, and the pipeline's queue."""
    source = _source(pipeline)
    if wanted and source.changes.by != "trigger":
        raise UsageError(
            f"the pipeline {pipeline.name} compares its whole source in each run; write changes: {{by: trigger}} into "
            "its source to queue what changes"
        )
    resolved = resolve(without_key(effective(pipeline)), _NEEDED)
    if not is_in_target_database(resolved):
        check_has_no_queue(pipeline.name, _source(resolved))
    with open_target(resolved, "rowvec changes") as connection:
        rows = describe(connection, resolved, _source(resolved), b"")
        yield connection, ChangeQueue.of(resolved, _source(resolved), rows.key)
