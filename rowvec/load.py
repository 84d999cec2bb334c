"""Load: a batch's artifact goes into staging by binary COPY, once, in constant memory."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa
from psycopg import sql
from psycopg.copy import QueuedLibpqWriter

from rowvec.artifacts import read_artifact
from rowvec.columns import PgColumn
from rowvec.copy_binary import HEADER, TRAILER, Encoder, can_encode
from rowvec.database import Connection
from rowvec.errors import DatabaseUnavailable
from rowvec.ledger import RunId
from rowvec.queries import query
from rowvec.vector_table import VectorTable

# 2000-01-01 in seconds since 1970: Postgres counts time from there.
_POSTGRES_EPOCH = 946_684_800


def direct_possible(table: VectorTable) -> bool:
    """Whether all columns can be written in their own types, so that staging can become the vector table."""
    return all(can_encode(column.pg_type) for column in (*table.key, *table.metadata))


def create_staging(
    connection: Connection, run_id: RunId, table: VectorTable, name: sql.Identifier, *, direct: bool
) -> None:
    """Make the table that a run's batches are loaded into: as the vector table itself where ``direct``."""
    columns = sql.SQL(", ").join(
        sql.SQL("{} {}").format(sql.Identifier(column.name), column.type_sql)
        for column in _staged_columns(table, direct=direct)
    )
    with connection.transaction():
        connection.execute(query("load", "forget_batches"), {"run_id": run_id})
        connection.execute(query("load", "create" if direct else "create_unlogged", name=name, columns=columns))


def load_batch(
    connection: Connection,
    run_id: RunId,
    batch: int,
    artifact: Path,
    table: VectorTable,
    into: sql.Identifier,
    *,
    direct: bool,
) -> int:
    """COPY an artifact into staging and mark the batch as loaded, in one transaction; returns its rows.

    A batch that is marked already is not loaded again.
    """
    values = {"run_id": run_id, "batch": batch}
    with connection.transaction():
        if connection.execute(query("load", "claim"), values).fetchone() is None:
            row = connection.execute(query("load", "loaded_rows"), values).fetchone()
            return row[0] if row else 0
        constants = {}
        if direct:
            constants = {"run_id": run_id, "embedded_at": int((time.time() - _POSTGRES_EPOCH) * 1_000_000)}
        columns = _staged_columns(table, direct=direct)
        rows = copy_rows(connection, into, columns, read_artifact(artifact), constants)
        connection.execute(query("load", "mark"), {**values, "rows": rows})
        return rows


def copy_rows(
    connection: Connection,
    table: sql.Identifier,
    columns: Sequence[PgColumn],
    batches: Iterable[pa.RecordBatch],
    constants: dict[str, int] | None = None,
) -> int:
    """COPY record batches into a table; returns the number of rows, which the server must agree on.

    Raises ``DatabaseUnavailable`` where it does not: a stream that is cut between two rows is accepted by Postgres
    without a word. See ``Encoder`` for ``constants``.
    """
    encoder = Encoder(columns, constants)
    names = sql.SQL(", ").join(sql.Identifier(column.name) for column in encoder.columns)
    statement = query("load", "copy", table=table, columns=names)
    given = 0
    with connection.cursor() as cursor:
        # The queue's own thread sends, so that a block is encoded while the server still reads the one before.
        with cursor.copy(statement, writer=QueuedLibpqWriter(cursor)) as copy:
            copy.write(HEADER)
            for batch in batches:
                for block in encoder.encode(batch):
                    copy.write(block)
                given += batch.num_rows
            copy.write(TRAILER)
        taken = cursor.rowcount
    if taken != given:
        raise DatabaseUnavailable(f"the database took {taken:,} of {given:,} rows; the batch is loaded anew")
    return given


def _staged_columns(table: VectorTable, *, direct: bool) -> tuple[PgColumn, ...]:
    if direct:
        return table.columns
    own = {column.name for column in (*table.key, *table.metadata)}
    # run_id and embedded_at are the merge's to say.
    return tuple(PgColumn(c.name, c.travels_as) if c.name in own else c for c in table.columns[:-2])
