"""What the tests of indexes share."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def few_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tuner asks 60 questions of each candidate, not 400: a recall of two decimals is not what these tests need."""
    monkeypatch.setattr("rowvec.index.tuning.tuner._QUERIES", 60)
