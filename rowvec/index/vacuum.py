"""Vacuums a table after a merge that left many dead rows, so that readers do not have to wait for autovacuum."""

from __future__ import annotations

import logging
import time

from psycopg import errors as pg

from rowvec.index.wear import vacuum_due
from rowvec.postgres.connection import Connection
from rowvec.postgres.queries import query
from rowvec.postgres.vector_table import VectorTable
from rowvec.runtime.progress import tell

logger = logging.getLogger(__name__)


def vacuum_if_due(connection: Connection, table: VectorTable) -> str | None:
    """Vacuum the table if too large a share of its rows is dead.

    Returns a sentence that says what was done, or why it was not possible; None if no vacuum is due. Call it outside
    of any transaction, because an open transaction would keep the dead rows. If another process works on the table
    (autovacuum, a build, DDL), the vacuum is skipped and the next run checks again. A skipped vacuum is not a failure.
    """
    qualified = {"qualified": table.identifier.as_string(connection)}
    live, dead = connection.execute(query("index", "live_and_dead"), qualified).fetchone() or (0, 0)
    if not vacuum_due(live or 0, dead or 0):
        return None
    notices: list[str] = []

    def keep_notice(notice: pg.Diagnostic) -> None:
        notices.append(notice.message_primary or "")

    name = f"{table.schema}.{table.name}"
    logger.info("%s: vacuuming the table, because %s of its %s rows are dead", name, f"{dead:,}", f"{live + dead:,}")
    tell("index", "vacuum", 0, 1)
    started = time.monotonic()
    connection.add_notice_handler(keep_notice)
    try:
        connection.execute_alone(query("index", "vacuum", table=table.identifier), {})
    except (pg.LockNotAvailable, pg.QueryCanceled, pg.InsufficientPrivilege, pg.OutOfMemory, pg.DiskFull) as error:
        notices.append(error.diag.message_primary or str(error))
    finally:
        connection.remove_notice_handler(keep_notice)
    tell("index", "vacuum", 1, 1)
    if notices:
        logger.warning("%s was not vacuumed: %s", name, notices[0])
        return f"{dead:,} dead rows were not vacuumed: {notices[0]}"
    return f"vacuumed {dead:,} dead rows in {time.monotonic() - started:.1f} s"
