"""What the server's statistics say that was read, with the counts of all sessions."""

from __future__ import annotations

from rowvec.postgres.connection import Connection
from rowvec.postgres.kept import forget


def hand_in_counts(connection: Connection) -> None:
    """Let this session see what it and the commands before have counted: a session that goes on hands it in later."""
    forget()
    connection.execute("SELECT pg_stat_force_next_flush()")
    connection.execute("SELECT pg_stat_clear_snapshot()")


def rows_read(connection: Connection) -> tuple[int, int]:
    """Rows of the source, of the vector table ``paintings`` and of the hash tree that scans, and indexes, have read."""
    hand_in_counts(connection)
    return connection.execute(
        "SELECT sum(seq_tup_read)::bigint, sum(idx_tup_fetch)::bigint FROM pg_stat_user_tables"
        " WHERE relname IN ('paintings', 'hash_tree')"
    ).fetchone() or (0, 0)
