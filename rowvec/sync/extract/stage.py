"""Extract: one snapshot of source and vector table becomes a stored plan of what has to change."""

from __future__ import annotations

from dataclasses import dataclass, replace

from psycopg import sql

from rowvec.errors import DeleteLimitExceeded, SourceError, TargetError
from rowvec.ledger.journal import begin_anew
from rowvec.ledger.pipelines import PipelineId, RunId
from rowvec.ledger.plans import Counts, Plan, count_batches, key_json, plan_rows, store
from rowvec.pipeline import Pipeline
from rowvec.postgres.citus import distribute
from rowvec.postgres.columns import PgColumn
from rowvec.postgres.connection import Connection, without_blocking
from rowvec.postgres.queries import query
from rowvec.postgres.vector_table import VectorTable, create_table, find_table
from rowvec.search.hybrid import check_language
from rowvec.sources.postgres import SourceQuery, is_beside, names
from rowvec.sync.extract.chunks import ChunkedQuery, Rows, count_lost, is_joined, source_rows, split_contents
from rowvec.sync.load import direct_possible
from rowvec.vectors.fingerprint import Identity
from rowvec.vectors.matryoshka import paid_for


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What an extract works on."""

    pipeline: Pipeline
    """With its references resolved."""
    identity: Identity
    pipeline_id: PipelineId
    run_id: RunId
    note_all_images: bool = False
    """Whether to note where all rows have their images, and not those that are new or changed alone."""
    batch_weight: int = 1
    """See ``count_batches``."""


def extract(connection: Connection, request: Request) -> Plan:
    """Compare source and vector table, and store the plan.

    Raises ``SourceError`` or ``TargetError`` where one of them is not as the pipeline says, and
    ``DeleteLimitExceeded`` before anything was spent.
    """
    pipeline = request.pipeline
    if pipeline.search.hybrid:
        # Before anything is paid for, though it is the index that will need it.
        check_language(connection, pipeline.search.language)
    if pipeline.source.chunks is not None:
        bring_chunks_up_to_date(connection, pipeline, request.identity, request.pipeline_id, request)
    if is_joined(pipeline):
        plan = without_blocking(lambda: _extract_joined(connection, request))
    else:
        from rowvec.sync.extract.by_hash import extract_apart  # late: pyarrow's file readers are needed only here

        plan = without_blocking(lambda: extract_apart(connection, request))
    counts = plan.counts
    if pipeline.source.chunks is not None and counts.deleted:
        counts = replace(counts, deleted=count_lost(connection, pipeline, plan))
    check_deletes(counts, pipeline)
    return plan


def bring_chunks_up_to_date(
    connection: Connection,
    pipeline: Pipeline,
    identity: Identity,
    pipeline_id: PipelineId,
    request: Request | None = None,
) -> None:
    """Split whatever contents of the source are new; with a ``request``, set aside what cannot be."""
    if is_beside(pipeline):
        split_contents(connection, pipeline, identity, pipeline_id)
        return
    from rowvec.sync.extract.mirrored_chunks import mirror_source  # late: pyarrow's file readers are needed only here

    mirror_source(connection, pipeline, pipeline_id, request)


def check_deletes(counts: Counts, pipeline: Pipeline) -> None:
    """Refuse a plan that would delete more than the pipeline allows: a table half loaded looks like this."""
    stored = counts.unchanged + counts.changed + counts.metadata_only + counts.deleted
    allowed = pipeline.validation.max_delete_fraction
    if stored and counts.deleted / stored > allowed:
        raise DeleteLimitExceeded(
            f"this run would delete {counts.deleted:,} of {stored:,} vectors ({counts.deleted / stored:.0%}), and "
            f"validation.max_delete_fraction allows {allowed:.0%}; nothing was changed. If the rows are meant to go, "
            "run once with --max-delete-fraction 1"
        )


def check_loss(gone: int, stored: int, pipeline: Pipeline) -> None:
    """Refuse a merge for a source that was emptied since it was planned; going back costs nothing that was paid for."""
    allowed = pipeline.validation.max_delete_fraction
    if stored and gone / stored > allowed:
        raise DeleteLimitExceeded(
            f"the source has lost rows since the plan was made: the merge would delete {gone:,} of {stored:,} vectors, "
            f"and validation.max_delete_fraction allows {allowed:.0%}; nothing was changed. If they are meant to go, "
            "run once with --max-delete-fraction 1"
        )


def same_key(key: tuple[PgColumn, ...], left: str, right: str) -> sql.Composed:
    """``l.a = r.a AND l.b = r.b``."""
    return sql.SQL(" AND ").join(
        sql.SQL("{} = {}").format(sql.Identifier(left, c.name), sql.Identifier(right, c.name)) for c in key
    )


def _extract_joined(connection: Connection, request: Request) -> Plan:
    """The source is in the target's database: one set of statements over one snapshot, and no row travels."""
    with connection.transaction():
        connection.execute(query("extract", "begin"))
        rows = source_rows(connection, request.pipeline, request.identity, request.pipeline_id)
        table = VectorTable.of(request.pipeline, rows.key, rows.metadata)
        exists = find_table(connection, table)
        if is_beside(request.pipeline):
            _reject_rows_without_content(connection, request, rows.whole if isinstance(rows, ChunkedQuery) else rows)
        compare(connection, request.pipeline_id, rows, table, exists=exists)
        return _store(connection, request, rows, table, exists=exists)


def compare(connection: Connection, pipeline_id: PipelineId, rows: Rows, table: VectorTable, *, exists: bool) -> None:
    """Make the temporary table ``diff``: the keys whose row and vector do not belong together, less the rejects."""
    columns = names((*table.key, *table.metadata))
    stored = query("extract", "stored_nothing", columns=columns, rows=rows.rows)
    if exists:
        stored = query("extract", "stored", columns=columns, table=table.identifier)
    coalesced = (sql.SQL("coalesce(wanted.{0}, stored.{0}) AS {0}").format(sql.Identifier(c.name)) for c in table.key)
    differs = (
        sql.SQL(" OR wanted.{0}{1} IS DISTINCT FROM stored.{0}{1}").format(sql.Identifier(c.name), _compared_as(c))
        for c in (*(c for c in table.key if not is_exact(c)), *table.metadata)
    )
    connection.execute(
        query(
            "extract",
            "diff",
            coalesced_key=sql.SQL(", ").join(coalesced),
            rows=rows.rows,
            stored=stored,
            same_key=same_key(table.key, "wanted", "stored"),
            or_metadata_differs=sql.SQL("").join(differs),
        )
    )
    connection.execute(
        query("extract", "leave_out_rejects", pipeline_id=sql.Literal(pipeline_id), key_json=key_json(table.key, "d"))
    )
    connection.execute(query("extract", "analyze_diff"))


def _compared_as(column: PgColumn) -> sql.SQL:
    """Values that print alike are alike: equality is too lenient for citext, numeric and -0, and missing for json."""
    return sql.SQL("" if is_exact(column) else '::text COLLATE "C"')


def is_exact(column: PgColumn) -> bool:
    """Whether equal values print alike: 1.0 and 1.00 are one key to the database, and two to those who read it."""
    return column.pg_type in ("smallint", "integer", "bigint", "boolean", "uuid", "date")


def _store(connection: Connection, request: Request, rows: Rows, table: VectorTable, *, exists: bool) -> Plan:
    counted = connection.execute(query("extract", "count_diff")).fetchone()
    new, changed, metadata_only, deleted = counted or (0, 0, 0, 0)
    batches = count_batches(new + changed, request.batch_weight)
    connection.execute(
        query(
            "extract",
            "plan_rows",
            plan=plan_rows(request.run_id),
            batch=query("extract", "batch", batches=sql.Literal(batches)),
            diff_key=names(table.key, "d"),
            row_metadata=sql.SQL("").join(sql.SQL("{}, ").format(sql.Identifier("r", c.name)) for c in table.metadata),
            rows=rows.rows,
            same_key=same_key(table.key, "d", "r"),
        )
    )
    return store_plan(connection, request, table, (new, changed, metadata_only, deleted), batches, exists=exists)


def store_plan(
    connection: Connection,
    request: Request,
    table: VectorTable,
    changes: tuple[int, int, int, int],
    batches: int,
    *,
    exists: bool,
) -> Plan:
    """Index the plan's rows, count what is paid for, and record the plan."""
    new, changed, metadata_only, deleted = changes
    rows, pipeline_id = plan_rows(request.run_id), sql.Literal(request.pipeline_id)
    connection.execute(query("extract", "index_plan", plan=rows))
    paid = paid_for(connection, request.pipeline_id, request.identity)
    texts, known = _row(connection, query("extract", "count_texts", plan=rows, paid_for=paid))
    direct = not exists and direct_possible(table)
    if not exists and not direct and (new or changed):
        create_table(connection, table)
        distribute(connection, table)
        begin_anew(connection, request.pipeline_id)
    stored = _row(connection, query("extract", "count_rows", table=table.identifier))[0] if exists else 0
    rejected = _row(connection, query("extract", "count_rejects", pipeline_id=pipeline_id))[0]
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
        ),
        batches=batches,
        direct=direct,
    )
    store(connection, plan)
    return plan


def _reject_rows_without_content(connection: Connection, request: Request, rows: SourceQuery) -> None:
    policy = request.pipeline.source.empty
    parts = {"pipeline_id": sql.Literal(request.pipeline_id), "run_id": sql.Literal(request.run_id)}
    if not rows.unique:
        is_null = sql.SQL(" OR ").join(sql.SQL("{} IS NULL").format(sql.Identifier(c.name)) for c in rows.key)
        connection.execute(
            query(
                "extract",
                "reject_bad_keys",
                key_json=key_json(rows.key),
                key_is_null=is_null,
                relation=rows.relation,
                key=names(rows.key),
                **parts,
            )
        )
    if policy == "reject":
        connection.execute(query("extract", "reject_blank", key_json=key_json(rows.key), blank=rows.blank, **parts))
    if policy == "fail":
        blank = _row(connection, query("extract", "count_blank", blank=rows.blank))[0]
        if blank:
            raise SourceError(
                f"{blank:,} row(s) have empty content and source.empty is fail; mend them, or set it to skip or reject"
            )
    connection.execute(query("extract", "forget_mended", **parts))


def _row(connection: Connection, statement: sql.Composed) -> tuple[int, ...]:
    row = connection.execute(statement).fetchone()
    if row is None:
        raise TargetError("the database gave no answer to a count; is it a pooler that cuts results?")
    return row
