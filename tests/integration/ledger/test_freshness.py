"""``rowvec.freshness``: which changes wait and for how long, the last run, and the last comparison of everything."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from psycopg.rows import dict_row

from rowvec.operations.status import status
from rowvec.pipeline import Pipeline
from rowvec.postgres.connection import Connection
from tests.support import paintings as gallery
from tests.support.paintings import sync
from tests.support.row_counts import hand_in_counts

pytestmark = pytest.mark.needs("a superuser", "only the owner of the source's table can make triggers on it")


@pytest.fixture
def queued(tmp_path: Path) -> Pipeline:
    """The paintings, with a queue of changes."""
    return gallery.pipeline(str(tmp_path / "artifacts"), source={"changes": {"by": "trigger"}})


def freshness(url: str) -> dict[str, Any]:
    """The row of the only pipeline."""
    with psycopg.connect(url) as client, client.cursor(row_factory=dict_row) as cursor:
        (row,) = cursor.execute("SELECT * FROM rowvec.freshness").fetchall()
    return row


@pytest.mark.needs("no pooler", "a session that goes on hands in its counts seconds later")
def test_what_waits_is_counted_and_dated_without_a_look_at_the_rows(
    source: Connection, database_url: str, queued: Pipeline
) -> None:
    first = sync(queued)
    fresh = freshness(database_url)
    assert (fresh["pipeline"], fresh["table_name"], fresh["waiting"], fresh["oldest"]) == (
        "paintings",
        "paintings",
        0,
        None,
    )
    assert (fresh["last_run"], fresh["verdict"], fresh["verified_run"]) == (first.run_id, "consistent", first.run_id)
    source.execute("UPDATE paintings SET title = 'new' WHERE id < 4")
    source.execute("UPDATE paintings SET title = 'newer' WHERE id < 3")
    before = rows_read(source)
    waiting = freshness(database_url)
    assert waiting["waiting"] == 5
    assert timedelta() < waiting["oldest"] < timedelta(minutes=1)
    assert rows_read(source) == before
    (shown,) = status([queued])
    assert (shown.waiting, shown.verified_run, shown.verified_at) == (5, first.run_id, fresh["verified_at"])
    assert shown.oldest_seconds is not None
    assert shown.oldest_seconds >= waiting["oldest"].total_seconds()
    second = sync(queued)
    fresh = freshness(database_url)
    assert (fresh["waiting"], fresh["oldest"], fresh["last_run"], fresh["verified_run"]) == (
        0,
        None,
        second.run_id,
        first.run_id,
    )


def test_a_change_is_as_old_as_its_statement_and_not_as_its_transaction(
    source: Connection, database_url: str, queued: Pipeline
) -> None:
    sync(queued)
    with source.transaction():
        (began,) = source.execute("SELECT now()").fetchone() or (None,)
        source.execute("SELECT pg_sleep(0.2)")
        source.execute("UPDATE paintings SET title = 'new' WHERE id = 1")
    written = source.execute("SELECT statement_timestamp() - oldest FROM rowvec.freshness").fetchone()
    assert written
    assert written[0] - began > timedelta(seconds=0.19)


def test_a_pipeline_that_compares_has_no_queue_and_each_good_run_verifies_it(
    source: Connection, database_url: str, queued: Pipeline, paintings: Pipeline
) -> None:
    sync(queued)
    report = sync(paintings)
    fresh = freshness(database_url)
    assert (fresh["waiting"], fresh["oldest"], fresh["looked_at"]) == (None, None, None)
    assert (fresh["verified_run"], fresh["verdict"]) == (report.run_id, "consistent")
    (shown,) = status([paintings])
    assert (shown.waiting, shown.oldest_seconds, shown.verified_run) == (None, None, report.run_id)


def test_a_role_that_may_not_read_the_queue_sees_what_the_last_look_has_found(
    source: Connection, direct_url: str, database_url: str, queued: Pipeline
) -> None:
    sync(queued)
    source.execute("UPDATE paintings SET title = 'new' WHERE id < 4")
    source.execute("DROP ROLE IF EXISTS monitoring; CREATE ROLE monitoring LOGIN")
    source.execute("GRANT USAGE ON SCHEMA rowvec TO monitoring; GRANT SELECT ON rowvec.freshness TO monitoring")
    monitoring = make_conninfo(direct_url, user="monitoring")
    unread, read = freshness(monitoring), freshness(database_url)
    assert (unread["waiting"], read["waiting"]) == (0, 3)
    assert unread["looked_at"] < read["looked_at"]
    source.execute(
        "GRANT USAGE ON SCHEMA rowvec_changes TO monitoring;"
        "GRANT SELECT ON ALL TABLES IN SCHEMA rowvec_changes TO monitoring"
    )
    assert freshness(monitoring)["waiting"] == 3


def rows_read(connection: Connection) -> list[tuple[str, int]]:
    """Rows that sequential scans have read of the source and of the vector table."""
    hand_in_counts(connection)
    return connection.execute(
        "SELECT schemaname, seq_tup_read + coalesce(idx_tup_fetch, 0) FROM pg_stat_user_tables"
        " WHERE relname = 'paintings' ORDER BY 1"
    ).fetchall()
