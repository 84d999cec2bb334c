"""Counts and amounts in sentences."""

from __future__ import annotations

import pytest

from rowvec.runtime.figures import counted, dollars


def test_one_is_singular() -> None:
    assert [counted(number, "texts") for number in (0, 1, 2, 1_000)] == ["0 texts", "1 text", "2 texts", "1,000 texts"]


@pytest.mark.parametrize(
    ("amount", "shown"),
    [(0, "$0"), (0.00000216, "less than $0.0001"), (0.0001, "$0.0001"), (1234.5, "$1,234.5000")],
)
def test_what_was_paid_never_looks_free(amount: float, shown: str) -> None:
    assert dollars(amount) == shown
