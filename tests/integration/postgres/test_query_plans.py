"""The hot statements use their indexes: no sequential scan if the table is large and the result small."""

from __future__ import annotations

from pathlib import Path

import pytest
from psycopg import sql

from rowvec.ledger.runs import running
from rowvec.pipeline import Pipeline
from rowvec.postgres.connection import Connection
from rowvec.postgres.fragments import key_json
from rowvec.postgres.queries import query
from rowvec.stages.extract import stage
from tests.support.images import fill as fill_images
from tests.support.paintings import fill, sync


def explained(connection: Connection, statement: sql.Composed, values: dict[str, object] | None = None) -> str:
    rows = connection.execute(sql.SQL("EXPLAIN (COSTS OFF) ") + statement, values).fetchall()
    return "\n".join(line for (line,) in rows)


def test_a_batch_is_fetched_by_its_index(
    source: Connection, paintings: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rowvec.ledger.plans.MIN_BATCH_ROWS", 50)
    fill(source, 5_000, start=100)
    with running(paintings, "test") as run:
        plan = stage.run(paintings, run)
        assert plan.batches == 64
        source.execute(sql.SQL("ANALYZE {}").format(plan.rows))
        statement = query(
            "plans",
            "fetch",
            columns=sql.SQL("id"),
            key_json=key_json(plan.table.key),
            plan=plan.rows,
            batch=sql.Literal(7),
        )
        found = explained(source, statement)
    assert "Seq Scan" not in found
    assert "rowvec_batch = 7" in found


def test_what_was_paid_for_is_found_by_its_index(source: Connection, paintings: Pipeline) -> None:
    sync(paintings)
    # As after a sync of so many rows.
    source.execute(
        "INSERT INTO rowvec.embeddings SELECT 1, sha256(i::text::bytea), a.artifact_id"
        " FROM rowvec.artifacts AS a, generate_series(1, 20000) AS i"
    )
    source.execute("INSERT INTO rowvec.answers SELECT pipeline_id, fingerprint, ''::bytea, 1 FROM rowvec.embeddings")
    source.execute("ANALYZE rowvec.embeddings, rowvec.answers")
    values: dict[str, object] = {"pipeline_id": 1, "fingerprints": [bytes([i]) * 32 for i in range(100)]}
    for block in ("known_in_artifacts", "known_answers"):
        found = explained(source, query("reuse", block), values)
        assert "Seq Scan on embeddings" not in found
        assert "Seq Scan on answers" not in found


def test_nothing_changed_leaves_no_rows_and_sends_none(source: Connection, paintings: Pipeline) -> None:
    fill(source, 500, start=100)
    sync(paintings)
    with running(paintings, "test") as run:
        plan = stage.run(paintings, run)
        assert plan.counts.unchanged == 550
        assert not plan.counts.anything
        assert source.execute(sql.SQL("SELECT count(*) FROM {}").format(plan.rows)).fetchone() == (0,)


def test_images_to_upload_are_not_compared_with_every_row_of_their_batch(source: Connection, tmp_path: Path) -> None:
    """The tables of the plan and of the images have no statistics yet, as in a first run."""
    fill_images(tmp_path / "drawn", 30)
    content = {"image": "image_file"}
    images = Pipeline.model_validate(
        {
            "name": "drawn",
            "source": {"kind": "images", "path": str(tmp_path / "drawn"), "key": ["image_file"], "content": content},
            "embedder": {"kind": "local_image"},
            "target": {"table": "vectors.drawn"},
            "artifacts": {"url": str(tmp_path / "artifacts")},
        }
    )
    with running(images, "test") as run:
        plan = stage.run(images, run)
        shown = query("images", "in_batch", plan=plan.rows, batch=sql.Literal(0))
        statement = query("images", "count_to_upload", family=sql.Literal("drawn"), shown=shown)
        found = explained(source, statement)
        assert source.execute(statement).fetchone() == (30,)
    assert "hashed SubPlan" in found
    assert "Nested Loop" not in found
