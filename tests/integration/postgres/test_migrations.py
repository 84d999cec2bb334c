"""The schema ``rowvec`` is installed once, and a second installation changes nothing."""

from __future__ import annotations

from rowvec.postgres.connection import Connection
from rowvec.postgres.migrations import install


def test_installing_twice_changes_nothing(connection: Connection) -> None:
    before = connection.execute("SELECT number, applied_at FROM rowvec.migrations").fetchall()
    install(connection)
    assert connection.execute("SELECT number, applied_at FROM rowvec.migrations").fetchall() == before


def test_every_table_says_what_it_is_for(connection: Connection) -> None:
    silent = connection.execute(
        "SELECT relname FROM pg_class WHERE relnamespace = 'rowvec'::regnamespace AND relkind = 'r'"
        " AND obj_description(oid) IS NULL AND relname <> 'migrations'"
    ).fetchall()
    assert silent == []
