"""A source whose rows, or their chunks, are in the target's own database: one join compares them with the vectors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace

from psycopg import sql

from rowvec.errors import SourceError
from rowvec.ledger.changes import Known, Waiting
from rowvec.ledger.pipelines import PipelineId
from rowvec.ledger.plans import Plan, count_batches, plan_rows, within_scope
from rowvec.pipeline import Pipeline
from rowvec.pipeline.sources import PostgresSource
from rowvec.postgres.columns import PgColumn
from rowvec.postgres.connection import Connection, expect_few_keys, use_one_snapshot, without_blocking
from rowvec.postgres.fragments import compared_as, is_exact, key_json, names, same_key
from rowvec.postgres.queries import query
from rowvec.postgres.vector_table import VectorTable, opened_table
from rowvec.runtime.figures import counted
from rowvec.sources.change_queue import ChangeQueue, untyped
from rowvec.sources.postgres import SourceQuery, describe
from rowvec.stages.extract.limits import refuse_beyond_limits
from rowvec.stages.extract.live import LiveSource
from rowvec.stages.extract.protocol import Evidence, Rows
from rowvec.stages.extract.request import Request, forget_fixed_rejects, row, store_plan
from rowvec.stages.extract.scope import NotInstalled, at_rest, check_unique, leave_queue, look, with_missed
from rowvec.vectors.fingerprint import Identity


class JoinedSource(ABC):
    """See ``SourceStrategy``: each comparison is one set of statements over one snapshot, and no row travels."""

    def __init__(self, connection: Connection, pipeline: Pipeline, identity: Identity, pipeline_id: PipelineId) -> None:
        self.connection, self.pipeline = connection, pipeline
        self.identity, self.pipeline_id = identity, pipeline_id

    @abstractmethod
    def describe(self) -> Rows:
        """What the vector table is joined with.

        Raises ``SourceError`` if it is not there as the pipeline says.
        """

    def queue(self, key: tuple[PgColumn, ...]) -> ChangeQueue | None:
        """The queue of changes; None if the pipeline has none."""
        del key
        return None

    @abstractmethod
    def refresh(self, request: Request | None = None) -> None:
        """Bring up to date what is kept in the target's database of the source; with a ``request``, for an extract."""

    @abstractmethod
    def refresh_for_merge(self) -> None:
        """The same before a merge, as far as the merge's own snapshot does not show the source itself."""

    @abstractmethod
    def reject_unusable(self, request: Request, rows: Rows) -> None:
        """List the rows that cannot have a vector, if ``refresh`` has not listed them; in the extract's transaction."""

    @abstractmethod
    def count_lost(self, plan: Plan) -> int:
        """See ``SourceStrategy``."""

    def at_rest(self, request: Request, before: Known) -> Waiting | None:
        """See ``SourceStrategy``."""
        queue = self.queue(untyped(self.pipeline.source.key))
        return None if queue is None else at_rest(self.connection, request, queue, before, is_here=True)

    def extract(self, request: Request) -> Plan:
        """See ``SourceStrategy``."""
        self.refresh(request)
        try:
            return without_blocking(lambda: self._extract_at_once(request))
        except NotInstalled as missing:
            # Before the snapshot that relies on the triggers.
            missing.queue.install(self.connection)
            return without_blocking(lambda: self._extract_at_once(request))

    def read_again(self, plan: Plan) -> LiveSource:
        """See ``SourceStrategy``: the merge reads the source in its own snapshot."""
        self.refresh_for_merge()
        queue = self.queue(plan.table.key) if plan.queued else None
        return LiveSource(
            connection=self.connection, pipeline=self.pipeline, plan=plan, describe=self.describe, queue=queue
        )

    def compare_merged(self, plan: Plan) -> Evidence | None:
        """See ``SourceStrategy``."""
        return None

    def release(self, plan: Plan, table: tuple[int, str], *, agrees: bool) -> None:
        """See ``SourceStrategy``: the merge's transaction has settled everything."""
        del plan, table, agrees

    def compare_for_audit(self, table: VectorTable) -> Callable[[], None]:
        """See ``SourceStrategy``."""
        self.refresh()
        return lambda: self._add_findings(table)

    def _extract_at_once(self, request: Request) -> Plan:
        with self.connection.transaction():
            use_one_snapshot(self.connection)
            rows = self.describe()
            table, exists = opened_table(self.connection, self.pipeline, rows.key, rows.metadata)
            queue = self.queue(rows.key)
            if queue is not None:
                check_unique(rows.whole, queue)
                request = replace(request, queued=look(self.connection, request, queue, exists=exists))
                if request.scope is not None:
                    rows = rows.within(request.scope)
                    expect_few_keys(self.connection)
            self.reject_unusable(request, rows)
            _make_diff(self.connection, self.pipeline_id, rows, (table, request.scope), exists=exists, for_extract=True)
            if queue is not None and request.queued is not None:
                request = replace(request, queued=with_missed(self.connection, request, queue, sql.Identifier("diff")))
            empty = self.count_empty(rows) if self.pipeline.source.empty == "skip" else 0
            return _store(self.connection, request, rows, table, exists=exists, empty=empty)

    def count_empty(self, rows: Rows) -> int:
        """How many rows of the source have a key and no content.

        A second scan: a join that saw these rows too would take longer (docs/explanation/performance.md).
        """
        return row(self.connection, query("joined", "count_blank", blank=rows.whole.blank))[0]

    def _add_findings(self, table: VectorTable) -> None:
        rows = self.describe()
        _make_diff(self.connection, self.pipeline_id, rows, (table, None), exists=True, for_extract=False)
        self.connection.execute(query("joined", "add_differences", key_json=key_json(table.key, "d")))
        self.connection.execute(
            query(
                "joined",
                "add_other_metadata_hashes",
                rows=rows.rows,
                table=table.identifier,
                key_json=key_json(table.key, "t"),
                same_key=same_key(table.key, "wanted", "t"),
            )
        )


class TableSource(JoinedSource):
    """A table, or a query, in the target's own database, whose contents are not split."""

    def __init__(
        self,
        connection: Connection,
        pipeline: Pipeline,
        identity: Identity,
        pipeline_id: PipelineId,
        source: PostgresSource,
    ) -> None:
        super().__init__(connection, pipeline, identity, pipeline_id)
        self._source = source

    def describe(self) -> SourceQuery:
        """See ``JoinedSource``."""
        return describe(self.connection, self.pipeline, self._source, self.identity.digest())

    def queue(self, key: tuple[PgColumn, ...]) -> ChangeQueue | None:
        """See ``JoinedSource``."""
        return ChangeQueue.of(self.pipeline, self._source, key) if self._source.is_queued else None

    def refresh(self, request: Request | None = None) -> None:
        """The join reads the source itself; the ledger must be there before the snapshot."""
        if request is None:
            return
        request.begin_ledger()
        if not self._source.is_queued:
            former = ChangeQueue.of(self.pipeline, self._source, ())
            leave_queue(self.connection, request, lambda: former.remove(self.connection))

    def refresh_for_merge(self) -> None:
        """Nothing: the join reads the source itself."""

    def reject_unusable(self, request: Request, rows: Rows) -> None:
        """See ``JoinedSource``."""
        reject_rows_without_content(self.connection, request, rows.whole)

    def count_lost(self, plan: Plan) -> int:
        """See ``SourceStrategy``: a row has one vector."""
        return plan.counts.deleted


def reject_rows_without_content(connection: Connection, request: Request, rows: SourceQuery) -> None:
    """List the rows of a source in the target's database that cannot have a vector of their own.

    Raises ``SourceError`` if there are rows without content and the pipeline says that there must be none.
    """
    policy = request.pipeline.source.empty
    parts = {"pipeline_id": sql.Literal(request.pipeline_id), "run_id": sql.Literal(request.run_id)}
    if not rows.unique:
        is_null = sql.SQL(" OR ").join(sql.SQL("{} IS NULL").format(sql.Identifier(c.name)) for c in rows.key)
        connection.execute(
            query(
                "joined",
                "reject_bad_keys",
                key_json=key_json(rows.key),
                key_is_null=is_null,
                relation=rows.relation,
                key=names(rows.key),
                **parts,
            )
        )
    if rows.unreadable is not None:
        connection.execute(query("joined", "reject_unreadable", unreadable=rows.unreadable, **parts))
    if policy == "reject":
        connection.execute(query("joined", "reject_blank", key_json=key_json(rows.key), blank=rows.blank, **parts))
    if policy == "fail":
        blank = row(connection, query("joined", "count_blank", blank=rows.blank))[0]
        if blank:
            raise SourceError(
                f"{counted(blank, 'rows have', 'row has')} empty content and source.empty is fail; fix that, or set it "
                "to skip or reject"
            )
    forget_fixed_rejects(connection, request, rows.key)


def _make_diff(
    connection: Connection,
    pipeline_id: PipelineId,
    rows: Rows,
    compared: tuple[VectorTable, sql.Identifier | None],
    *,
    exists: bool,
    for_extract: bool,
) -> None:
    """Make the temporary table ``diff``: the keys whose row and vector do not belong together, without the rejects.

    ``compared``: the vector table, and the only keys of it to compare, if not all. ``for_extract``: with the rejects
    that each run tries again.
    """
    table, scope = compared
    columns = names((*table.key, *table.metadata))
    stored = query("joined", "stored_nothing", columns=columns, rows=rows.rows)
    if exists:
        stored = query("joined", "stored", columns=columns, table=within_scope(table, scope))
    coalesced = (sql.SQL("coalesce(wanted.{0}, stored.{0}) AS {0}").format(sql.Identifier(c.name)) for c in table.key)
    differs = (
        sql.SQL(" OR wanted.{0}{1} IS DISTINCT FROM stored.{0}{1}").format(sql.Identifier(c.name), compared_as(c))
        for c in (*(c for c in table.key if not is_exact(c)), *table.metadata)
    )
    connection.execute(
        query(
            "joined",
            "diff",
            coalesced_key=sql.SQL(", ").join(coalesced),
            rows=rows.rows,
            stored=stored,
            same_key=same_key(table.key, "wanted", "stored"),
            or_metadata_differs=sql.SQL("").join(differs),
        )
    )
    parts = {"pipeline_id": sql.Literal(pipeline_id), "key_json": key_json(table.key, "d")}
    holds = query("rejects", "holds_until_changed" if for_extract else "holds", row=sql.SQL("d"))
    connection.execute(query("joined", "leave_out_rejects", holds=holds, **parts))
    connection.execute(query("joined", "analyze_diff"))


def _store(
    connection: Connection, request: Request, rows: Rows, table: VectorTable, *, exists: bool, empty: int
) -> Plan:
    counted = connection.execute(query("joined", "count_diff")).fetchone()
    new, changed, metadata_only, deleted = counted or (0, 0, 0, 0)
    batches = count_batches(new + changed, request.batch_weight)
    connection.execute(
        query(
            "joined",
            "plan_rows",
            plan=plan_rows(request.run_id),
            batch=query("request", "batch", batches=sql.Literal(batches)),
            diff_key=names(table.key, "d"),
            row_metadata=sql.SQL("").join(sql.SQL("{}, ").format(sql.Identifier("r", c.name)) for c in table.metadata),
            rows=rows.changed_rows,
            same_key=same_key(table.key, "d", "r"),
        )
    )
    refuse_beyond_limits(connection, request, table)
    changes = (new, changed, metadata_only, deleted)
    return store_plan(connection, request, table, changes, batches, exists=exists, empty=empty)
