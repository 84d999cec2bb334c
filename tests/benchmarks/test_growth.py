"""Laws fitted to costs: what was made by a law is found again, whatever its numbers."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.growth import Form, fit, power

SIZES = [10_000, 50_000, 200_000, 1_000_000, 2_000_000]

constants = st.floats(0, 60)
slopes = st.floats(1e-7, 1e-2)


@given(constant=constants, slope=slopes, form=st.sampled_from(["linear", "n log n"]))
def test_a_law_is_found_again(constant: float, slope: float, form: Form) -> None:
    def cost(n: int) -> float:
        return constant + slope * n * (math.log2(n) if form == "n log n" else 1)

    law = fit(form, SIZES, [cost(n) for n in SIZES])
    assert law.at(100_000_000) == pytest.approx(cost(100_000_000), rel=1e-3)
    assert law.r2 == pytest.approx(1, abs=1e-6)


@given(slope=slopes, below=st.floats(0.1, 50))
def test_a_constant_is_never_below_nothing(slope: float, below: float) -> None:
    costs = [max(1e-6, slope * n - below) for n in SIZES]
    law = fit("linear", SIZES, costs)
    assert law.constant >= 0
    assert law.at(0) >= 0
    assert law.slope > 0


@given(first=st.floats(0.5, 10), fall=st.floats(0, 1e-7))
def test_what_falls_is_taken_for_constant(first: float, fall: float) -> None:
    costs = [first - fall * n for n in SIZES]
    law = fit("linear", SIZES, costs)
    assert law.slope == pytest.approx(0, abs=1e-12)
    assert min(costs) * (1 - 1e-9) <= law.at(10**8) <= max(costs) * (1 + 1e-9)


@given(factor=st.floats(1e-6, 10), exponent=st.floats(0.5, 2))
def test_a_power_is_found_again(factor: float, exponent: float) -> None:
    found = power(SIZES, [factor * n**exponent for n in SIZES])
    assert found.exponent == pytest.approx(exponent, abs=1e-6)
    assert found.factor == pytest.approx(factor, rel=1e-4)
    assert found.r2 == pytest.approx(1, abs=1e-6)
