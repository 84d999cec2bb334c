"""The number of rows of a table and their checksum, by which two tables are compared."""

from __future__ import annotations

from psycopg import sql

from rowvec.ledger.plans import Plan
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


def carried(plan: Plan, before: tuple[int, str] | None, after: tuple[int, str]) -> tuple[int, str]:
    """Rows and checksum of the whole, from those of the part that a run compared, before and after the merge.

    Both are sums over rows, so what was compared is taken away and added again. A run that compares everything has them
    already: ``before`` is None.
    """
    if before is None or plan.queued is None:
        return after
    rows = plan.queued.rows - before[0] + after[0]
    return rows, str(int(plan.queued.checksum) - int(before[1]) + int(after[1]))
