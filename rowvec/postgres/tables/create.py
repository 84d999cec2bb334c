"""Creates an empty vector table with its primary key, and its partitions if their number is fixed."""

from __future__ import annotations

from psycopg import sql

from rowvec.postgres.connection import Connection
from rowvec.postgres.fragments import definitions, names
from rowvec.postgres.queries import query
from rowvec.postgres.tables.partitions import make_remainders
from rowvec.postgres.vector_table import VectorTable


def create_table(connection: Connection, table: VectorTable) -> None:
    """Create the empty vector table in its schema, which must exist; for a transaction.

    Raises ``TargetError`` if it would have more partitions than are possible.
    """
    parts = {"columns": definitions(table.columns), "key": names(table.key), "split": split_clause(table)}
    connection.execute(query("vector_table", "create", table=table.identifier, **parts))
    make_remainders(connection, table)


def split_clause(table: VectorTable) -> sql.Composable:
    """What follows the columns of a table that is split into partitions; empty for another one."""
    if table.partition_by is None:
        return sql.SQL("")
    block = "by_list" if table.partition_by.kind == "list" else "by_hash"
    return query("partitions", block, columns=names(table.partition_columns))
