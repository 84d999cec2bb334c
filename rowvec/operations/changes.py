"""The queue of a source's changes from outside a run: install it, remove it, show it, and look whether a run is due."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

from rowvec.errors import UsageError
from rowvec.ledger.changes import Known, known
from rowvec.ledger.generations import effective
from rowvec.ledger.marked_store import family_of, own_mark
from rowvec.ledger.pipelines import PipelineId, is_readable
from rowvec.pipeline import Pipeline
from rowvec.pipeline.references import resolve, without_key
from rowvec.pipeline.sources import PostgresSource
from rowvec.postgres.connection import Connection, lost_connections_are_retriable, open_target
from rowvec.postgres.migrations import install
from rowvec.postgres.queries import query
from rowvec.runtime.figures import counted
from rowvec.sources.change_queue import ChangeQueue, Facts
from rowvec.sources.other_database import connected, source_errors
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
    with _opened(pipeline) as opened:
        return _state(opened, pipeline, None)


def install_queue(pipeline: Pipeline) -> ChangesState:
    """Make the queue and its triggers; nothing happens to those that are there.

    Raises ``UsageError`` if the pipeline has no queue, and ``SourceError`` if the table cannot have one, or if the role
    may not make it.
    """
    with _opened(pipeline) as opened:
        if not opened.queue.facts(opened.apart, {}).complete:
            opened.queue.install(opened.apart)
        return _state(opened, pipeline, "installed")


def remove_queue(pipeline: Pipeline) -> ChangesState:
    """Drop the triggers and the queue; the next run makes them again, unless the file says ``by: compare``.

    Raises ``UsageError`` if the pipeline's source is no table of Postgres.
    """
    with _opened(pipeline, wanted=False) as opened:
        opened.queue.remove(opened.apart)
        return _state(opened, pipeline, "removed")


def statements(pipeline: Pipeline) -> str:
    """The SQL that installs the queue, for an administrator to run. Raises as ``install_queue``."""
    with _opened(pipeline) as opened:
        made = (*opened.queue.statements(opened.apart), *opened.queue.grants(opened.apart))
        texts = [statement.as_string(opened.apart).strip() for statement in made]
    return "BEGIN;\n" + "".join(f"{text};\n" for text in texts) + "COMMIT;\n"


@dataclass(frozen=True, slots=True)
class _Opened:
    ledger: Connection
    apart: Connection
    """To the source's database, which may be another one."""
    queue: ChangeQueue


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What a watcher sees of a pipeline at one moment."""

    reason: str | None
    """Why a sync is due now, in a few words; None if nothing has changed, or if another run is at work."""
    waiting: int
    """Entries of the queue."""
    oldest_seconds: float | None
    """How long the oldest of them has waited; None if none waits."""


@dataclass(frozen=True, slots=True)
class OpenQueue:
    """The queue of a pipeline and its ledger, for looks that cost a few statements each."""

    _pipeline: Pipeline
    _opened: _Opened

    def look(self) -> Look:
        """Whether a sync is due, and what waits for it; reads the queue and the ledger, never the source's rows.

        Raises ``DatabaseUnavailable`` and ``TargetError`` if they cannot be read.
        """
        with lost_connections_are_retriable():
            queue, apart = self._opened.queue, self._opened.apart
            facts = queue.facts(apart, {})
            entries, oldest_seconds = 0, None
            if facts.complete and queue.any_entry(apart):
                entries, _, oldest_seconds = queue.waiting(apart)
            reason = self._reason(entries, facts)
            return Look(reason=reason, waiting=entries, oldest_seconds=oldest_seconds)

    def _reason(self, entries: int, facts: Facts) -> str | None:
        ledger = self._opened.ledger
        before = _known(ledger, self._pipeline)
        if is_readable(ledger, "run_leases", "held"):
            row = ledger.execute(query("changes", "is_at_work"), {"name": self._pipeline.name}).fetchone()
            if row == (True,):
                return None
        if before is None:
            return "the whole source was never compared"
        if not facts.complete:
            return "the triggers are not complete"
        if before.doubt or any(value != before.facts.get(name) for name, value in facts.values.items()):
            return "the queue may not show everything"
        if before.seconds >= _source(self._pipeline).changes.verify_seconds:
            return "the whole source is due to be compared"
        return counted(entries, "changes wait", "change waits") if entries else None


@contextmanager
def opened_queue(pipeline: Pipeline) -> Generator[OpenQueue]:
    """The queue, with a connection of its own until the end of the context. Raises as ``install_queue``."""
    with _opened(pipeline) as opened:
        yield OpenQueue(pipeline, opened)


def look(pipeline: Pipeline) -> Look:
    """One look. Raises as ``install_queue``."""
    with opened_queue(pipeline) as queue:
        return queue.look()


def _state(opened: _Opened, pipeline: Pipeline, done: Literal["installed", "removed"] | None) -> ChangesState:
    queue = opened.queue
    complete = queue.facts(opened.apart, {}).complete
    before = _known(opened.ledger, pipeline)
    return ChangesState(
        pipeline=pipeline.name,
        table=queue.shown,
        installed=complete,
        waiting=queue.waiting(opened.apart)[0] if complete else 0,
        verified_at=before.verified_at if before else None,
        verified_run=before.verified_run if before else None,
        done=done,
    )


def _known(connection: Connection, pipeline: Pipeline) -> Known | None:
    if not is_readable(connection, "changes", "facts"):
        return None
    row = connection.execute(query("pipelines", "find"), {"name": pipeline.name}).fetchone()
    return known(connection, PipelineId(row[0])) if row else None


def check_has_queue(pipeline: Pipeline) -> None:
    """Raise ``UsageError`` if the pipeline's file asks for no queue of changes."""
    if _source(pipeline).changes.by != "trigger":
        raise UsageError(
            f"the pipeline {pipeline.name} compares its whole source in each run; write changes: {{by: trigger}} into "
            "its source to queue what changes"
        )


def _source(pipeline: Pipeline) -> PostgresSource:
    source = pipeline.source
    if source.kind != "postgres" or source.table is None:
        raise UsageError(f"the source of {pipeline.name} is no table of Postgres, so no trigger can queue its changes")
    return source


@contextmanager
def _opened(pipeline: Pipeline, *, wanted: bool = True) -> Generator[_Opened]:
    """The pipeline's queue, and connections to its database and to the ledger's."""
    _source(pipeline)
    if wanted:
        check_has_queue(pipeline)
    resolved = resolve(without_key(effective(pipeline)), _NEEDED)
    source = _source(resolved)
    with open_target(resolved, "rowvec changes") as ledger:
        if is_in_target_database(resolved):
            key = describe(ledger, resolved, source, b"").key
            yield _Opened(ledger, ledger, ChangeQueue.of(resolved, source, key))
            return
        install(ledger)
        own = own_mark(ledger, family_of(resolved.name), None).ledger
        with connected(source.url or "") as apart, source_errors():
            key = describe(apart, resolved, source, b"").key
            yield _Opened(ledger, apart, ChangeQueue.of(resolved, source, key, own))
