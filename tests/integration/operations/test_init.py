"""``rowvec init``: a pipeline file that passes ``rowvec check``, for tables, files and folders of images."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from rowvec.errors import UsageError
from rowvec.operations.setup.check import Scope, check
from rowvec.operations.setup.init import write_draft
from rowvec.pipeline.file import load
from rowvec.postgres.connection import Connection
from tests.support.images import save

TABLE = """
    CREATE SCHEMA "Odd. schema";
    CREATE TABLE "Odd. schema"."Ar""ticles" (
        "the: id" bigint PRIMARY KEY, "body # x" text, "t\ni" text NOT NULL, year int, "on" boolean, tags text[],
        "lang" varchar(2), content text
    );
    INSERT INTO "Odd. schema"."Ar""ticles" SELECT i, repeat('word ', 40), 'title ' || i, 1900 + i, true, '{a}', 'en',
        'other' FROM generate_series(1, 20) AS i
"""


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def passes(file: Path, *, online: bool) -> bool:
    return all(one.state == "ok" for one in check(file, Scope(online=online, embedder=False)))


@pytest.mark.needs("a superuser", "nobody grants the role anything on the schema of the table")
@pytest.mark.needs("pgvector 0.8.4", "an older one is a warning")
@pytest.mark.needs("no pooler", "it is a warning")
@pytest.mark.parametrize("analyzed", [True, False])
def test_a_table_with_odd_names_passes_the_check(
    analyzed: bool, source: Connection, database_url: str, tmp_path: Path
) -> None:
    source.execute(TABLE.encode())
    if analyzed:
        source.execute('ANALYZE "Odd. schema"."Ar""ticles"')
    written = write_draft(database_url, '"Odd. schema"."Ar""ticles"', tmp_path / "a.yaml")
    assert database_url not in written.file.read_text("utf-8")
    assert written.sets is None
    pipeline = load(written.file)
    assert pipeline.source.key == ["the: id"]
    assert pipeline.source.content == "{body # x}\n{content}"
    assert pipeline.source.metadata == ["t\ni", "year", "on", "lang"]
    assert passes(written.file, online=True)


def test_nothing_is_overwritten_and_no_password_is_written(
    source: Connection, database_url: str, tmp_path: Path
) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("mine", "utf-8")
    with pytest.raises(UsageError, match="exists, and nothing was written"):
        write_draft("public.paintings", None, file)
    assert file.read_text("utf-8") == "mine"
    written = write_draft(f"{database_url} password=hunter2", "paintings", tmp_path / "b.yaml")
    assert written.sets == "ROWVEC_DATABASE_URL"
    assert "hunter2" not in written.file.read_text("utf-8")


def test_a_table_that_is_misspelt_is_named_with_what_was_meant(source: Connection, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no table public\.paintngs .* did you mean 'public\.paintings'\?"):
        write_draft("paintngs", None, tmp_path / "a.yaml")


def test_files_and_folders_of_images_pass_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROWVEC_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("ROWVEC_DATABASE_URL", raising=False)
    with (tmp_path / "my articles.csv").open("w") as file:
        rows = [(i, f"title {i}", "many words " * 20, 1900 + i % 3) for i in range(30)]
        csv.writer(file).writerows([("id", "title", "body", "year"), *rows])
    written = write_draft(str(tmp_path / "my articles.csv"), None, tmp_path / "deep.yaml")
    pipeline = load(written.file)
    assert pipeline.source.kind == "csv"
    assert (pipeline.source.key, pipeline.source.types) == (["id"], {"id": "bigint", "year": "bigint"})
    assert pipeline.source.content == "{title}\n{body}"
    assert passes(written.file, online=False)
    save(1, tmp_path / "pictures/one.png", side=32)
    assert passes(write_draft(str(tmp_path / "pictures"), None, tmp_path / "p.yaml").file, online=False)
    with pytest.raises(UsageError, match="neither a"):
        write_draft(str(tmp_path / "deep.yaml"), None, tmp_path / "x.yaml")
