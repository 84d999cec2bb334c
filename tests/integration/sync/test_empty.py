"""Rows without content have no vector, and a plan, a sync and its summary count them."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from rowvec.postgres.connection import Connection
from rowvec.stages.dry_run import plan
from tests.support import paintings as gallery

CHUNKS = {"chunks": {"tokens": 16, "overlap": 0}}


@pytest.mark.parametrize(
    ("kind", "chunks"),
    [
        pytest.param("postgres", {}, id="postgres-whole"),
        pytest.param("csv", CHUNKS, id="csv-chunks"),
        pytest.param("postgres", CHUNKS, id="postgres-chunks", marks=pytest.mark.soak),
        pytest.param("csv", {}, id="csv-whole", marks=pytest.mark.soak),
    ],
)
def test_rows_that_lose_their_content_are_deleted_and_then_empty(
    kind: str, chunks: dict[str, Any], source: Connection, tmp_path: Path
) -> None:
    file = tmp_path / "paintings.csv"
    written: dict[str, Any] = {"content": "{title}", "metadata": [], **chunks}
    if kind == "csv":
        written |= {"kind": "csv", "path": str(file), "key": ["id"]}
    pipeline = gallery.pipeline(str(tmp_path / "artifacts"), source=written)

    def write() -> None:
        rows = source.execute("SELECT id, title FROM paintings ORDER BY id").fetchall()
        with file.open("w") as opened:
            csv.writer(opened).writerows([("id", "title"), *rows])

    write()
    assert gallery.sync(pipeline).empty == 0
    source.execute("UPDATE paintings SET title = CASE id WHEN 1 THEN NULL WHEN 2 THEN '' ELSE '  ' END WHERE id <= 3")
    write()
    planned = plan(pipeline)
    assert (planned.deleted, planned.empty, planned.rejected) == (3, 3, 0)
    report = gallery.sync(pipeline)
    assert (report.deleted, report.empty, report.rows) == (3, 3, 47)
    assert "| empty |" in report.as_markdown()
    (told,) = [check for check in report.checks if check.name == "empty"]
    assert told.ok
    again = gallery.sync(pipeline)
    assert (again.deleted, again.unchanged, again.empty) == (0, 47, 3)
    assert plan(pipeline).empty == 3


def test_rows_without_content_that_are_rejected_are_counted_as_rejects(source: Connection, tmp_path: Path) -> None:
    pipeline = gallery.pipeline(str(tmp_path / "artifacts"), source={"content": "{title}", "empty": "reject"})
    source.execute("UPDATE paintings SET title = NULL WHERE id <= 3")
    report = gallery.sync(pipeline)
    assert (report.empty, report.rejected) == (0, 3)
