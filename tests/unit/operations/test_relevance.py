"""Measures of labelled questions are those of the literature, and a file of questions is read or refused by line."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rowvec.errors import UsageError
from rowvec.operations.relevance.labels import Key, Labelled, read_labelled
from rowvec.operations.relevance.measures import estimate, scores

KEYS = st.integers(0, 30).map(lambda key: (str(key),))
LABELLED = st.builds(
    Labelled,
    question=st.just("q"),
    grades=st.dictionaries(KEYS, st.sampled_from([1.0, 2.0, 3.0]), min_size=1, max_size=12),
)


def one(grades: dict[Key, float], found: list[Key], k: int) -> dict[str, float]:
    return {name: float(each[0]) for name, each in scores([Labelled("q", grades)], [found], k).items()}


def test_the_measures_of_an_example_that_was_computed_by_hand() -> None:
    a, b, c, d = (("a",), ("b",), ("c",), ("d",))
    # Gains are 7 for a and 1 for b; found are d, b, a: (1 / log2 3 + 7 / 2) of (7 + 1 / log2 3).
    found = one({a: 3, b: 1}, [d, b, a], 10)
    assert found["ndcg"] == pytest.approx((1 / math.log2(3) + 7 / 2) / (7 + 1 / math.log2(3)))
    assert (found["mrr"], found["recall"]) == (0.5, 1.0)
    assert one({a: 1, b: 1}, [c, a], 1) == {"ndcg": 0.0, "mrr": 0.0, "recall": 0.0}
    # Only one row of three can be among the first.
    assert one({a: 1, b: 1, c: 1}, [c], 1) == {"ndcg": 1.0, "mrr": 1.0, "recall": 1.0}


@given(LABELLED, st.lists(KEYS, unique=True, max_size=20), st.integers(1, 15))
def test_every_measure_is_a_share_and_the_best_order_has_all(labelled: Labelled, found: list[Key], k: int) -> None:
    values = one(labelled.grades, found, k)
    assert all(0 <= value <= 1 + 1e-12 for value in values.values())
    best = sorted(labelled.grades, key=lambda key: -labelled.grades[key])
    assert one(labelled.grades, best, k) == pytest.approx({"ndcg": 1.0, "mrr": 1.0, "recall": 1.0})
    # A relevant row that moves to the front makes nothing worse.
    better = one(labelled.grades, [best[0], *(key for key in found if key != best[0])], k)
    assert all(better[name] >= values[name] - 1e-12 for name in values)


def test_an_interval_holds_the_mean_and_narrows_with_more_questions() -> None:
    drawn = np.random.default_rng(5).random(4_000)
    few, many = estimate(drawn[:40]), estimate(drawn)
    for found in (few, many):
        assert found.low < found.mean < found.high
    assert many.high - many.low < (few.high - few.low) / 5
    assert many.low < 0.5 < many.high
    assert estimate(drawn) == many
    same = estimate(np.zeros(10))
    assert not same.is_worse
    assert not same.is_better
    assert estimate(np.full(10, -0.1)).is_worse


def test_questions_are_read_with_keys_of_any_type_and_grades(tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    lines = [
        {"question": "a", "relevant": [3, "4"]},
        {"question": "b", "relevant": [{"key": 5, "grade": 2}, {"key": 6}]},
    ]
    path.write_text("\n\n".join(json.dumps(line) for line in lines), "utf-8")
    assert read_labelled(path, 1) == [
        Labelled("a", {("3",): 1.0, ("4",): 1.0}),
        Labelled("b", {("5",): 2.0, ("6",): 1.0}),
    ]
    path.write_text('{"question": "c", "relevant": [[1, "x"], {"key": [2, "y"]}]}', "utf-8")
    assert read_labelled(path, 2) == [Labelled("c", {("1", "x"): 1.0, ("2", "y"): 1.0})]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "has no questions"),
        ("{", ":1 is not JSON"),
        ("[]", ":1 is no labelled question"),
        ('{"question": " ", "relevant": [1]}', ":1 is no labelled question"),
        ('{"question": "q", "relevant": []}', ":1 is no labelled question"),
        ('{"question": "q", "relevant": [[1, 2]]}', r":1: \[1, 2\] is no key; the rows have a key of 1"),
        ('{"question": "q", "relevant": [null]}', ":1: null is no key"),
        ('{"question": "q", "relevant": [{"key": 1, "grade": 0}]}', ":1: the grade 0 is not"),
        ('{"question": "q", "relevant": [{"key": 1, "grade": 1e400}]}', ":1: the grade Infinity is not"),
    ],
)
def test_a_line_of_another_form_is_refused_by_its_number(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text(line, "utf-8")
    with pytest.raises(UsageError, match=message):
        read_labelled(path, 1)
    with pytest.raises(UsageError, match="cannot be read"):
        read_labelled(tmp_path / "none.jsonl", 1)
