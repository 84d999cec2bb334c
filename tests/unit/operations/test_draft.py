"""Drafts of pipeline files: whatever the columns are called, the file is valid and names just them."""

from __future__ import annotations

from pathlib import Path

import yaml
from hypothesis import given
from hypothesis import strategies as st

from rowvec.errors import UsageError
from rowvec.operations.setup.columns import Column, Found
from rowvec.operations.setup.draft import Around, of_file, of_table, pipeline_name, quoted, scalar
from rowvec.pipeline import Pipeline, template
from rowvec.pipeline.file import parse

AROUND = st.builds(Around, openai=st.booleans(), named_database=st.booleans())
ODD = st.sampled_from(
    [
        "a: b",
        "x # y",
        "- z",
        "${HOME}",
        "{{ prefect.blocks.secret.x }}",
        'q"q',
        "it's",
        "\u2028",
        "\x85",
        "on",
        "null",
        "1e3",
        "\nname: evil",
        "*a",
        "&a",
        "!tag",
        "%",
        "@",
        "`",
        "\\n",
        "\U0001f600",
        "\x7f",
        "\ufeff",
        "a,b]",
        " ",
    ]
)
NAMES = st.one_of(
    st.sampled_from(["id", "title", "body", "year", "author", "url"]),
    ODD,
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=15),
)
COLUMNS = st.lists(
    st.builds(
        Column,
        name=NAMES,
        kind=st.sampled_from(["text", "text", "scalar", "other"]),
        written=st.just("text"),
        width=st.none() | st.floats(0, 500),
    ),
    min_size=1,
    max_size=8,
    unique_by=lambda column: column.name,
)


def of(columns: list[Column], around: Around, *, file: bool) -> Pipeline | None:
    """The pipeline of a draft; None if it is refused."""
    found = Found(columns=tuple(columns), key=(columns[0].name,), key_from="the primary key")
    try:
        made = of_file("parquet", "x y.parquet", "x", found, around) if file else of_table("a.b", found, around)
    except UsageError:
        return None
    assert all("\n" not in guess for guess in made.guesses)
    return parse(made.text, Path("/tmp/x.yaml"))  # noqa: S108 # nothing is written


@given(columns=COLUMNS, around=AROUND, file=st.booleans())
def test_every_draft_is_a_pipeline_over_just_these_columns(columns: list[Column], around: Around, file: bool) -> None:
    pipeline = of(columns, around, file=file)
    if pipeline is None:
        # Only a name can be in the way.
        usual = all(column.name in ("id", "title", "body", "year", "author", "url") for column in columns)
        assert not usual
        return
    names = {column.name for column in columns}
    assert pipeline.source.key == [columns[0].name]
    assert set(pipeline.source.metadata) <= names
    assert isinstance(pipeline.source.content, str)
    used = template.parse(pipeline.source.content).columns
    assert used
    assert set(used) <= names
    assert not set(used) & set(pipeline.source.metadata)


def test_a_text_that_is_the_key_is_not_embedded_and_a_title_comes_first() -> None:
    widths = {"title": 20.0, "body": 300.0, "subject": 15.0}
    texts = [Column(name=name, kind="text", written="text", width=width) for name, width in widths.items()]
    by_title = of(texts, Around(openai=False, named_database=False), file=False)
    by_subject = of(texts[::-1], Around(openai=False, named_database=False), file=False)
    assert by_title is not None
    assert by_subject is not None
    assert "title" not in template.parse(str(by_title.source.content)).columns
    assert str(by_subject.source.content) == "{title}\n{body}"


@given(st.one_of(ODD, st.text(st.characters(exclude_categories=["Cs"]))))
def test_a_text_is_read_back_as_it_was_and_stays_in_its_line(text: str) -> None:
    for written in (scalar(text), quoted(text)):
        assert yaml.safe_load(f"a: {written}") == {"a": text}
        assert yaml.safe_load(f"a: [{written}, {written}]") == {"a": [text, text]}
        assert len(written.splitlines()) <= 1


@given(st.text())
def test_a_pipeline_can_have_the_name_that_is_made_of_any_text(text: str) -> None:
    Pipeline.model_validate(
        {
            "name": pipeline_name(text),
            "source": {"kind": "csv", "path": "a.csv", "key": ["id"], "content": "{a}"},
            "embedder": {"kind": "local"},
            "target": {"table": f"vectors.{pipeline_name(text)}"},
        }
    )
