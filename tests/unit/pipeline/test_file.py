"""The pipeline file: errors name file, line and key; references are resolved late; secrets are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rowvec.errors import UsageError
from rowvec.pipeline import Pipeline, json_schema
from rowvec.pipeline.file import load
from rowvec.pipeline.parts import table_identifier
from rowvec.pipeline.references import resolve

GOOD = """\
name: articles
source:
  kind: postgres
  table: public.articles
  key: [id]
  content: "{title}\\n{body}"
  url: ${SOURCE_DATABASE_URL}
embedder:
  kind: openai
  model: text-embedding-3-small
  dimensions: 256
target:
  table: vectors.articles
artifacts:
  url: ./artifacts
"""


def write(folder: Path, text: str) -> Path:
    file = folder / "articles.yaml"
    file.write_text(text, "utf-8")
    return file


def test_relative_paths_are_relative_to_the_file_and_references_stay(tmp_path: Path) -> None:
    pipeline = load(write(tmp_path, GOOD))
    assert pipeline.artifacts.url == str(tmp_path / "artifacts")
    assert pipeline.source.kind == "postgres"
    assert pipeline.source.url == "${SOURCE_DATABASE_URL}"


def test_references_are_resolved_in_memory_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATABASE_URL", "postgresql://u:secret@h/d")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    pipeline = load(write(tmp_path, GOOD))
    resolved = resolve(pipeline)
    assert resolved.source.kind == "postgres"
    assert resolved.source.url == "postgresql://u:secret@h/d"
    assert "secret" not in repr(resolved)
    assert "secret" not in pipeline.model_dump_json()


def test_a_missing_variable_is_named_with_its_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOURCE_DATABASE_URL", raising=False)
    with pytest.raises(UsageError, match=r"source\.url: the environment variable SOURCE_DATABASE_URL is not set"):
        resolve(load(write(tmp_path, GOOD)))


@pytest.mark.parametrize(
    ("old", "new", "line", "says"),
    [
        ("dimensions: 256", "dimensions: many", 11, "embedder.dimensions"),
        ("dimensions: 256", "dimensions: 256\n  dimension: 256", 12, "embedder.dimension: unknown key"),
        ("key: [id]", "key: []", 5, "source.key"),
        ("  key: [id]\n", "", 2, "source.key: is missing"),
        (
            "kind: openai",
            "kind: openapi",
            9,
            "embedder.kind: there is no kind of embedder 'openapi'; did you mean openai?",
        ),
        ('content: "{title}\\n{body}"', 'content: "{title"', 6, "source.content: unmatched '{'"),
        ("table: public.articles", "table: a.b.c", 4, "source.table: 'a.b.c' is not a table name"),
        ("${SOURCE_DATABASE_URL}", "postgresql://u:hunter2@h/d", 7, "source.url: holds a secret in plain text"),
        ("url: ./artifacts", "url: https://a.blob.core.windows.net/c?sig=hunter2", 15, "artifacts.url: holds a secret"),
        ("name: articles", "name: Our Articles", 1, "name"),
        ("target:", "source:", 12, "source: this key stands here twice"),
        ("key: [id]", "key: [id", 6, "not YAML"),
        ("key: [id]", "key: [id]\n  metadata: [embedding]", 2, "has the name of a column of the vector table"),
        ("key: [id]", "key: [id]\n  metadata: [id]", 2, "is named twice"),
        (
            "  table: vectors.articles",
            "  table: vectors.articles\n  bits: no\nindex:\n  on: bits",
            16,
            "index.on is bits",
        ),
        (
            "  table: vectors.articles",
            "  table: vectors.articles\n  bits: no\nindex:\n  bits: 2",
            16,
            "index.bits is 2, but target.bits is false",
        ),
        ("  dimensions: 256", "  dimensions: 256\n  api_key: sk-hunter2", 12, "embedder.api_key: holds a secret"),
    ],
)
def test_a_mistake_is_named_by_file_line_and_key(tmp_path: Path, old: str, new: str, line: int, says: str) -> None:
    file = write(tmp_path, GOOD.replace(old, new, 1))
    with pytest.raises(UsageError) as error:
        load(file)
    message = str(error.value)
    assert message.startswith(f"{file}:{line}: ")
    assert says in message
    assert "hunter2" not in message


def test_the_words_of_yaml_1_1_for_true_and_false_are_words(tmp_path: Path) -> None:
    pipeline = load(write(tmp_path, GOOD + "index:\n  kind: hnsw\n  on: bits\n"))
    assert (pipeline.index.kind, pipeline.index.on) == ("hnsw", "bits")
    for written, meant in (("true", True), ("false", False), ("yes", True), ("no", False), ("off", False)):
        text = GOOD.replace("target:", f"target:\n  bits: {written}")
        assert load(write(tmp_path, text)).target.bits is meant


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just words"])
def test_a_file_that_is_not_a_mapping_is_not_a_pipeline(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match="holds no pipeline"):
        load(write(tmp_path, text))


def test_a_missing_file_is_named_in_plain_words(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        load(tmp_path / "none.yaml")


def test_the_json_schema_takes_what_the_model_writes(tmp_path: Path) -> None:
    schema = json_schema()
    assert set(schema["required"]) == {"name", "source", "embedder", "target"}
    written = load(write(tmp_path, GOOD)).model_dump(mode="json")
    assert Pipeline.model_validate(json.loads(json.dumps(written))) == Pipeline.model_validate(written)


@pytest.mark.parametrize(
    ("written", "names"),
    [
        ("articles", ("public", "articles")),
        ("a.b", ("a", "b")),
        ('"we""ird"."t.x"', ('we"ird', "t.x")),
        ('"A b"', ("public", "A b")),
    ],
)
def test_table_names_read_as_sql_reads_them(written: str, names: tuple[str, str]) -> None:
    assert table_identifier(written) == names
