"""An extract's input, the limits it must keep, and the plan it stores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from psycopg import sql

from rowvec.errors import DeleteLimitExceeded, SourceError, TargetError
from rowvec.ledger.generations import hide_until_switch
from rowvec.ledger.journal import restart_journal
from rowvec.ledger.pipelines import PipelineId
from rowvec.ledger.plans import Counts, Plan, Queued, plan_rows, scope_rows, store
from rowvec.ledger.reuse import paid_for
from rowvec.ledger.runs import RunId
from rowvec.pipeline import Pipeline
from rowvec.postgres.columns import PgColumn
from rowvec.postgres.connection import Connection
from rowvec.postgres.fragments import key_json
from rowvec.postgres.queries import query
from rowvec.postgres.tables.citus import distribute
from rowvec.postgres.tables.create import create_table
from rowvec.postgres.tables.partitions import check_planned
from rowvec.postgres.vector_table import VectorTable, direct_possible
from rowvec.runtime.figures import counted
from rowvec.sources.protocol import HashedSource
from rowvec.vectors.fingerprint import Identity


def check_empty(pipeline: Pipeline, source: HashedSource) -> None:
    """Raise ``SourceError`` if there are rows without content and the pipeline says that there must be none."""
    if pipeline.source.empty == "fail" and source.blank:
        raise SourceError(
            f"{counted(source.blank, 'rows have', 'row has')} empty content and source.empty is fail; fix that, "
            "or set it to skip or reject"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What an extract works on."""

    pipeline: Pipeline
    """With its references resolved."""
    identity: Identity
    pipeline_id: PipelineId
    run_id: RunId
    note_all_images: bool = False
    """Whether to note the places of the images of all rows, and not only of new and changed rows."""
    batch_weight: int = 1
    """See ``count_batches``."""
    dry_run: bool = False
    """Whether nobody will carry out the plan, so that no vector table is made for it."""
    begin: Callable[[], None] | None = None
    """Makes the ledger, if there is none yet and nobody will carry out the plan: first runs wait from then on."""
    queued: Queued | None = None
    """What the queue of changes says; None if the source has none."""

    def begin_ledger(self) -> None:
        """Call ``begin``, if there is one: as late as possible, but before the ledger is looked at."""
        if self.begin is not None:
            self.begin()

    @property
    def scope(self) -> sql.Identifier | None:
        """A table of the only keys to compare; None: everything is compared."""
        return scope_rows(self.run_id) if self.queued and not self.queued.whole else None


def check_deletes(counts: Counts, pipeline: Pipeline) -> None:
    """Raise ``DeleteLimitExceeded`` if a plan would delete more than the pipeline allows.

    A source table that is only half loaded looks as if its other rows were deleted.
    """
    stored = counts.unchanged + counts.changed + counts.metadata_only + counts.deleted
    allowed = pipeline.validation.max_delete_fraction
    if stored and counts.deleted / stored > allowed:
        raise DeleteLimitExceeded(
            f"this run would delete {counts.deleted:,} of {stored:,} vectors ({counts.deleted / stored:.0%}), and "
            f"validation.max_delete_fraction allows {allowed:.0%}; nothing was changed. If the rows should be deleted, "
            "run once with --max-delete-fraction 1"
        )


def check_loss(gone: int, stored: int, pipeline: Pipeline) -> None:
    """Raise ``DeleteLimitExceeded`` if the source was emptied since the plan was made.

    The merge is rolled back, and the vectors that were paid for are kept.
    """
    allowed = pipeline.validation.max_delete_fraction
    if stored and gone / stored > allowed:
        raise DeleteLimitExceeded(
            f"the source has lost rows since the plan was made: the merge would delete {gone:,} of {stored:,} vectors, "
            f"and validation.max_delete_fraction allows {allowed:.0%}; nothing was changed. If they should be deleted, "
            "run once with --max-delete-fraction 1"
        )


def store_plan(
    connection: Connection,
    request: Request,
    table: VectorTable,
    changes: tuple[int, int, int, int],
    batches: int,
    *,
    exists: bool,
    empty: int,
) -> Plan:
    """Index the plan's rows, count the texts that are paid for already, and record the plan.

    ``changes``: the numbers of new, changed, metadata-only and deleted rows. ``exists``: whether there is a vector
    table; if not, it is made here, or staging becomes it. ``empty``: the number of rows without content.
    """
    new, changed, metadata_only, deleted = changes
    rows, pipeline_id = plan_rows(request.run_id), sql.Literal(request.pipeline_id)
    connection.execute(query("request", "index_plan", plan=rows))
    check_planned(connection, table, rows, query("partitions", "planned"))
    paid = paid_for(connection, request.pipeline_id, request.identity)
    texts, known = row(connection, query("request", "count_texts", plan=rows, paid_for=paid))
    direct = not exists and direct_possible(table)
    if not exists and not direct and (new or changed) and not request.dry_run:
        create_table(connection, table)
        distribute(connection, table)
        hide_until_switch(connection, table.schema, table.name)
        restart_journal(connection, request.pipeline_id)
    if request.scope is not None and request.queued is not None:
        stored = request.queued.rows
    else:
        stored = row(connection, query("request", "count_rows", table=table.identifier))[0] if exists else 0
    rejected = row(connection, query("request", "count_rejects", pipeline_id=pipeline_id))[0]
    plan = Plan(
        run_id=request.run_id,
        pipeline_id=request.pipeline_id,
        table=table,
        identity=request.identity,
        counts=Counts(
            new=new,
            changed=changed,
            metadata_only=metadata_only,
            deleted=deleted,
            unchanged=stored - changed - metadata_only - deleted,
            rejected=rejected,
            texts=texts,
            known=known,
            empty=empty,
        ),
        batches=batches,
        direct=direct,
        queued=request.queued,
    )
    store(connection, plan)
    return plan


def forget_fixed_rejects(connection: Connection, request: Request, key: tuple[PgColumn, ...] = ()) -> None:
    """Forget the rejects of the kinds that every extract finds again, if this extract did not find them.

    ``key``: the source's key, which a request that does not compare everything needs.
    """
    parts = {"pipeline_id": sql.Literal(request.pipeline_id), "run_id": sql.Literal(request.run_id)}
    connection.execute(query("request", "forget_fixed_rejects", **among(request, key), **parts))


def among(request: Request, key: tuple[PgColumn, ...]) -> dict[str, sql.Composable]:
    """The part of a statement that says whether a reject ``r`` is of a row that the request compares."""
    if request.scope is None:
        return {"among": sql.SQL("true")}
    return {"among": query("request", "in_scope", scope=request.scope, key_json=key_json(key, "scope"))}


def row(connection: Connection, statement: sql.Composed) -> tuple[int, ...]:
    """The one row of counts that a statement returns. Raises ``TargetError`` if there is none."""
    row = connection.execute(statement).fetchone()
    if row is None:
        raise TargetError("the database returned no row for a count; does a connection pooler drop results?")
    return row
