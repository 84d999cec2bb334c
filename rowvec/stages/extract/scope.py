"""What a run compares: the rows that the queue of changes names, or everything because something is in doubt."""

from __future__ import annotations

import hashlib
import logging
import secrets
from collections.abc import Callable
from dataclasses import replace

from psycopg import sql

from rowvec.errors import SourceError
from rowvec.ledger.changes import Known, Waiting, known
from rowvec.ledger.pipelines import is_under_construction
from rowvec.ledger.plans import Queued, scope_rows
from rowvec.pipeline.sources import Changes
from rowvec.postgres.connection import Connection
from rowvec.sources.change_queue import ChangeQueue, Facts, Marks
from rowvec.sources.postgres import SourceQuery
from rowvec.stages.extract.request import Request

logger = logging.getLogger(__name__)

LARGE = 0.1
"""If more than this share of the table is queued, comparing everything costs no more."""
_FEW = 1_000
"""So many rows are never a large share."""
_MOST_KEYS = 100
_OPEN_UNTIL = "open_until"
"""In the facts that a run leaves for the next one: see ``_open_until``."""

# What each of the facts means if it is not what the last run found.
_DOUBTS = {
    "settings": "the key, the content, the embedder or the vector table is another one",
    "columns": "a column that is read was dropped and made again, renamed, or has other values by definition",
    "tables": "the source's table, or one of its partitions, was rewritten, truncated, attached or detached",
    "triggers": "the triggers were made again, disabled or enabled",
    "function": "the triggers' function is of another version",
    "queue": "the queue is another table",
    "guard": "what guards the queue is of another version",
    "mark": "the source's database was restored, or the queue was read for another vector table",
    "failures": "a statement of the application could not be queued, or somebody has removed entries of the queue",
}


def settings_digest(request: Request) -> str:
    """What the queue's keys and the vector table's rows depend on, as a digest."""
    source = request.pipeline.source.model_dump(mode="json", exclude={"changes", "url"})
    words = repr((sorted(source.items()), request.identity, request.pipeline.target.table, request.pipeline_id))
    return hashlib.sha256(words.encode()).hexdigest()


class NotInstalled(Exception):
    """The queue is not there, or not as this version makes it: it must be made, and the extract begun again."""

    def __init__(self, queue: ChangeQueue) -> None:
        super().__init__()
        self.queue = queue


def leave_queue(connection: Connection, request: Request, remove: Callable[[], None]) -> None:
    """Before an extract of a pipeline that has no queue any more: drop the one that it had, or it would grow for ever.

    ``remove``: see ``ChangeQueue``. If the role may not do that, the log says who can.
    """
    if request.dry_run or known(connection, request.pipeline_id) is None:
        return
    try:
        remove()
    except SourceError as error:
        logger.warning("%s: %s", request.pipeline.name, error)


def check_unique(rows: SourceQuery, queue: ChangeQueue) -> None:
    """Raise ``SourceError`` if two rows of a source with a queue could have one key."""
    if not rows.unique:
        raise SourceError(
            f"source.changes.by is trigger, and no unique index of {queue.shown} says that each key occurs once and "
            "is never NULL: make one, or set source.changes.by to compare"
        )


def look(
    connection: Connection,
    request: Request,
    queue: ChangeQueue,
    *,
    exists: bool,
    apart: Connection | None = None,
    make_scope: Callable[[], int] | None = None,
) -> Queued | None:
    """In the extract's transaction: what the run compares. None: there is no queue, as in a plan before the first run.

    ``exists``: whether there is a vector table. ``apart``: to the source's database, if it is another one, and
    ``make_scope`` then makes the run's table of keys; returns their number. Raises ``NotInstalled``.
    """
    if is_under_construction(connection, request.pipeline_id):
        return None
    facts = queue.facts(apart or connection, {"settings": settings_digest(request)})
    if not facts.complete:
        if request.dry_run:
            return None
        raise NotInstalled(queue)
    marks = queue.marks(apart or connection)
    before = known(connection, request.pipeline_id, request.run_id) if exists else None
    doubt = _doubt(facts, before, marks)
    keys = 0
    if doubt is None:
        scope, pipeline_id = scope_rows(request.run_id), sql.Literal(request.pipeline_id)
        keys = make_scope() if make_scope else queue.make_scope(connection, scope, pipeline_id)
    why = doubt or _due(before, keys, queue.changes)
    values = {**facts.values, "mark": secrets.randbits(62)} if apart else facts.values
    queued = Queued(
        whole=why is not None,
        why=why or "",
        snapshot=marks.snapshot,
        facts={**values, _OPEN_UNTIL: _open_until(facts, before, marks)},
        keys=keys,
        missed=None if doubt else 0,
    )
    if why is not None or before is None:
        return queued
    return Queued(
        whole=False,
        why="",
        snapshot=marks.snapshot,
        facts=values,
        keys=keys,
        rows=before.rows,
        checksum=before.checksum,
        verified_run=before.verified_run,
        verified_at=before.verified_at,
    )


def at_rest(
    connection: Connection, request: Request, queue: ChangeQueue, before: Known, *, is_here: bool
) -> Waiting | None:
    """The queue, if it is empty, and nothing is in doubt or due; None: the run must compare.

    ``connection``: to the queue's database. Raises ``SourceError`` as ``ChangeQueue.facts``.
    """
    if before.doubt or _due(before, 0, queue.changes):
        return None
    facts = queue.facts_if_empty(connection, {"settings": settings_digest(request)})
    if facts is None or not facts.complete or _doubt_of(facts, before):
        return None
    return Waiting(queue=queue.table_name, is_here=is_here, entries=0, oldest_at=None)


def with_missed(connection: Connection, request: Request, queue: ChangeQueue, diff: sql.Identifier) -> Queued | None:
    """In the extract's transaction: with what the queue has missed, if that can be told.

    ``diff``: a table of the keys whose row and vector do not belong together.
    """
    queued = request.queued
    if queued is None or not queued.whole or queued.missed is None:
        return queued
    missed = queue.missed(connection, scope_rows(request.run_id), diff)
    return replace(queued, missed=len(missed), missed_keys=tuple(missed[:_MOST_KEYS]))


def _doubt(facts: Facts, before: Known | None, marks: Marks) -> str | None:
    if before is None:
        return "there is no whole comparison to rely on yet"
    if marks.truncated:
        return "the source's table was truncated"
    if marks.other_life:
        return "the database was restored"
    return _doubt_of(facts, before)


def _doubt_of(facts: Facts, before: Known) -> str | None:
    if before.facts.get(_OPEN_UNTIL):
        return "a transaction was still open that may have made a change which could not be queued"
    changed = (doubt for name, doubt in _DOUBTS.items() if facts.values.get(name) != before.facts.get(name))
    return next(changed, before.doubt or facts.doubt)


def _open_until(facts: Facts, before: Known | None, marks: Marks) -> int | None:
    """The transaction before which all must have ended that may have made a change which could not be queued.

    A failure is counted at once, and its transaction commits later, perhaps after the whole comparison that follows.
    """
    failures, until = facts.values.get("failures"), before and before.facts.get(_OPEN_UNTIL)
    if failures is not None and (before is None or before.facts.get("failures") != failures):
        until = marks.present
    return until if until and marks.oldest < until else None


def _due(before: Known | None, keys: int, changes: Changes) -> str | None:
    if before is None:
        return "there is no whole comparison to rely on yet"
    if before.seconds < 0:
        return "the last whole comparison is in the future by the database's clock, which was set back"
    if before.seconds >= changes.verify_seconds:
        return f"the last whole comparison is older than source.changes.verify_every, {changes.verify_every}"
    if keys > max(_FEW, LARGE * before.rows):
        return f"{keys:,} keys are queued, a large share of {before.rows:,} rows"
    return None
