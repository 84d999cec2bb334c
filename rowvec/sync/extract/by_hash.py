"""Extract for a source that is not in the target's database: files, and other databases. Only hashes are compared."""

from __future__ import annotations

from psycopg import sql

from rowvec.ledger.plans import Plan, count_batches, plan_rows
from rowvec.postgres.columns import PgColumn
from rowvec.postgres.connection import Connection
from rowvec.postgres.fragments import key_digest, key_json, names
from rowvec.postgres.queries import query
from rowvec.postgres.vector_table import VectorTable, find_table
from rowvec.sync.extract.hashed_source import mark, opened, set_aside_rejects, stored_pairs, take
from rowvec.sync.extract.request import Request, check_empty, store_plan
from rowvec.sync.images.upload import note_images


def extract_apart(connection: Connection, request: Request) -> Plan:
    """Compare source and vector table by hashes, read what changed, and store the plan.

    Raises ``SourceError`` or ``TargetError`` where one of them is not as the pipeline says. Memory does not grow with
    the rows, but for a byte a row of a file, or 16 bytes a changed row of a database.
    """
    with opened(connection, request.pipeline, request.identity, request.run_id) as source, connection.transaction():
        connection.execute(query("extract", "begin"))
        table = VectorTable.of(request.pipeline, source.key, source.metadata)
        exists = find_table(connection, table)
        stored = stored_pairs(connection, request.pipeline, request.identity, table) if exists else iter(())
        gone = mark(source, source.pairs(), stored)
        check_empty(request.pipeline, source)
        take(connection, source, table.key, table.metadata, gone)
        note_images(connection, request.pipeline.name, source.images(everything=request.note_all_images))
        set_aside_rejects(connection, request, source.rejects())
        return _store(connection, request, table, exists=exists)


def _store(connection: Connection, request: Request, table: VectorTable, *, exists: bool) -> Plan:
    parts = {"pipeline_id": sql.Literal(request.pipeline_id), "key_json": key_json(table.key, "d")}
    connection.execute(query("extract_apart", "forget_gone_rejects", **parts))
    connection.execute(query("extract_apart", "leave_out_rejects", **parts))
    counted = connection.execute(query("extract_apart", "count_taken")).fetchone()
    new, changed, metadata_only, deleted = counted or (0, 0, 0, 0)
    batches = count_batches(new + changed, request.batch_weight)
    rows = plan_rows(request.run_id)
    typed = (sql.SQL("{}::{} AS {}, ").format(*_typed(c)) for c in (*table.key, *table.metadata))
    connection.execute(
        query(
            "extract_apart",
            "plan_rows",
            plan=rows,
            batch=query("extract", "batch", batches=sql.Literal(batches)),
            typed=sql.SQL("").join(typed),
        )
    )
    if deleted:
        digest = key_digest(table.key)
        deletes = query(
            "extract_apart", "plan_deletes", plan=rows, key=names(table.key), table=table.identifier, digest=digest
        )
        connection.execute(deletes)
    return store_plan(connection, request, table, (new, changed, metadata_only, deleted), batches, exists=exists)


def _typed(column: PgColumn) -> tuple[sql.Composable, sql.Composable, sql.Composable]:
    return sql.Identifier("d", column.name), column.type_sql, sql.Identifier(column.name)
