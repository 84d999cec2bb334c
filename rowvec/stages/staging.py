"""The staging table that a run loads its rows into."""

from __future__ import annotations

from psycopg import sql

from rowvec.ledger.runs import RunId
from rowvec.postgres.columns import PgColumn
from rowvec.postgres.connection import Connection, lost_connections_are_retriable
from rowvec.postgres.fragments import definitions
from rowvec.postgres.queries import query
from rowvec.postgres.vector_table import VectorTable


def create_staging(
    connection: Connection, run_id: RunId, table: VectorTable, name: sql.Identifier, *, direct: bool
) -> None:
    """Create the empty table that a run's batches are loaded into; if ``direct``, it has the vector table's columns.

    A staging table of an earlier plan of the same run is dropped, together with the marks of its loaded batches.
    """
    columns = definitions(staged_columns(table, direct=direct))
    with lost_connections_are_retriable(), connection.transaction():
        connection.execute(query("load", "forget_batches"), {"run_id": run_id})
        connection.execute(query("load", "forget_staging", name=name))
        # A table that is split takes the rows from staging, also at a first load.
        logged = direct and table.partition_by is None
        connection.execute(query("load", "create" if logged else "create_unlogged", name=name, columns=columns))


def staged_columns(table: VectorTable, *, direct: bool) -> tuple[PgColumn, ...]:
    """The columns of a staging table, in the order of the artifact's."""
    if direct:
        return table.columns
    own = {column.name for column in (*table.key, *table.metadata)}
    # The merge sets run_id and embedded_at.
    return tuple(PgColumn(c.name, c.travels_as) if c.name in own else c for c in table.columns[:-2])
