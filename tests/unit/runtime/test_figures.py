"""Counts and amounts in sentences."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from rowvec.runtime.figures import counted, dollars

ROOT = Path(__file__).parents[3]


def test_one_is_singular() -> None:
    assert [counted(number, "texts") for number in (0, 1, 2, 1_000)] == ["0 texts", "1 text", "2 texts", "1,000 texts"]
    assert [counted(number, "rows have", "row has") for number in (1, 2)] == ["1 row has", "2 rows have"]


def test_no_message_leaves_the_plural_to_its_reader() -> None:
    """Neither "3 row(s)" nor "a sync of 1 batch(es)": ``counted`` says it."""
    undecided = re.compile(r"[a-z]\((?:s|es)\)")
    found: list[str] = []
    for path in (path for folder in ("rowvec", "tasks", "flows") for path in (ROOT / folder).rglob("*.*")):
        if path.suffix not in (".py", ".sql") or not undecided.search(text := path.read_text("utf-8")):
            continue
        # In code it may be a call, as in `str(s)`.
        texts = [text] if path.suffix == ".sql" else _texts(text)
        found += [f"{path.relative_to(ROOT)}: {one}" for one in texts if undecided.search(one)]
    assert found == []


def _texts(code: str) -> list[str]:
    return [
        node.value for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant) if type(node.value) is str
    ]


@pytest.mark.parametrize(
    ("amount", "shown"),
    [(0, "$0"), (0.00000216, "less than $0.0001"), (0.0001, "$0.0001"), (1234.5, "$1,234.5000")],
)
def test_what_was_paid_never_looks_free(amount: float, shown: str) -> None:
    assert dollars(amount) == shown
