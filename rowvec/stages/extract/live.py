"""The temporary table ``live`` of a merge, made from the source itself or from the plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from psycopg import sql

from rowvec.ledger.changes import Waiting, note_look
from rowvec.ledger.journal import unrecorded
from rowvec.ledger.plans import Plan, scope_rows
from rowvec.pipeline import Pipeline
from rowvec.postgres.connection import Connection
from rowvec.postgres.fragments import is_exact, key_digest, key_json, names, same_key
from rowvec.postgres.queries import query
from rowvec.sources.change_queue import ChangeQueue
from rowvec.stages.extract.protocol import Evidence, Rows
from rowvec.stages.extract.request import check_loss
from rowvec.stages.totals import totals


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveSource:
    """The source, read again in the snapshot of the merge's own transaction."""

    connection: Connection
    pipeline: Pipeline
    plan: Plan
    describe: Callable[[], Rows]
    """The source's rows as a SELECT."""
    queue: ChangeQueue | None = None
    """The queue of changes that the plan has read."""

    @property
    def leftovers(self) -> tuple[sql.Identifier, ...]:
        """Staging, plan, and the keys that are compared."""
        keys = (scope_rows(self.plan.run_id),) if self.plan.queued else ()
        return self.plan.staging, self.plan.rows, *keys

    def make(self) -> None:
        """See ``LiveRows``; ``live_pending`` has the keys of rows whose present content is not split yet."""
        rows = self.describe()
        if self.plan.scope is not None:
            rows = rows.within(self.plan.scope)
        self.connection.execute(query("live", "from_source", key=names(self.plan.table.key), rows=rows.rows))
        self.connection.execute(query("live", "pending_rows", unsplit=rows.unsplit))

    def agrees(self) -> bool:
        """Whether each row of the source has its vector and metadata, and the vector table has no other row.

        Looked at only for a plan with nothing to do: the joins that look for rows to delete, pending rows and missing
        rows would then find nothing.
        """
        plan = self.plan
        if plan.direct or plan.counts.anything:
            return False
        any_reject = self.connection.execute(query("live", "any_reject"), {"pipeline_id": plan.pipeline_id}).fetchone()
        if any_reject != (False,):
            return False
        statement = query("live", "agree", table=plan.stored, same_key=self._same_key("l", "t"))
        return self.connection.execute(statement).fetchone() == (True,)

    def drop_moved(self) -> None:
        """See ``LiveRows``."""
        # A first load stages every column in its own type, so that staging can become the vector table.
        same = same_key(self.plan.table.key, "l", "s", cast_right=not self.plan.direct)
        self.connection.execute(query("live", "drop_moved", staging=self.plan.staging, same_key=same))

    def check_deletes(self) -> None:
        """See ``LiveRows``. The transaction is rolled back, and the vectors that were paid for are kept."""
        row_key, stored_rows = self.plan.table.row_key, query("live", "count_stored", table=self.plan.stored)
        if self.plan.queued is not None and self.plan.scope is not None:
            stored_rows = sql.Literal(self.plan.queued.rows)
        statement = query(
            "live",
            "count_gone",
            table=self.plan.stored,
            stored=stored_rows,
            same_row=same_key(row_key, "l", "t"),
            same_row_pending=same_key(row_key, "p", "t"),
        )
        gone, stored = self.connection.execute(statement).fetchone() or (0, 0)
        check_loss(gone, stored, self.pipeline)

    def delete_gone(self) -> int:
        """See ``LiveRows``: every vector whose row is gone or has other content."""
        statement = query(
            "live",
            "delete_gone",
            table=self.plan.table.identifier,
            in_scope=self.plan.in_scope,
            same_key=self._same_key("l", "t"),
            key=names(self.plan.table.key),
            unrecorded=unrecorded(self.plan.pipeline_id),
        )
        return self.connection.execute(statement).rowcount

    def gone(self) -> sql.Composed:
        """See ``LiveRows``."""
        return query("live", "gone", **self._condemned)

    def outdated(self) -> sql.Composed:
        """See ``LiveRows``."""
        return query("live", "outdated", **self._condemned)

    @property
    def _condemned(self) -> dict[str, sql.Composable]:
        table = self.plan.table
        return {"key": names(table.key, "t"), "table": self.plan.stored, "same_key": self._same_key("l", "t")}

    def release(self) -> None:
        """See ``LiveRows``."""
        if self.queue is not None and self.plan.queued is not None:
            self.queue.remove_seen(self.connection, self.plan.queued.snapshot, whole=self.plan.queued.whole)
            entries, oldest_at, _ = self.queue.waiting(self.connection)
            left = Waiting(queue=self.queue.table_name, is_here=True, entries=entries, oldest_at=oldest_at)
            note_look(self.connection, self.plan.pipeline_id, left)

    def account(self, *, settled: bool) -> Evidence:
        """See ``LiveRows``."""
        pending, missing = (0, ()) if settled else self._without_vector()
        source = totals(self.connection, self.plan.table, sql.Identifier("live"))
        return Evidence(pending=pending, missing=missing, source=source)

    def _without_vector(self) -> tuple[int, tuple[str, ...]]:
        """The number of pending rows, and the keys of the missing ones.

        What is left in ``live`` afterwards is exactly what the vector table must hold.
        """
        connection, plan = self.connection, self.plan
        table, same_as_stored = plan.table.identifier, self._same_key("t", "l")
        parts = {"pipeline_id": sql.Literal(plan.pipeline_id), "key_json": key_json(plan.table.key, "l")}
        among: sql.Composable = sql.SQL("true")
        if plan.scope is not None:
            scope_key = key_json(plan.table.key, "scope")
            among = query("request", "in_scope", scope=plan.scope, key_json=scope_key)
        connection.execute(query("live", "forget_gone_rejects", among=among, **parts))
        connection.execute(
            query(
                "live",
                "without_vector",
                table=table,
                plan=plan.rows,
                live_key=names(plan.table.key, "l"),
                same_key_t=same_as_stored,
                same_key_p=self._same_key("p", "l"),
                **parts,
            )
        )
        counted = connection.execute(query("live", "count_pending", table=table, same_key_t=same_as_stored)).fetchone()
        missing = connection.execute(query("live", "missing", key_json=key_json(plan.table.key, "w"))).fetchall()
        connection.execute(query("live", "leave_out_pending", same_key=self._same_key("w", "l")))
        connection.execute(query("live", "leave_out_rejected", **parts))
        return counted[0] if counted else 0, tuple(key for (key,) in missing)

    def _same_key(self, left: str, right: str) -> sql.Composed:
        return same_key(self.plan.table.key, left, right)


@dataclass(frozen=True, slots=True, kw_only=True)
class LivePlan:
    """The plan without the rows that have moved since: the merge's snapshot does not show the source."""

    connection: Connection
    plan: Plan
    moved: list[bytes]
    """Key digests of the rows that have changed."""

    @property
    def leftovers(self) -> tuple[sql.Identifier, ...]:
        """Staging alone: the comparison after the merge reads the plan, and the keys that are compared."""
        return (self.plan.staging,)

    def make(self) -> None:
        """See ``LiveRows``."""
        connection, plan = self.connection, self.plan
        if self.moved:
            for table in [plan.rows, plan.staging] if plan.batches else [plan.rows]:
                connection.execute(query("live", "drop_moved_keys", table=table, **self._moved))
        connection.execute(query("live", "from_plan", key=names(plan.table.key), plan=plan.rows))

    def agrees(self) -> bool:
        """Not known here: ``compare_merged`` finds out after the merge."""
        return False

    def drop_moved(self) -> None:
        """Nothing: ``make`` has done it."""

    def release(self) -> None:
        """Nothing: the comparison after the merge still reads the source by its queue."""

    def check_deletes(self) -> None:
        """Nothing: ``read_again`` has counted what the source lost."""

    def delete_gone(self) -> int:
        """Delete what the plan says, and the vectors of changed rows that got no new one.

        The vectors of moved rows are deleted too: a stale vector is worse than none.
        """
        plan, table = self.plan, self.plan.table
        if self.moved:
            parts = {"key": names(table.key), "unrecorded": unrecorded(plan.pipeline_id), "table": table.identifier}
            self.connection.execute(query("live", "delete_moved_keys", in_scope=plan.in_scope, **parts, **self._moved))
        statement = query("live", "delete_planned", and_same_text=self._same_text, **self._planned)
        return self.connection.execute(statement).rowcount

    def gone(self) -> sql.Composed:
        """See ``LiveRows``."""
        key, table = names(self.plan.table.key, "t"), self.plan.stored
        gone = query("live", "planned_gone", key=key, and_same_text=self._same_text, **self._planned)
        if not self.moved:
            return gone
        return sql.SQL("{} UNION ALL {}").format(gone, query("live", "moved_keys", key=key, table=table, **self._moved))

    def outdated(self) -> sql.Composed:
        """See ``LiveRows``."""
        return query("live", "planned_outdated", key=names(self.plan.table.key, "t"), **self._planned)

    @property
    def _moved(self) -> dict[str, sql.Composable]:
        return {"digest": key_digest(self.plan.table.key), "moved": sql.Literal(self.moved)}

    @property
    def _planned(self) -> dict[str, sql.Composable]:
        plan, table = self.plan, self.plan.table
        return {"table": table.identifier, "plan": plan.rows, "same_key": same_key(table.key, "p", "t")}

    @property
    def _same_text(self) -> sql.Composed:
        inexact = [sql.Identifier(c.name) for c in self.plan.table.key if not is_exact(c)]
        return sql.SQL("").join(sql.SQL(" AND p.{0}::text = t.{0}::text").format(name) for name in inexact)

    def account(self, *, settled: bool) -> Evidence:
        """None yet: ``compare_merged`` collects it after the merge."""
        return Evidence()
