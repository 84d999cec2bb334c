"""What the server's statistics say that was read, with the counts of all sessions."""

from __future__ import annotations

from typing import Any

import psycopg

from rowvec.postgres import kept
from rowvec.postgres.connection import Connection
from tests.support.waiting import wait_for


def hand_in_counts(connection: psycopg.Connection[Any] | Connection) -> None:
    """Let this session see what it and the commands of this process have counted.

    A session that stays open hands its counts in later, and one that is closed when its process on the server ends,
    which is a moment later.
    """
    idle = kept._idle  # pyright: ignore[reportPrivateUsage] # whose end has to be waited for
    ending = [session.info.backend_pid for _, session in idle]
    kept.forget()
    there = "SELECT count(*) FROM pg_catalog.pg_stat_activity WHERE pid = ANY (%s)"
    wait_for(lambda: connection.execute(there, (ending,)).fetchone() == (0,))
    connection.execute("SELECT pg_stat_force_next_flush()")
    connection.execute("SELECT pg_stat_clear_snapshot()")


def rows_read(connection: Connection) -> tuple[int, int]:
    """Rows of the source, of the vector table ``paintings`` and of the hash tree that scans, and indexes, have read."""
    hand_in_counts(connection)
    return connection.execute(
        "SELECT sum(seq_tup_read)::bigint, sum(idx_tup_fetch)::bigint FROM pg_stat_user_tables"
        " WHERE relname IN ('paintings', 'hash_tree')"
    ).fetchone() or (0, 0)
