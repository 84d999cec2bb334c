"""The schema ``rowvec`` is installed once, and a second installation changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest
from psycopg.conninfo import make_conninfo

from rowvec.errors import TargetError
from rowvec.operations.audit import audit
from rowvec.operations.index import maintain
from rowvec.operations.prune import prune
from rowvec.operations.rebuild import plan_rebuild
from rowvec.operations.rejects import rejects
from rowvec.operations.restore import restoring
from rowvec.operations.search import search
from rowvec.pipeline import Pipeline
from rowvec.postgres.connection import Connection, open_target
from rowvec.postgres.migrations import install
from rowvec.stages import dry_run
from tests.support.paintings import sync


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


@pytest.mark.parametrize(
    "command", ["plan", "sync", "search", "audit", "rejects", "index", "prune", "restore", "rebuild"]
)
def test_an_older_program_is_refused_before_it_does_anything(
    source: Connection, paintings: Pipeline, command: str
) -> None:
    source.execute("INSERT INTO rowvec.migrations (number) VALUES (9999)")
    commands: dict[str, Callable[[], object]] = {
        "plan": lambda: dry_run.plan(paintings),
        "sync": lambda: sync(paintings),
        "search": lambda: search(paintings, "x", 1, mode="exact"),
        "audit": lambda: audit(paintings),
        "rejects": lambda: rejects(paintings, retry=True),
        "index": lambda: maintain(paintings),
        "prune": lambda: prune(paintings, timedelta(days=1), apply=True),
        "restore": lambda: restoring(paintings, None).__enter__(),
        "rebuild": lambda: plan_rebuild(paintings),
    }
    before = state(source)
    with pytest.raises(TargetError, match=r"newer rowvec \(its migration 9999; this one knows \d+\).*nothing was done"):
        commands[command]()
    assert state(source) == before


def state(connection: Connection) -> list[tuple[object, ...]]:
    """The tables of the database, with their rows' number as the statistics of their files show it."""
    found = connection.execute(
        "SELECT oid::regclass::text, pg_relation_size(oid) FROM pg_class WHERE relkind IN ('r', 'i')"
        " AND relnamespace <> 'pg_catalog'::regnamespace ORDER BY 1"
    )
    return found.fetchall()


def test_a_role_that_may_not_read_the_ledger_can_still_connect(
    source: Connection, direct_url: str, paintings: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    role = "no_ledger"
    source.execute("DROP ROLE IF EXISTS no_ledger")
    source.execute("CREATE ROLE no_ledger LOGIN")
    monkeypatch.setenv("ROWVEC_DATABASE_URL", make_conninfo(direct_url, user=role))
    try:
        with open_target(paintings) as opened:
            assert opened.execute("SELECT current_user").fetchone() == (role,)
    finally:
        source.execute("DROP ROLE no_ledger")
