"""The extract of a source in the target database itself: one join."""

from __future__ import annotations

from psycopg import sql

from rowvec.errors import SourceError
from rowvec.ledger.pipelines import PipelineId
from rowvec.ledger.plans import Plan, count_batches, plan_rows
from rowvec.postgres.connection import Connection
from rowvec.postgres.fragments import compared_as, is_exact, key_json, names, same_key
from rowvec.postgres.queries import query
from rowvec.postgres.vector_table import VectorTable, find_table
from rowvec.sources.postgres import SourceQuery, is_beside
from rowvec.sync.extract.chunks import ChunkedQuery, Rows, source_rows
from rowvec.sync.extract.request import Request, row, store_plan


def extract_joined(connection: Connection, request: Request) -> Plan:
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
        sql.SQL(" OR wanted.{0}{1} IS DISTINCT FROM stored.{0}{1}").format(sql.Identifier(c.name), compared_as(c))
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
        blank = row(connection, query("extract", "count_blank", blank=rows.blank))[0]
        if blank:
            raise SourceError(
                f"{blank:,} row(s) have empty content and source.empty is fail; mend them, or set it to skip or reject"
            )
    connection.execute(query("extract", "forget_mended", **parts))
