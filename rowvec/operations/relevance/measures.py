"""How well the rows that answer questions rank, with intervals by bootstrap. All functions here are pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from rowvec.operations.relevance.labels import Key, Labelled

Measure = Literal["ndcg", "mrr", "recall"]

MEASURES: tuple[Measure, ...] = ("ndcg", "mrr", "recall")

_SEED = 20_240_229
_RESAMPLES = 2_000
_SHARE = 95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over questions, and its 95 % interval by bootstrap."""

    mean: float
    low: float
    high: float

    @property
    def is_worse(self) -> bool:
        """Of a difference: whether the whole interval is below zero."""
        return self.high < 0

    @property
    def is_better(self) -> bool:
        """Of a difference: whether the whole interval is above zero."""
        return self.low > 0


Scores = dict[Measure, npt.NDArray[np.float64]]
"""For each measure one number per question, from 0 to 1."""


def scores(questions: Sequence[Labelled], answers: Sequence[Sequence[Key]], k: int) -> Scores:
    """The measures of the first ``k`` rows of each answer, which are distinct and the best one first.

    ``ndcg``: the discounted gain, ``2 ** grade - 1`` over the binary logarithm of the rank plus one, as a share of the
    best possible one (Järvelin and Kekäläinen 2002, with the gains of Burges et al. 2005). ``mrr``: one by the rank of
    the first relevant row, 0 if there is none. ``recall``: the share of the relevant rows that are among the ``k``, or
    of ``k`` if more are relevant.
    """
    each = [_of_one(one, list(answer)[:k], k) for one, answer in zip(questions, answers, strict=True)]
    return {name: np.array([one[i] for one in each], np.float64) for i, name in enumerate(MEASURES)}


def estimate(values: npt.NDArray[np.float64]) -> Estimate:
    """The mean of ``(n,)`` values and the interval that holds 95 % of the means of 2,000 resamples of the questions."""
    random = np.random.default_rng(_SEED)
    means = np.array([values[random.integers(0, len(values), len(values))].mean() for _ in range(_RESAMPLES)])
    low, high = np.percentile(means, [(100 - _SHARE) / 2, (100 + _SHARE) / 2])
    return Estimate(mean=float(values.mean()), low=float(low), high=float(high))


def _of_one(labelled: Labelled, found: list[Key], k: int) -> tuple[float, float, float]:
    grades = [labelled.grades.get(key, 0.0) for key in found]
    best = sorted(labelled.grades.values(), reverse=True)[:k]
    first = next((rank for rank, grade in enumerate(grades, 1) if grade > 0), None)
    hits = sum(grade > 0 for grade in grades)
    return _gain(grades) / _gain(best), 1 / first if first else 0.0, hits / len(best)


def _gain(grades: Sequence[float]) -> float:
    return sum((2**grade - 1) / math.log2(rank + 1) for rank, grade in enumerate(grades, 1))
