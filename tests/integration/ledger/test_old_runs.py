"""What stays of old runs that changed rows: 48 bytes each, and a short row as long as something needs it."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import LiteralString

import pytest

from rowvec.errors import ArtifactCorrupt
from rowvec.ledger import runs
from rowvec.operations.audit import audit
from rowvec.operations.prune import prune
from rowvec.operations.verify import verify
from rowvec.pipeline import Pipeline
from rowvec.postgres.connection import Connection
from tests.support import paintings as gallery
from tests.support.paintings import sync

KEPT = 2
REUSED: LiteralString = (
    "UPDATE paintings AS p SET title = o.title, description = o.description FROM paintings AS o"
    " WHERE p.id = 8 AND o.id = 9"
)
CONTENT: LiteralString = "UPDATE paintings SET title = title || '!' WHERE id = 1"
EDITS: tuple[LiteralString, ...] = (
    "UPDATE rowvec.certificate_blocks SET content = set_byte(content, 20, (get_byte(content, 20) + 1) % 256)",
    "UPDATE rowvec.certificate_blocks SET content = content || '\\x00'::bytea",
    "UPDATE rowvec.certificate_blocks SET content = ''::bytea",
)


@pytest.fixture
def queued(source: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    """A pipeline by a queue of changes, of which few runs are kept."""
    monkeypatch.setattr(runs, "KEPT_RUNS", KEPT)
    return gallery.pipeline(str(tmp_path / "artifacts"), source={"changes": {"by": "trigger"}})


def roots_of(source: Connection, queued: Pipeline, *statements: LiteralString) -> dict[int, str]:
    """The root of a first run and of one after each statement, as reported."""
    reports = [sync(queued)]
    for statement in statements:
        source.execute(statement)
        reports.append(sync(queued))
    return {report.run_id: report.root or "" for report in reports}


@pytest.mark.needs("a superuser", "only the owner of the source's table can make triggers on it")
def test_old_runs_keep_a_short_row_and_their_root(source: Connection, queued: Pipeline) -> None:
    roots = roots_of(source, queued, REUSED, CONTENT, CONTENT, CONTENT, CONTENT)
    whole = source.execute("SELECT run_id FROM rowvec.runs WHERE report ? 'checksum' OR checks IS NOT NULL ORDER BY 1")
    # The newest run counts when it has begun, and then shortens older ones.
    assert [run for (run,) in whole] == list(roots)[-KEPT:]
    short = source.execute("SELECT report ->> 'embedded' FROM rowvec.runs ORDER BY run_id LIMIT 3").fetchall()
    assert short == [("50",), ("0",), ("1",)]
    assert dict(source.execute("SELECT run_id, root FROM rowvec.roots").fetchall()) == roots
    assert source.execute("SELECT sum(length(content)) FROM rowvec.certificate_blocks").fetchone() == (48 * KEPT,)
    first, *_, third, _ = roots
    told = verify(queued, roots[first])
    assert (told.certificates, told.chain_gaps) == (6, ())
    assert (told.note or "").endswith(f"the root that you gave is of run {first}.")
    source.execute("CREATE TABLE blocks AS SELECT * FROM rowvec.certificate_blocks")
    for edit in EDITS:
        source.execute(edit)
        with pytest.raises(ArtifactCorrupt, match=r"certificates of the runs \d+ to \d+ in the ledger are not"):
            verify(queued)
        source.execute("UPDATE rowvec.certificate_blocks AS c SET content = b.content FROM blocks AS b")
    source.execute("DELETE FROM rowvec.certificates WHERE run_id = %s", (third,))
    found = verify(queued)
    assert found.verified
    assert found.chain_gaps == (list(roots)[-1],)
    assert "but not those of 1 run (" in found.told_of_chain()


@pytest.mark.needs("a superuser", "only the owner of the source's table can make triggers on it")
def test_a_prune_leaves_the_runs_whose_rows_are_still_there(source: Connection, queued: Pipeline) -> None:
    roots = roots_of(source, queued, REUSED, CONTENT, CONTENT, CONTENT)
    source.execute(
        "INSERT INTO rowvec.spending SELECT 'paintings', date_trunc('month', now()), run_id, run_id, 1 FROM rowvec.runs"
    )
    pruned = prune(queued, timedelta(0), apply=True)
    prune(queued, timedelta(0), apply=True)  # by now no artifact names the run that has reused a vector
    kept = [run for (run,) in source.execute("SELECT run_id FROM rowvec.runs WHERE cause <> 'prune' ORDER BY run_id")]
    first, reused, *_, last = roots
    assert (kept, pruned.runs) == ([first, reused, last], 2)
    spent = source.execute("SELECT count(*), sum(settled_usd), sum(reserved_usd) FROM rowvec.spending").fetchone()
    assert spent == (4, sum(roots), 5)
    assert audit(queued).consistent
    assert sync(queued).consistent
    assert set(roots.items()) < set(source.execute("SELECT run_id, root FROM rowvec.roots").fetchall())
    assert verify(queued).chain_gaps == ()
