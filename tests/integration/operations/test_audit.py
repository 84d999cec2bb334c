"""The audit finds every difference and names it, and a repair fixes it from the artifacts."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from rowvec.operations.audit import AuditReport, audit
from rowvec.operations.repair import prepare_repair
from rowvec.pipeline import Pipeline
from rowvec.postgres.connection import Connection
from rowvec.stages.report import SyncReport
from rowvec.store.heads import newest_chain
from rowvec.store.open import open_store
from tests.support import paintings as gallery
from tests.support.cli_process import PrefectServer, start, write_pipeline
from tests.support.paintings import assert_in_step, dying_after, fill, sync, vectors


@pytest.fixture
def synced(source: Connection, paintings: Pipeline) -> Connection:
    sync(paintings)
    return source


def repair(pipeline: Pipeline) -> SyncReport:
    """Run what the command runs."""
    prepare_repair(pipeline)
    return sync(pipeline)


def test_a_sound_table_is_consistent(synced: Connection, paintings: Pipeline) -> None:
    fill(synced, 5, start=60)
    synced.execute("UPDATE paintings SET author = 'other' WHERE id = 3")
    synced.execute("DELETE FROM paintings WHERE id = 4")
    sync(paintings)
    assert audit(paintings).as_json() == {
        "consistent": True,
        "missing": 0,
        "stale": 0,
        "orphaned": 0,
        "corrupt": 0,
        "repaired": 0,
        "rows": [],
        "objects": [],
        "notes": [],
    }


DRIFT = [
    ("DELETE FROM vectors.paintings WHERE id = {}", "missing"),
    ("DELETE FROM paintings WHERE id = {}", "orphaned"),
    ("UPDATE paintings SET title = 'other' WHERE id = {}", "stale"),
    ("UPDATE paintings SET author = 'other' WHERE id = {}", "stale"),
    ("UPDATE vectors.paintings SET content = 'other' WHERE id = {}", "corrupt"),
    ("UPDATE vectors.paintings SET content = NULL WHERE id = {}", "corrupt"),
    ("UPDATE vectors.paintings SET author = 'other' WHERE id = {}", "corrupt"),
    ("UPDATE vectors.paintings SET year = NULL WHERE id = {}", "corrupt"),
    ("UPDATE vectors.paintings SET fingerprint = sha256('x') WHERE id = {}", "stale"),
    ("UPDATE vectors.paintings SET metadata_hash = sha256('x') WHERE id = {}", "corrupt"),
    ("UPDATE vectors.paintings SET metadata_hash = NULL WHERE id = {}", "corrupt"),
    (
        "UPDATE vectors.paintings"
        " SET embedding_bits = set_bit(embedding_bits, 190, 1 - get_bit(embedding_bits, 190)) WHERE id = {}",
        "corrupt",
    ),
    (
        "UPDATE vectors.paintings SET embedding ="
        " (SELECT ('[' || string_agg((-x)::text, ',') || ']')::vector FROM unnest(embedding::real[]) AS x)"
        " WHERE id = {}",
        "corrupt",
    ),
    (
        "UPDATE vectors.paintings AS t SET embedding = o.embedding, embedding_bits = o.embedding_bits"
        " FROM vectors.paintings AS o WHERE t.id = {} AND o.id = 50",
        "corrupt",
    ),
    ("UPDATE vectors.paintings SET run_id = 999 WHERE id = {}", "corrupt"),
    ("UPDATE vectors.paintings SET embedded_at = embedded_at + interval '1 microsecond' WHERE id = {}", "corrupt"),
    ("DELETE FROM paintings WHERE id = {0}; DELETE FROM vectors.paintings WHERE id = {0}", "corrupt"),
]
"""What somebody does to one row, and what the audit calls it."""


def test_any_drift_of_any_column_is_found_and_repaired(synced: Connection, paintings: Pipeline) -> None:
    before = vectors(synced)
    for number, (tampering, _) in enumerate(DRIFT, 1):
        synced.execute(tampering.format(number).encode())
    found = audit(paintings)
    kinds = {(str(number),): kind for number, (_, kind) in enumerate(DRIFT, 1)}
    assert {finding.key: finding.kind for finding in found.findings} == kinds
    assert found.counts == {**dict.fromkeys(found.counts, 0), **Counter(kinds.values())}
    assert repair(paintings).embedded <= found.counts["stale"]
    assert audit(paintings).consistent
    assert_in_step(synced)
    edited = {number for number, (tampering, _) in enumerate(DRIFT, 1) if " paintings " in tampering}
    after = vectors(synced)
    assert all(after[key] == row for key, row in before.items() if key not in edited)


def test_a_row_that_no_run_wrote_is_found_though_its_content_is_right(synced: Connection, paintings: Pipeline) -> None:
    """The row has the number of another existing run, so only the journal shows that it is wrong."""
    fill(synced, 1, start=60)
    sync(paintings)
    synced.execute("UPDATE vectors.paintings SET run_id = 2 WHERE id = 3")
    (found,) = audit(paintings).findings
    assert (found.key, found.reason) == (("3",), "its run_id is not the one that its run recorded")
    repair(paintings)
    assert audit(paintings).consistent


def test_a_row_that_is_wrong_in_two_ways_is_repaired_in_both(
    synced: Connection, paintings: Pipeline, tmp_path: Path
) -> None:
    """The metadata in the source has changed, and the audit names this reason; the bits are wrong as well."""
    synced.execute("UPDATE paintings SET year = 1 WHERE id IN (3, 4)")
    synced.execute("UPDATE vectors.paintings SET embedding_bits = ~embedding_bits WHERE id = 3")
    assert audit(paintings).counts["stale"] == 2
    assert repair(paintings).embedded == 0
    assert audit(paintings).consistent
    synced.execute("UPDATE paintings SET year = 2 WHERE id = 4")
    for path in (tmp_path / "artifacts").rglob("*.parquet"):
        path.unlink()
    assert repair(paintings).embedded == 0
    assert audit(paintings).consistent
    assert_in_step(synced)


def test_all_findings_are_counted_and_repaired_and_a_hundred_are_named(synced: Connection, paintings: Pipeline) -> None:
    fill(synced, 250, start=60)
    sync(paintings)
    synced.execute("UPDATE vectors.paintings SET embedding_bits = ~embedding_bits")
    found = audit(paintings)
    assert (found.counts["corrupt"], len(found.findings), found.total) == (300, 100, 300)
    assert repair(paintings).embedded == 0
    assert audit(paintings).consistent


@pytest.mark.parametrize(
    ("lost", "precision"),
    [
        (True, "float32"),
        (False, "float16"),
        pytest.param(True, "float16", marks=pytest.mark.soak),
        pytest.param(False, "float32", marks=pytest.mark.soak),
    ],
)
def test_a_lost_or_corrupt_artifact_is_written_again_from_the_table(
    source: Connection, tmp_path: Path, lost: bool, precision: str
) -> None:
    """Only vectors that exist nowhere are paid for, and here none is missing everywhere."""
    pipeline = gallery.pipeline(str(tmp_path / "artifacts"), target={"precision": precision})
    sync(pipeline)
    for path in (tmp_path / "artifacts").rglob("*.parquet"):
        content = path.read_bytes()
        path.unlink()
        if not lost:
            path.write_bytes(content[:2000] + b"\xff" + content[2001:])
    before = vectors(source)
    found = audit(pipeline)
    assert (found.counts["corrupt"], len(found.objects)) == (50, 1)
    report = repair(pipeline)
    assert (report.embedded, report.unchanged) == (0, 50)
    assert audit(pipeline).consistent
    assert vectors(source) == before
    source.execute("DROP TABLE vectors.paintings")
    assert sync(pipeline).embedded == 0
    assert vectors(source) == before
    assert audit(pipeline).consistent


def test_only_what_exists_nowhere_is_embedded_again(synced: Connection, paintings: Pipeline, tmp_path: Path) -> None:
    for path in (tmp_path / "artifacts").rglob("*.parquet"):
        path.unlink()
    synced.execute("UPDATE vectors.paintings SET embedding_bits = ~embedding_bits WHERE id <= 3")
    assert repair(paintings).embedded == 3
    assert audit(paintings).consistent
    assert_in_step(synced)


def test_a_lost_artifact_whose_vectors_are_in_another_one_too_costs_nothing(
    synced: Connection, paintings: Pipeline, tmp_path: Path
) -> None:
    (first,) = (tmp_path / "artifacts").rglob("*.parquet")
    synced.execute("DROP TABLE vectors.paintings")
    fill(synced, 1, start=60)
    sync(paintings)
    first.unlink()
    synced.execute("DELETE FROM vectors.paintings WHERE id <= 3")
    assert repair(paintings).embedded == 0
    assert audit(paintings).consistent


@pytest.mark.parametrize("suffix", ["json", "zst"])
def test_a_lost_manifest_or_journal_entry_is_found_and_the_journal_restarted(
    synced: Connection, paintings: Pipeline, tmp_path: Path, suffix: str
) -> None:
    synced.execute("UPDATE paintings SET author = 'other' WHERE id = 3")
    sync(paintings)
    lost = min((tmp_path / "artifacts").rglob(f"*.{suffix}"), key=lambda path: path.stat().st_mtime_ns)
    lost.unlink()
    found = audit(paintings)
    assert (found.total, len(found.objects)) == (1, 1)
    assert lost.name in found.objects[0].reason
    assert repair(paintings).manifest is not None
    assert audit(paintings).consistent
    (link,) = newest_chain(open_store(paintings.artifacts), "paintings")
    assert link.manifest.journal.rows == 50


@pytest.mark.flow
def test_the_command_names_the_rows_and_repairs_them(
    synced: Connection, paintings: Pipeline, prefect_server: PrefectServer, tmp_path: Path
) -> None:
    file = write_pipeline(paintings, tmp_path)
    synced.execute("DELETE FROM vectors.paintings WHERE id = 3")
    synced.execute("UPDATE vectors.paintings SET content = 'other' WHERE id = 4")
    ended = start(prefect_server.api, "audit", file, "--json").wait()
    assert ended.status == 1
    assert (ended.json["missing"], ended.json["corrupt"], ended.json["repaired"]) == (1, 1, 0)
    assert {(row["key"][0], row["kind"]) for row in ended.json["rows"]} == {("3", "missing"), ("4", "corrupt")}
    repaired = start(prefect_server.api, "audit", file, "--repair", "--json").wait()
    assert (repaired.status, repaired.json["consistent"], repaired.json["repaired"]) == (0, True, 2)
    assert_in_step(synced)


def test_a_rejected_row_is_not_missing(synced: Connection, paintings: Pipeline) -> None:
    synced.execute(
        "INSERT INTO rowvec.rejects (pipeline_id, key, fingerprint, reason, detail, run_id)"
        " SELECT 1, '[\"3\"]', fingerprint, 'too_long', 'for a test', 1 FROM vectors.paintings WHERE id = 3"
    )
    synced.execute("DELETE FROM vectors.paintings WHERE id = 3")
    assert audit(paintings).counts["missing"] == 0


def test_a_repair_records_what_a_killed_run_has_left(
    synced: Connection, paintings: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(synced, 5, start=60)
    with dying_after("merge", monkeypatch):
        sync(paintings)
    found = prepare_repair(paintings)
    assert (found.consistent, found.is_finished) == (True, False)
    (note,) = found.notes
    assert "does not have all that the vector table has" in note
    assert note in AuditReport(pipeline="paintings", found=found).as_markdown()
    sync(paintings)
    assert audit(paintings).is_finished
