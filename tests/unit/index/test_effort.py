"""More effort finds more: searches are raised first and to a limit, graphs grow with the rows and with each try."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from rowvec.index.choice import Facts, choose, fits
from rowvec.index.effort import MOST_SEARCH_EFFORT, graphs, raised_settings, search_efforts
from rowvec.pipeline.indexes import Index
from rowvec.postgres.vector_index import IndexChoice
from rowvec.searches.index_kinds import method_of

K = st.integers(1, 100)
CHOICES = st.builds(
    IndexChoice,
    kind=st.sampled_from(["hnsw", "ivfflat"]),
    on=st.sampled_from(["bits", "float"]),
    m=st.integers(2, 100),
    ef_construction=st.integers(200, 1000),
    graph_by_rows=st.booleans(),
    lists=st.integers(1, 5_000),
    prefix=st.sampled_from([0, 64]),
    oversampling=st.integers(1, 64),
    oversampling_given=st.booleans(),
    ef_search=st.integers(0, 1000),
    probes=st.integers(0, 100),
    reason=st.just(""),
)


@given(CHOICES, K)
def test_a_search_is_raised_in_steps_and_not_beyond_the_limits(choice: IndexChoice, k: int) -> None:
    ways = search_efforts(choice, k)
    assert ways[0] == choice
    assert len(set(ways)) == len(ways) <= 3
    for before, after in pairwise(ways):
        assert (after.oversampling, after.ef_search, after.probes) >= (before.oversampling, before.ef_search, 0)
        assert raised_settings(before, after)
        # The index stays as it is.
        settings = {"oversampling": 1, "ef_search": 0, "probes": 0}
        assert replace(before, **settings) == replace(after, **settings)
    last = ways[-1]
    assert last.oversampling <= max(choice.oversampling, min(64, MOST_SEARCH_EFFORT * choice.oversampling))
    assert last.oversampling == choice.oversampling or not choice.oversampling_given
    if choice.kind == "ivfflat" and len(ways) > 1:
        assert last.probes <= choice.lists or last.probes == choice.probes


@given(CHOICES)
def test_a_graph_grows_to_a_limit_and_one_that_the_file_names_does_not(choice: IndexChoice) -> None:
    tried = graphs(choice, None, 20, too_weak=False)
    assert tried[0] == choice
    for before, after in pairwise(tried):
        assert after == method_of(before.kind).stronger(before)
        assert after.ef_construction >= 2 * after.m or after == choice
    if choice.kind == "ivfflat" or not choice.graph_by_rows:
        assert set(tried) == {choice}
    elif choice.m <= 48 and choice.ef_construction <= 512:
        assert (tried[-1].m, tried[-1].ef_construction) == (max(48, choice.m), 512)


def test_a_rebuild_for_recall_begins_above_the_graph_that_finds_too_little() -> None:
    choice = choose(Facts(rows=100_000, dimensions=256, precision="float32", bits=0), Index())
    assert (choice.m, choice.ef_construction, choice.graph_by_rows) == (16, 64, True)
    weak = replace(choice, m=24, ef_construction=128)
    tried = graphs(choice, weak, 3, too_weak=True)
    assert [(g.m, g.ef_construction) for g in tried] == [(36, 256), (48, 512), (48, 512)]
    # One that is worn is not built with less effort than before, which may have been too little.
    assert graphs(choice, weak, 1, too_weak=False) == (weak,)
    named = replace(choice, graph_by_rows=False)
    assert graphs(named, weak, 1, too_weak=True) == (named,)
    # Over so many rows the graph by rows is stronger than the next step.
    many = choose(Facts(rows=20_000_000, dimensions=256, precision="float32", bits=0), Index())
    assert (many.m, many.ef_construction) == (32, 256)
    assert graphs(many, choice, 1, too_weak=True) == (many,)


def test_a_graph_by_rows_stays_while_the_table_grows() -> None:
    def by_rows(rows: int, wanted: Index) -> IndexChoice:
        return choose(Facts(rows=rows, dimensions=1_536, precision="float32", bits=1), wanted)

    small, large = by_rows(100_000, Index()), by_rows(5_000_000, Index())
    assert (small.m, small.ef_construction) == (16, 128)
    assert (large.m, large.ef_construction) == (24, 256)
    assert fits(small, large)
    assert fits(large, small)
    assert not fits(replace(small, m=8), large)
    # What the file names must be as it says.
    named = by_rows(5_000_000, Index(m=16))
    assert (named.m, named.ef_construction, named.graph_by_rows) == (16, 256, False)
    assert not fits(small, named)
