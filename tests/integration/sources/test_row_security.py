"""Row level security of a source: a run cannot see what it hides, so it says that it was shown a part."""

from __future__ import annotations

from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from rowvec.operations.audit import AuditReport, audit
from rowvec.pipeline import Pipeline
from rowvec.postgres.connection import Connection
from rowvec.sources.row_security import restriction
from rowvec.stages import dry_run
from rowvec.stages.report import ROW_SECURITY
from tests.support import paintings
from tests.support.paintings import sync

READER = "reader_of_rows"


@pytest.fixture
def reader(source: Connection, direct_url: str) -> Generator[str]:
    """The DSN of a role that may read the paintings, and is shown the first half of them."""
    source.execute(f"CREATE ROLE {READER} LOGIN".encode())
    source.execute(f"GRANT SELECT ON paintings TO {READER}".encode())
    source.execute("ALTER TABLE paintings ENABLE ROW LEVEL SECURITY")
    source.execute(f"CREATE POLICY half ON paintings TO {READER} USING (id <= 25)".encode())
    # Not through a pooler: the one of `make test-matrix` has one role for all that come to it.
    yield make_conninfo(direct_url, user=READER)
    source.execute(f"DROP OWNED BY {READER}; DROP ROLE {READER}".encode())


def pipeline(tmp_path: Path, url: str, **source: Any) -> Pipeline:
    """The paintings, read by a role of its own, as a source in another database is."""
    return paintings.pipeline(str(tmp_path / "artifacts"), source={"url": url, **source})


def test_a_run_that_is_shown_a_part_of_the_rows_says_so(reader: str, tmp_path: Path) -> None:
    restricted = pipeline(tmp_path, reader)
    assert "paintings" in dry_run.plan(restricted).notes[0]
    report = sync(restricted)
    assert (report.rows, report.consistent) == (25, True)
    assert "as far as row level security shows" in report.verdict()
    assert "row level security of paintings" in report.as_markdown()
    assert "BYPASSRLS" in next(check.detail for check in report.checks if check.name == ROW_SECURITY)
    found = audit(restricted)
    assert "paintings" in found.as_json()["notes"][0]
    audited = AuditReport(pipeline="paintings", found=found)
    assert "as far as row level security shows" in audited.verdict()
    assert "row level security of paintings" in audited.as_markdown()


@pytest.mark.needs("a superuser", "to whom no policy applies")
def test_a_run_that_is_shown_every_row_says_nothing(reader: str, source: Connection, tmp_path: Path) -> None:
    """The owner of a table without FORCE, and a superuser, are shown every row."""
    owned = paintings.pipeline(str(tmp_path / "artifacts"))
    assert dry_run.plan(owned).notes == ()
    report = sync(owned)
    assert (report.rows, report.verdict()) == (50, "Consistent: 50 vectors agree with the source.")
    assert audit(owned).as_json()["notes"] == []


def in_a_query(source: Connection) -> dict[str, Any]:
    """A query that reads the table in a part of it."""
    return {"table": None, "query": "SELECT * FROM (SELECT * FROM paintings) AS p WHERE id > 0"}


def in_a_view(source: Connection) -> dict[str, Any]:
    """A view that reads with the rights of who reads it."""
    source.execute("CREATE VIEW seen WITH (security_invoker) AS SELECT * FROM paintings")
    return {"table": "public.seen"}


def in_a_view_of_its_owner(source: Connection) -> dict[str, Any]:
    """A view that reads with the rights of its owner."""
    source.execute("CREATE VIEW seen AS SELECT * FROM paintings")
    return {"table": "public.seen"}


def in_a_partitioned_table(source: Connection) -> dict[str, Any]:
    """A partitioned table with a policy of its own."""
    source.execute("CREATE TABLE seen (LIKE paintings) PARTITION BY LIST (id)")
    source.execute("CREATE TABLE seen_rest PARTITION OF seen DEFAULT")
    source.execute("ALTER TABLE seen ENABLE ROW LEVEL SECURITY")
    return {"table": "public.seen"}


@pytest.mark.parametrize(
    ("made", "restricted"),
    [
        (in_a_query, True),
        (in_a_view, True),
        (in_a_view_of_its_owner, False),
        (in_a_partitioned_table, True),
    ],
)
def test_policies_are_found_where_a_read_would_meet_them(
    made: Callable[[Connection], dict[str, Any]], restricted: bool, reader: str, source: Connection, tmp_path: Path
) -> None:
    where = made(source)
    if where["table"]:
        source.execute(f"GRANT SELECT ON seen TO {READER}".encode())
    assert (restriction(source, pipeline(tmp_path, reader, **where)) is not None) == restricted


def test_a_role_that_is_above_policies_is_shown_every_row(reader: str, source: Connection, tmp_path: Path) -> None:
    assert restriction(source, pipeline(tmp_path, reader)) is not None
    source.execute(f"ALTER ROLE {READER} BYPASSRLS".encode())
    assert restriction(source, pipeline(tmp_path, reader)) is None
    with psycopg.connect(reader) as connection:
        assert connection.execute("SELECT count(*) FROM paintings").fetchone() == (50,)
