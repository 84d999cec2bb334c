"""The schema ``rowvec`` is installed once, and a second installation changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from psycopg.conninfo import make_conninfo
from typer.main import get_command

from rowvec.cli.app import app
from rowvec.errors import TargetError
from rowvec.operations import names
from rowvec.operations.audit import audit
from rowvec.operations.changes import install_queue, look
from rowvec.operations.erasure.forget import forget
from rowvec.operations.index import maintain
from rowvec.operations.prune import prune
from rowvec.operations.rebuild import plan_rebuild
from rowvec.operations.rejects import rejects
from rowvec.operations.relevance.evaluate import evaluate
from rowvec.operations.restore import restoring
from rowvec.operations.search import search
from rowvec.operations.setup.check import Scope, check
from rowvec.operations.setup.finding import Finding
from rowvec.operations.status import status
from rowvec.operations.verify import verify
from rowvec.pipeline import Pipeline
from rowvec.postgres.connection import Connection, open_target
from rowvec.postgres.migrations import install
from rowvec.stages import dry_run
from tests.support import paintings as gallery
from tests.support.cli_process import write_pipeline
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


WITHOUT_A_LEDGER = {"init", "psql", "schema", "demo", "deploy", "automations", "up", "down"}
"""Commands that open no ledger themselves; what a demo or a deployment starts is a sync."""


def commands(paintings: Pipeline, folder: Path) -> dict[str, Callable[[], object]]:
    """By the name of each command that opens a ledger: what it calls first."""
    queued = gallery.pipeline(paintings.artifacts.url, source={"changes": {"by": "trigger"}})
    questions, file = folder / "questions.jsonl", write_pipeline(paintings, folder)
    questions.write_text('{"question": "x", "relevant": [1]}\n', "utf-8")
    return {
        "adopt": lambda: names.adopt(paintings),
        "audit": lambda: audit(paintings),
        "changes": lambda: install_queue(queued),
        "check": lambda: refused(check(file, Scope(embedder=False))),
        "evaluate": lambda: evaluate([paintings], questions, 10),
        "forget": lambda: forget(paintings, ["1"], apply=True),
        "index": lambda: maintain(paintings),
        "plan": lambda: dry_run.plan(paintings),
        "prune": lambda: prune(paintings, timedelta(days=1), apply=True),
        "rebuild": lambda: plan_rebuild(paintings),
        "rejects": lambda: rejects(paintings, retry=True),
        "rename": lambda: names.rename(paintings, "former"),
        "restore": lambda: restoring(paintings, None).__enter__(),
        "search": lambda: search(paintings, "x", 1, mode="exact"),
        "status": lambda: status([paintings]),
        "sync": lambda: sync(paintings),
        "verify": lambda: verify(paintings),
        "watch": lambda: look(queued),
    }


def refused(findings: Iterable[Finding]) -> None:
    """Raise the first fault that a check has found."""
    raise TargetError(next(finding.detail for finding in findings if finding.state == "fault"))


def test_each_command_that_opens_a_ledger_is_tried_with_a_newer_one(paintings: Pipeline, tmp_path: Path) -> None:
    whole: Any = get_command(app)
    assert {*whole.commands} == {*commands(paintings, tmp_path)} | WITHOUT_A_LEDGER


def test_an_older_program_is_refused_before_it_does_anything(
    source: Connection, paintings: Pipeline, tmp_path: Path
) -> None:
    source.execute("INSERT INTO rowvec.migrations (number) VALUES (9999)")
    before = state(source)
    for name, command in commands(paintings, tmp_path).items():
        expected = r"newer rowvec \(its migration 9999; this one knows \d+\).*nothing was done"
        with pytest.raises(TargetError, match=expected) as raised:
            command()
        assert "\n" not in str(raised.value), name
        assert state(source) == before, name


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
