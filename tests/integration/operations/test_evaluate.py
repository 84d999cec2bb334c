"""``rowvec evaluate``: labelled questions are asked of one vector table, or of two that are compared."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rowvec.cli.commands.evaluate import evaluate_searches
from rowvec.errors import LessRelevant, UsageError
from rowvec.operations.relevance.evaluate import evaluate
from rowvec.pipeline import Pipeline
from rowvec.postgres.connection import Connection
from tests.support import paintings as gallery

SUBJECTS = (
    "a stormy sea", "a vase of flowers", "a king on his throne", "peasants at harvest", "a quiet harbour", "a battle",
    "a portrait of a child", "ruins of a temple", "a winter forest", "dancers on a stage", "a market square",
    "a shipwreck", "horses in a field", "a kitchen with copper pans", "a bridge in fog",
)  # fmt: skip


@pytest.fixture
def labelled(source: Connection, tmp_path: Path) -> Path:
    """Each row's subject is a question for the row, whose author says nothing of it."""
    source.execute("TRUNCATE paintings")
    path = tmp_path / "questions.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for number, subject in enumerate(SUBJECTS, 1):
            values = (number, f"It shows {subject}, painted in oil", f"Author {number % 3}")
            source.execute("INSERT INTO paintings (id, title, author) VALUES (%s, %s, %s)", values)
            file.write(json.dumps({"question": subject, "relevant": [number]}) + "\n")
    return path


def by_author(paintings: Pipeline, name: str = "authors", table: str = "vectors.authors") -> Pipeline:
    """A pipeline whose vectors say nothing of the subjects."""
    written = paintings.model_dump(mode="json", exclude_none=True)
    written |= {"name": name, "target": {"table": table}}
    written["source"] |= {"content": "{author}", "metadata": ["year"]}
    return Pipeline.model_validate(written)


def test_two_pipelines_are_compared_question_by_question(
    source: Connection, paintings: Pipeline, labelled: Path
) -> None:
    good = paintings.model_copy(update={"search": paintings.search.model_copy(update={"hybrid": True})})
    poor = by_author(paintings)
    for pipeline in (good, poor):
        gallery.sync(pipeline)
    alone = evaluate([good], labelled, 5)
    assert (alone.questions, alone.k, alone.differences) == (len(SUBJECTS), 5, {})
    ((name, modes),) = alone.pipelines
    assert (name, set(modes)) == ("paintings", {"exact", "adaptive", "hybrid"})
    # So few rows have no index, so the two searches are one.
    assert modes["exact"] == modes["adaptive"]
    assert modes["exact"]["mrr"].mean > 0.8
    assert modes["exact"]["recall"].low <= modes["exact"]["recall"].mean <= modes["exact"]["recall"].high
    both = evaluate([good, poor], labelled, 5)
    assert set(both.differences) == {"exact", "adaptive"}
    assert both.differences["exact"]["ndcg"].is_worse
    assert evaluate([poor, good], labelled, 5).differences["exact"]["ndcg"].is_better
    same = evaluate([good, good], labelled, 5).differences["hybrid"]["ndcg"]
    assert (same.mean, same.low, same.high) == (0, 0, 0)
    written = both.as_json()
    assert json.loads(json.dumps(written))["pipelines"][1]["pipeline"] == "authors"


def test_the_command_prints_the_intervals_and_the_verdict(
    source: Connection, paintings: Pipeline, labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files: list[Path] = []
    for pipeline in (paintings, by_author(paintings)):
        gallery.sync(pipeline)
        files.append(tmp_path / f"{pipeline.name}.yaml")
        files[-1].write_text(json.dumps(pipeline.model_dump(mode="json", exclude_none=True)), "utf-8")
    with pytest.raises(UsageError, match="give one or two files"):
        evaluate_searches([*files, *files], labelled)
    evaluate_searches(files, labelled, 5)
    printed = capsys.readouterr().out
    assert "15 questions, with 95 % intervals" in printed
    assert "nDCG@5" in printed
    assert "adaptive: the second pipeline answers worse" in printed
    evaluate_searches(files[:1], labelled, 5, as_json=True)
    assert json.loads(capsys.readouterr().out)["differences"] == {}


def test_a_row_in_chunks_counts_once(source: Connection, paintings: Pipeline, labelled: Path) -> None:
    written = paintings.model_dump(mode="json", exclude_none=True)
    written["source"] |= {"chunks": {"tokens": 16, "overlap": 0}}
    chunked = Pipeline.model_validate(written)
    source.execute("UPDATE paintings SET description = repeat(title || '. ', 8)")
    gallery.sync(chunked)
    ((_, modes),) = evaluate([chunked], labelled, 3).pipelines
    assert modes["exact"]["recall"].mean > 0.8


def test_a_rebuild_does_not_switch_to_a_generation_that_answers_worse(
    source: Connection, paintings: Pipeline, labelled: Path, tmp_path: Path
) -> None:
    gallery.sync(paintings)
    worse = by_author(paintings, name="paintings", table="vectors.paintings")
    wrong = tmp_path / "wrong.jsonl"
    wrong.write_text("{}", "utf-8")
    with pytest.raises(UsageError, match="is no labelled question"):
        gallery.rebuild(worse, questions=wrong)
    assert source.execute("SELECT name FROM rowvec.pipelines").fetchall() == [("paintings",)]
    with pytest.raises(LessRelevant, match="answers the 15 questions worse \\(exact: nDCG@10 changes by -0"):
        gallery.rebuild(worse, questions=labelled)
    ((content,),) = source.execute("SELECT content FROM vectors.paintings WHERE id = 1").fetchall()
    assert "stormy" in content
    report = gallery.rebuild(worse, to_switch=False, questions=labelled)
    assert report.relevance is not None
    assert report.relevance["differences"]["adaptive"]["ndcg"]["high"] < 0
    assert gallery.rebuild(worse).switched
    # Back to the better one, which nothing holds up.
    assert gallery.rebuild(paintings, questions=labelled).switched


def test_a_question_without_a_vector_and_tables_of_other_keys_are_refused(
    source: Connection, paintings: Pipeline, labelled: Path
) -> None:
    gallery.sync(paintings)
    other = by_author(paintings)
    two = other.model_copy(update={"source": other.source.model_copy(update={"key": ["id", "author"]})})
    with pytest.raises(UsageError, match="keys of 1 and 2 columns"):
        evaluate([paintings, two], labelled, 5)
