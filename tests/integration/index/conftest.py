"""Settings that all tests of indexes share."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def few_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tuner asks each candidate 60 questions instead of 400: these tests do not need a recall of two decimals."""
    monkeypatch.setattr("rowvec.index.tuning.tuner._QUERIES", 60)
