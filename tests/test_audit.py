"""The audit finds what does not agree, names it, and a repair mends it from artifacts."""

from __future__ import annotations

from pathlib import Path

import pytest

from rowvec.audit import run_audit, summary, void
from rowvec.database import Connection
from rowvec.pipeline import Pipeline
from tests.gallery import assert_in_step, sync, vectors


@pytest.fixture
def synced(source: Connection, paintings: Pipeline) -> Connection:
    sync(paintings)
    return source


def test_a_sound_table_is_consistent(synced: Connection, paintings: Pipeline) -> None:
    found = summary(run_audit(paintings))
    assert found == {
        "consistent": True,
        "missing": 0,
        "stale": 0,
        "orphaned": 0,
        "corrupt": 0,
        "repaired": 0,
        "rows": [],
    }


@pytest.mark.parametrize(
    ("tampering", "kind"),
    [
        ("DELETE FROM vectors.paintings WHERE id = 3", "missing"),
        ("DELETE FROM paintings WHERE id = 3", "orphaned"),
        ("UPDATE paintings SET title = 'other' WHERE id = 3", "stale"),
        ("UPDATE paintings SET author = 'other' WHERE id = 3", "stale"),
        ("UPDATE vectors.paintings SET content = 'other' WHERE id = 3", "corrupt"),
        ("UPDATE vectors.paintings SET author = 'other' WHERE id = 3", "corrupt"),
        ("UPDATE vectors.paintings SET year = NULL WHERE id = 3", "corrupt"),
        ("UPDATE vectors.paintings SET fingerprint = sha256('x') WHERE id = 3", "stale"),
        ("UPDATE vectors.paintings SET embedding_bits = ~embedding_bits WHERE id = 3", "corrupt"),
        ("UPDATE vectors.paintings SET embedding = -embedding WHERE id = 3", "corrupt"),
        (
            "UPDATE vectors.paintings AS t SET embedding = o.embedding, embedding_bits = o.embedding_bits"
            " FROM vectors.paintings AS o WHERE t.id = 3 AND o.id = 4",
            "corrupt",
        ),
        ("UPDATE vectors.paintings SET run_id = 999 WHERE id = 3", "corrupt"),
    ],
)
def test_h8_any_drift_is_found_and_repaired(synced: Connection, paintings: Pipeline, tampering: str, kind: str) -> None:
    before = vectors(synced)
    tampering = tampering.replace(
        "-embedding", "(SELECT ('[' || string_agg((-x)::text, ',') || ']')::vector FROM unnest(embedding::real[]) AS x)"
    )
    synced.execute(tampering.encode())
    findings = run_audit(paintings)
    assert [(f.kind, f.key) for f in findings] == [(kind, ("3",))]
    void(paintings, findings)
    assert sync(paintings).embedded <= (kind == "stale")
    assert run_audit(paintings) == []
    assert_in_step(synced)
    if kind in ("missing", "corrupt"):
        assert vectors(synced) == before


@pytest.mark.parametrize("lost", [True, False])
def test_a_lost_or_spoilt_artifact_is_found_and_made_again(
    synced: Connection, paintings: Pipeline, tmp_path: Path, lost: bool
) -> None:
    for path in (tmp_path / "artifacts").rglob("*.parquet"):
        content = path.read_bytes()
        path.unlink()
        if not lost:
            path.write_bytes(content[:2000] + b"\xff" + content[2001:])
    findings = run_audit(paintings)
    assert {f.kind for f in findings} == {"corrupt"}
    assert len(findings) == 50
    void(paintings, findings)
    sync(paintings)
    assert run_audit(paintings) == []
    assert_in_step(synced)


def test_a_rejected_row_is_not_missing(synced: Connection, paintings: Pipeline) -> None:
    synced.execute(
        "INSERT INTO rowvec.rejects (pipeline_id, key, fingerprint, reason, detail, run_id)"
        " SELECT 1, '[\"3\"]', fingerprint, 'too_long', 'for a test', 1 FROM vectors.paintings WHERE id = 3"
    )
    synced.execute("DELETE FROM vectors.paintings WHERE id = 3")
    assert run_audit(paintings) == []
