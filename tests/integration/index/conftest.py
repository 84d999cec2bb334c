"""Settings that all tests of indexes share."""

from __future__ import annotations

import pytest

from rowvec.index.tuning.candidates import Candidate, candidates
from rowvec.postgres.vector_table import VectorTable
from tests.support.open_sessions import sessions_stay_open

__all__ = ["sessions_stay_open"]


@pytest.fixture(autouse=True)
def few_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tuner asks each candidate 20 questions instead of 400: these tests do not need a recall of two decimals."""
    monkeypatch.setattr("rowvec.index.tuning.tuner._QUERIES", 20)


@pytest.fixture
def two_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tuner tries one graph on bits and one on floats: what is tested is what it makes of what it measures."""

    def first(table: VectorTable, rows: int) -> list[Candidate]:
        found = candidates(table, rows)
        return [found[0], next(one for one in found if one.index.on != "bits")]

    monkeypatch.setattr("rowvec.index.tuning.tuner.candidates", first)
    monkeypatch.setattr("rowvec.index.tuning.tuner.variations", lambda _: [])  # pyright: ignore[reportUnknownLambdaType] # none
