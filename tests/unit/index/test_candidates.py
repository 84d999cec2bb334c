"""Which indexes a tuner tries, and which of the measured ones it recommends."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rowvec.index.choice import Facts, Tuned, choose
from rowvec.index.tuning.candidates import (
    FAST_ENOUGH,
    UNNOTICED_MS,
    Measured,
    candidates,
    recommend,
    sample_rows,
    variations,
)
from rowvec.pipeline.indexes import Index
from rowvec.postgres.vector_index import IndexChoice
from tests.support.vector_tables import vector_table

SLOW_MS = 1_000.0


def measured(name: str, recall: float, per_second: float, mib: float, on: str = "float") -> Measured:
    """A measurement of an HNSW index."""
    choice = IndexChoice(kind="hnsw", on="bits" if on == "bits" else "float", opclass="o", reason="")
    return Measured(
        name=name,
        choice=choice,
        recall=recall,
        low=recall,
        high=recall,
        median_ms=1000 / per_second,
        p95_ms=2000 / per_second,
        per_second=per_second,
        bytes=round(mib * 2**20),
        build_seconds=1.0,
    )


# Figures from the documentation: 117,659 texts of 256 dimensions, and 20,000 x 3,072.
STATIC_256 = [
    measured("float", 0.945, 1_114, 159),
    measured("float, ef 100", 0.971, 598, 159),
    measured("halfvec, ef 100", 0.976, 720, 97),
    measured("bits, 16x", 0.938, 516, 39, "bits"),
    measured("bits, 32x", 0.966, 252, 39, "bits"),
]
OPENAI_3072 = [
    measured("halfvec, ef 40", 0.952, 560, 164),
    measured("bits, 2x", 0.961, 1_194, 14, "bits"),
]


def test_bits_where_they_pay_and_floats_where_they_do_not() -> None:
    choice, why = recommend(STATIC_256, SLOW_MS, 0.95)
    assert (choice.on, "halfvec, ef 100" in why) == ("float", True)
    choice, why = recommend(OPENAI_3072, SLOW_MS, 0.95)
    assert (choice.on, "bits, 2x" in why) == ("bits", True)


def test_no_index_where_the_exact_search_is_fast_or_as_fast() -> None:
    assert recommend(OPENAI_3072, UNNOTICED_MS, 0.95)[0].kind == "none"
    slow = [measured("slow", 0.99, 10, 1)]
    assert recommend(slow, 50.0, 0.95)[0].kind == "none"
    assert recommend(slow, 150.0, 0.95)[0].kind == "hnsw"
    assert "more seconds" in recommend([], SLOW_MS, 0.95)[1]


def test_the_nearest_miss_where_nothing_finds_enough() -> None:
    choice, why = recommend(STATIC_256, SLOW_MS, 0.999)
    assert (choice.on, "No index reaches" in why) == ("float", True)


@given(
    st.lists(
        st.tuples(st.floats(0, 1), st.floats(1, 5_000), st.floats(1, 1_000)),
        min_size=1,
        max_size=12,
    ),
    st.floats(0.5, 1),
)
def test_the_recommended_index_finds_enough_and_none_beats_it_in_both(
    figures: list[tuple[float, float, float]], at_least: float
) -> None:
    all_of_them = [
        replace(one, choice=replace(one.choice, ef_search=i + 1))
        for i, one in enumerate(measured(f"{i}", *figure) for i, figure in enumerate(figures))
    ]
    enough = [one for one in all_of_them if one.recall >= at_least]
    choice, _ = recommend(all_of_them, 1e9, at_least)
    best = all_of_them[choice.ef_search - 1]
    if not enough:
        assert best.recall == max(one.recall for one in all_of_them)
        return
    assert best in enough
    assert best.per_second >= FAST_ENOUGH * max(one.per_second for one in enough)
    assert not any(one.bytes < best.bytes and one.per_second > best.per_second for one in enough)


@pytest.mark.parametrize("dimensions", [16, 64, 256, 1_536, 2_001, 3_072, 4_001, 16_000])
def test_everything_that_is_tried_can_be_built(dimensions: int) -> None:
    tried = candidates(vector_table(dimensions), 50_000)
    assert tried
    for one in [*tried, *variations(tried[0])]:
        held = (one.index.prefix or dimensions) * one.index.bits
        assert held <= (64_000 if one.index.on == "bits" else 2_000 if one.index.on == "float" else 4_000)
        assert one.settings
        efforts = [s.oversampling * max(1, s.ef_search) * max(1, s.probes) for s in one.settings]
        assert efforts == sorted(efforts), "the cheapest first"


@given(st.integers(1, 10**8), st.sampled_from([64, 256, 1_536, 3_072]), st.floats(1, 3_600), st.integers(2**26, 2**36))
def test_the_sample_fits_what_may_be_spent(rows: int, dimensions: int, seconds: float, memory: int) -> None:
    table = vector_table(dimensions)
    found = sample_rows(rows, table, seconds, memory)
    assert 1 <= found <= rows
    assert found == 1 or found * dimensions * 4 <= memory
    assert sample_rows(rows, table, seconds * 2, memory) >= found


def test_a_tuned_choice_is_taken_until_it_is_outgrown_or_overruled() -> None:
    tuned = IndexChoice(kind="hnsw", on="halfvec", opclass="halfvec_cosine_ops", ef_search=100, reason="Measured.")
    auto = Index()

    def chosen(rows: int, wanted: Index = auto, choice: IndexChoice = tuned) -> IndexChoice:
        return choose(
            Facts(rows=rows, dimensions=3_072, precision="float32", bits=1),
            wanted,
            Tuned(choice=choice, rows=100_000),
        )

    assert chosen(100_000) == tuned
    assert chosen(1_000_000) == tuned
    assert chosen(1_000_001).on == "bits"
    assert chosen(100_000, Index(on="bits")).on == "bits"
    assert chosen(100_000, Index(kind="ivfflat")).kind == "ivfflat"
    none = IndexChoice(kind="none", reason="fast")
    assert chosen(200_000, choice=none).kind == "none"
    assert chosen(200_001, choice=none).kind == "hnsw"
    lists = IndexChoice(kind="ivfflat", on="halfvec", opclass="o", lists=100, probes=10, lists_by_rows=True, reason="")
    grown = chosen(400_000, choice=lists)
    assert (grown.lists, grown.probes) == (400, 40)
