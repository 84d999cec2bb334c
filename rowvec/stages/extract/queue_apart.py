"""The queue of changes in another database than the target: its keys travel, and its entries go after the merge."""

from __future__ import annotations

from dataclasses import dataclass, replace

from psycopg import sql

from rowvec.errors import SourceError
from rowvec.ledger.changes import Known, Waiting, doubt, note_look, prove
from rowvec.ledger.marked_store import family_of
from rowvec.ledger.pipelines import PipelineId
from rowvec.ledger.plans import Plan, scope_rows
from rowvec.pipeline import Pipeline
from rowvec.pipeline.sources import PostgresSource
from rowvec.postgres.columns import PgColumn
from rowvec.postgres.connection import Connection
from rowvec.postgres.fragments import as_own_type, as_sent, definitions, names
from rowvec.postgres.queries import query
from rowvec.sources.change_queue import ChangeQueue, untyped
from rowvec.sources.other_database import RemoteSource, connected, source_errors
from rowvec.sources.protocol import HashedSource
from rowvec.stages.extract.request import Request
from rowvec.stages.extract.scope import at_rest, check_unique, look

# What must be as the extract has found it, when the source is read by its queue again.
_KEPT = ("queue", "failures")


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueApart:
    """The queue of one pipeline, in the database of its source."""

    target: Connection
    pipeline: Pipeline
    pipeline_id: PipelineId
    source: PostgresSource

    def of(self, key: tuple[PgColumn, ...]) -> ChangeQueue:
        """The queue, whether it is installed or not; each ledger has its own. A run has given the ledger its id."""
        statement, values = query("changes", "ledger"), {"family": family_of(self.pipeline.name)}
        row = self.target.execute(statement, values).fetchone()
        return ChangeQueue.of(self.pipeline, self.source, key, row[0] if row else "none")

    def install(self, queue: ChangeQueue) -> None:
        """See ``ChangeQueue``."""
        with connected(self.source.url or "") as connection, source_errors():
            queue.install(connection)

    def remove(self) -> None:
        """See ``ChangeQueue``."""
        with connected(self.source.url or "") as connection, source_errors():
            self.of(()).remove(connection)

    def at_rest(self, request: Request, before: Known) -> Waiting | None:
        """See ``SourceStrategy``."""
        queue = self.of(untyped(self.source.key))
        with connected(self.source.url or "") as connection, source_errors():
            return at_rest(connection, request, queue, before, is_here=False)

    def look(self, opened: HashedSource, request: Request, *, exists: bool) -> Request:
        """In the extract's two transactions: the request with what the run compares; the source then reads only that.

        Raises ``NotInstalled``.
        """
        remote = _remote(opened)
        queue = self.of(remote.key)
        check_unique(remote.described, queue)
        request.begin_ledger()
        request = replace(request, begin=None)
        retried = self._retried()
        keys = queue.keys(retried)

        def copy_keys() -> int:
            return self._copy_keys(remote, keys, scope_rows(request.run_id))

        with source_errors():
            queued = look(self.target, request, queue, exists=exists, apart=remote.connection, make_scope=copy_keys)
        request = replace(request, queued=queued and replace(queued, others=retried))
        if request.scope is not None:
            remote.narrow(keys)
        return request

    def narrow(self, opened: HashedSource, plan: Plan) -> None:
        """Read again what the plan has compared, and what was queued since; its entries are still there.

        Raises ``SourceError`` if somebody has removed entries meanwhile: nothing was changed then.
        """
        if plan.queued is None or plan.scope is None:
            return
        remote = _remote(opened)
        queue = self.of(remote.key)
        with source_errors():
            now = queue.facts(remote.connection, {}).values
        if any(now.get(name) != plan.queued.facts.get(name) for name in _KEPT):
            raise SourceError(
                f"the queue of changes of {self.source.table} is not what it was when the run began: somebody has "
                "removed entries, or something could not be queued; run again, which compares everything"
            )
        remote.narrow(queue.keys(plan.queued.others))

    def set_mark(self, plan: Plan) -> None:
        """Before the merge: leave in the source which merge has read it, so that a restored source is noticed."""
        if plan.queued is not None:
            queue, mark = self.of(plan.table.key), int(plan.queued.facts["mark"])
            with connected(self.source.url or "") as connection, source_errors():
                queue.set_mark(connection, mark)

    def release(self, plan: Plan, table: tuple[int, str], *, agrees: bool) -> None:
        """After the merge and its comparison: what the next run may rely on; then the entries are removed."""
        queued = plan.queued
        if queued is None:
            return
        if not agrees:
            doubt(self.target, plan.pipeline_id, "the run before has found rows that do not agree")
        elif queued.whole:
            prove(self.target, plan, table)
        queue = self.of(plan.table.key)
        with connected(self.source.url or "") as connection, source_errors():
            with connection.transaction():
                queue.remove_seen(connection, queued.snapshot, whole=queued.whole)
            entries, oldest_at, _ = queue.waiting(connection)
        left = Waiting(queue=queue.table_name, is_here=False, entries=entries, oldest_at=oldest_at)
        note_look(self.target, plan.pipeline_id, left)

    def _retried(self) -> list[list[str]]:
        statement = query("changes", "retried", pipeline_id=sql.Literal(self.pipeline_id))
        return [key for (key,) in self.target.execute(statement).fetchall()]

    def _copy_keys(self, remote: RemoteSource, keys: sql.Composed, scope: sql.Identifier) -> int:
        key, target = remote.key, self.target
        sent = tuple(PgColumn(column.name, column.travels_as) for column in key)
        target.execute(query("changes", "keys_as_sent", columns=definitions(sent)))
        statement = query("changes", "copy_keys", sent=as_sent(key), keys=keys)
        with (
            remote.connection.cursor() as theirs,
            theirs.copy(statement) as given,
            target.cursor() as ours,
            ours.copy(query("changes", "copy_sent")) as taken,
        ):
            for block in given:
                taken.write(block)
        typed = sql.SQL(", ").join(
            sql.SQL("{} AS {}").format(as_own_type(column, "s"), sql.Identifier(column.name)) for column in key
        )
        target.execute(query("changes", "sent_scope", scope=scope, typed=typed))
        target.execute(query("changes", "index_scope", scope=scope, key=names(key)))
        target.execute(query("changes", "analyze_scope", scope=scope))
        counted = target.execute(query("changes", "count_scope", scope=scope)).fetchone()
        return counted[0] if counted else 0


def _remote(opened: HashedSource) -> RemoteSource:
    if not isinstance(opened, RemoteSource):
        raise TypeError("only a database has a queue of changes")  # the pipeline file was checked
    return opened
