"""A sync that finds its queue of changes empty: few statements, a true report, and a closer look if in doubt."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any, LiteralString

import pytest

from rowvec.errors import StoreBehind
from rowvec.ledger import runs
from rowvec.operations.prune import prune
from rowvec.pipeline import Pipeline
from rowvec.postgres.connection import Connection
from rowvec.stages.report import SyncReport
from tests.support import paintings as gallery
from tests.support.paintings import fill, sync
from tests.support.statement_faults import StatementFault, befalling

pytestmark = pytest.mark.needs("a superuser", "only the owner of the source's table can make triggers on it")

MOST_EXCHANGES = 70
"""With the server, of a whole run; one that compares has more than 300."""


@pytest.fixture
def queued(tmp_path: Path) -> Pipeline:
    """The paintings, with a queue of changes."""
    return gallery.pipeline(str(tmp_path / "artifacts"), source={"changes": {"by": "trigger"}})


def at_rest(report: SyncReport) -> bool:
    """Whether the run has only looked."""
    return any(check.name == "nothing changed" for check in report.checks)


def exchanges(pipeline: Pipeline) -> tuple[SyncReport, int]:
    """A sync, and how often it has sent something to the server and waited for the answer."""
    with befalling(StatementFault(0, "meanwhile")) as counter:
        return sync(pipeline), counter.seen


def test_a_run_without_a_change_has_few_statements_and_says_what_is_so(source: Connection, queued: Pipeline) -> None:
    source.execute("UPDATE paintings SET title = '', description = '' WHERE id = 9")
    first, compared = exchanges(queued)
    quiet, looked = exchanges(queued)
    assert at_rest(quiet)
    assert looked <= MOST_EXCHANGES < compared / 4
    assert (quiet.new, quiet.changed, quiet.deleted, quiet.unchanged, quiet.rows) == (0, 0, 0, 49, 49)
    assert (quiet.checksum, quiet.verified_run, quiet.consistent) == (first.checksum, first.run_id, True)
    assert (quiet.root, quiet.certified_run) == (first.root, first.run_id)
    assert quiet.verdict().startswith("Consistent for what has changed, of 49 vectors: 0 queued keys were compared; ")
    recorded = source.execute("SELECT state, report ->> 'rows' FROM rowvec.runs ORDER BY run_id DESC").fetchone()
    assert recorded == ("succeeded", "49")
    shown = source.execute("SELECT waiting, last_run, verdict, verified_run FROM rowvec.freshness").fetchone()
    assert shown == (0, quiet.run_id, "consistent", first.run_id)
    fill(source, 1, start=200)
    assert (report := sync(queued)).new == 1
    assert not at_rest(report)
    assert at_rest(sync(queued))


CLOSER: dict[str, LiteralString] = {
    "a search function that was dropped": "DROP FUNCTION vectors.paintings_search CASCADE",
    "a view that was dropped": "DROP VIEW vectors.paintings_provenance",
    "another index": "CREATE INDEX ON vectors.paintings (year)",
    "another column": "ALTER TABLE vectors.paintings ADD COLUMN note text",
    "a run that has failed since": "INSERT INTO rowvec.runs (pipeline_id, cause, state, error)"
    " SELECT pipeline_id, 'test', 'failed', 'of no matter' FROM rowvec.pipelines",
    "a command that has written since": "INSERT INTO rowvec.runs (pipeline_id, cause, state, merged_at)"
    " SELECT pipeline_id, 'test', 'succeeded', now() FROM rowvec.pipelines",
    "a row that each run tries again": "INSERT INTO rowvec.rejects (pipeline_id, key, reason, detail, run_id, sqlstate)"
    " SELECT pipeline_id, '[\"9\"]', 'refused', 'a key', 1, '23505' FROM rowvec.pipelines",
    "a job at a provider": "INSERT INTO rowvec.jobs (pipeline_id, run_id, texts, tokens, reserved_usd, reserved_month)"
    " SELECT pipeline_id, 1, 1, 1, 0, now() FROM rowvec.pipelines",
    "a table that was truncated": "TRUNCATE paintings",
    "a trigger that is disabled": "ALTER TABLE paintings DISABLE TRIGGER USER",
    "a queue that was dropped": "DROP SCHEMA rowvec_changes CASCADE",
    "a comparison that is due": "UPDATE rowvec.changes SET verified_at = verified_at - interval '2 days'",
}


def test_a_run_looks_closer_if_anything_is_not_as_the_last_one_left_it(source: Connection, queued: Pipeline) -> None:
    sync(queued)
    for what, statement in CLOSER.items():
        source.execute(statement)
        if "truncated" in what:
            fill(source, 50)
        assert not at_rest(sync(queued)), what
        source.execute("DELETE FROM rowvec.rejects; DELETE FROM rowvec.jobs")
        assert at_rest(sync(queued)), what


@pytest.mark.parametrize(
    "part",
    [{"validation": {"recall": {"k": 5}}}, {"artifacts": {"url": "elsewhere"}}, {"source": {"metadata": ["author"]}}],
    ids=str,
)
def test_a_run_looks_closer_if_the_pipeline_file_was_edited(
    part: dict[str, Any], source: Connection, queued: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sync(queued)
    (section, keys), written = next(iter(part.items())), queued.model_dump(mode="json", exclude_none=True)
    edited = Pipeline.model_validate({**written, section: {**written[section], **keys}})
    if section == "artifacts":
        with pytest.raises(StoreBehind):
            sync(edited)
        return
    assert not at_rest(sync(edited))
    assert at_rest(sync(edited))


def test_runs_that_nothing_needs_are_forgotten_beyond_the_newest(
    source: Connection, queued: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "KEPT_RUNS", 3)

    def kept() -> list[int]:
        return [run for (run,) in source.execute("SELECT run_id FROM rowvec.runs ORDER BY run_id")]

    first = sync(queued).run_id
    quiet = [sync(queued).run_id for _ in range(5)]
    # The first one has paid for vectors, and has compared the whole source.
    assert kept() == [first, *quiet[-3:]]
    source.execute("UPDATE paintings SET title = 'new' WHERE id = 1")
    worked = sync(queued).run_id
    again = [sync(queued).run_id for _ in range(4)]
    assert kept() == [first, worked, *again[-3:]]


def test_prune_forgets_all_old_runs_that_changed_nothing(
    source: Connection, queued: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, *idle = (sync(queued).run_id for _ in range(5))
    monkeypatch.setattr(runs, "KEPT_RUNS", 2)
    # Each run forgets a few by itself.
    monkeypatch.setattr(runs, "_FEW", 0)
    # A prune that deletes is a run itself.
    assert (prune(queued, timedelta(0)).runs, prune(queued, timedelta(0), apply=True).runs) == (2, 3)
    *left, _ = [run for (run,) in source.execute("SELECT run_id FROM rowvec.runs ORDER BY run_id")]
    # The first one has vectors and a certificate.
    assert left == [first, idle[-1]]
