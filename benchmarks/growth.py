"""How costs grow with rows: laws fitted to measured sizes, and what they predict for sizes that were not measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Form = Literal["linear", "n log n"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Law:
    """``constant + slope * x``, where x is n or n log2 n."""

    form: Form
    constant: float
    slope: float
    r2: float
    """The share of the variance that the law explains, in the measured unit, so the largest sizes weigh most."""

    def at(self, rows: float) -> float:
        """The predicted cost of this many rows."""
        return self.constant + self.slope * _scaled(self.form, rows)

    def written(self, unit: str) -> str:
        """The law as text: the constant, and the cost of each million rows."""
        a_million = self.slope * _scaled(self.form, 1e6)
        return f"{self.constant:.2f} + {a_million:.4g} {unit} a million rows ({self.form}), R2 {self.r2:.4f}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Power:
    """``factor * n ** exponent``, fitted in logarithms, so each size weighs the same."""

    factor: float
    exponent: float
    r2: float


def fit(form: Form, rows: Sequence[int], costs: Sequence[float]) -> Law:
    """The least-squares law through two sizes or more; neither its constant nor its slope is negative."""
    x, y = np.array([_scaled(form, n) for n in rows]), np.array(costs, np.float64)
    # Errors are relative to the cost. Otherwise the constant, which shows at the smallest sizes, would only absorb the
    # errors of the largest.
    weights = 1 / np.maximum(y, 1e-9)
    slope, constant = np.polyfit(x, y, 1, w=weights)
    if slope < 0:
        constant, slope = float((weights**2 * y).sum() / (weights**2).sum()), 0.0
    elif constant < 0:
        constant, slope = 0.0, float((weights**2 * x * y).sum() / (weights**2 * x * x).sum())
    return Law(form=form, constant=float(constant), slope=float(slope), r2=_explained(y, constant + slope * x))


def power(rows: Sequence[int], costs: Sequence[float]) -> Power:
    """The power law through two sizes or more; costs must be positive."""
    x, y = np.log(np.array(rows, np.float64)), np.log(np.array(costs, np.float64))
    exponent, factor = np.polyfit(x, y, 1)
    return Power(factor=math.exp(factor), exponent=float(exponent), r2=_explained(y, factor + exponent * x))


def _scaled(form: Form, rows: float) -> float:
    return rows * math.log2(rows) if form == "n log n" else float(rows)


def _explained(measured: np.ndarray, predicted: np.ndarray) -> float:
    spread = float(((measured - measured.mean()) ** 2).sum())
    return 1.0 if spread == 0 else 1 - float(((measured - predicted) ** 2).sum()) / spread
