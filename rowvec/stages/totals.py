"""The number of rows of a table and their checksum, by which two tables are compared."""

from __future__ import annotations

from psycopg import sql

from rowvec.postgres.connection import Connection
from rowvec.postgres.fragments import key_digest
from rowvec.postgres.queries import query
from rowvec.postgres.vector_table import VectorTable


def totals(connection: Connection, table: VectorTable, rows: sql.Composable) -> tuple[int, str]:
    """The number of rows in ``rows`` and their checksum, which does not depend on the order of the rows.

    ``rows`` needs the key columns of ``table`` and a column ``fingerprint``.
    docs/explanation/consistency.md has the formula.
    """
    statement = query("totals", "totals", digest=key_digest(table.key), table=rows)
    count, checksum = connection.execute(statement).fetchone() or (0, 0)
    return count, str(checksum)


def exchanged(whole: tuple[int, str], old: tuple[int, str], new: tuple[int, str]) -> tuple[int, str]:
    """Rows and checksum of a whole that has ``new`` in the place of ``old``: both are sums over rows."""
    return whole[0] - old[0] + new[0], str(int(whole[1]) - int(old[1]) + int(new[1]))
