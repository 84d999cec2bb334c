"""The index choice never exceeds pgvector's limits, and changes only if it should."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from rowvec.errors import UsageError
from rowvec.index.choice import BITS_FROM_DIMENSIONS, EXACT_ELEMENTS, Facts, choose, fits, oversampling_for
from rowvec.pipeline.indexes import Index
from rowvec.postgres.vector_index import IndexChoice
from rowvec.postgres.vector_table import Metric, Precision
from rowvec.searches.index_kinds.hnsw import LIMIT_BITS, LIMIT_HALFVEC, LIMIT_VECTOR

ROWS = st.integers(0, 10**10)
DIMENSIONS = st.integers(1, 16_000)
BITS = st.integers(0, 3)
PRECISIONS = st.sampled_from(["float32", "float16"])
METRICS = st.sampled_from(["cosine", "l2", "inner_product"])
WANTED = st.builds(
    Index,
    kind=st.sampled_from(["auto", "none", "hnsw", "ivfflat"]),
    on=st.sampled_from(["auto", "bits", "float"]),
    m=st.integers(2, 100),
    ef_construction=st.integers(4, 1000),
    lists=st.none() | st.integers(1, 32_768),
    oversampling=st.integers(1, 64),
)


def chosen(
    rows: int, dimensions: int, precision: Precision, bits: int, wanted: Index, metric: Metric, *, indexed: bool
) -> IndexChoice:
    try:
        return choose(
            Facts(rows=rows, dimensions=dimensions, precision=precision, bits=bits, metric=metric, indexed=indexed),
            wanted,
        )
    except UsageError:
        # Only an impossible setting is rejected, and ``auto`` for both kind and column is always possible.
        assert (wanted.kind, wanted.on) != ("auto", "auto")
        assert wanted.on == "bits" or dimensions > LIMIT_HALFVEC
        assume(False)
        raise


@given(
    rows=ROWS,
    dimensions=DIMENSIONS,
    precision=PRECISIONS,
    bits=BITS,
    wanted=WANTED,
    metric=METRICS,
    indexed=st.booleans(),
)
def test_no_limit_of_pgvector_is_exceeded(
    rows: int, dimensions: int, precision: Precision, bits: int, wanted: Index, metric: Metric, indexed: bool
) -> None:
    choice = chosen(rows, dimensions, precision, bits, wanted, metric, indexed=indexed)
    assert choice.reason.endswith(".")
    assert choice.oversampling == (wanted.oversampling or oversampling_for(Index(), dimensions, bits))
    assert wanted.kind in ("auto", choice.kind)
    if choice.kind == "none":
        return
    limits = {"vector": LIMIT_VECTOR, "halfvec": LIMIT_HALFVEC, "bit": LIMIT_BITS}
    assert dimensions <= limits[choice.opclass.split("_", 1)[0]]
    assert choice.bits == (bits if choice.on == "bits" else 1)
    assert choice.on != "bits" or bits * dimensions <= LIMIT_BITS
    assert wanted.on in ("auto", "bits" if choice.on == "bits" else "float")
    assert (choice.on == "bits") == (choice.opclass == "bit_hamming_ops")
    assert (choice.on == "halfvec") == (precision == "float32" and choice.opclass.startswith("halfvec"))
    operator = {"cosine": "cosine", "l2": "l2", "inner_product": "ip"}[metric]
    assert choice.on == "bits" or choice.opclass.endswith(f"_{operator}_ops")
    if choice.kind == "hnsw":
        assert choice.ef_construction >= 2 * choice.m
    else:
        assert 1 <= choice.lists <= 32_768
    assert fits(choice, choice)


@given(rows=ROWS, dimensions=DIMENSIONS, bits=BITS)
def test_auto_has_an_index_from_some_size_on_and_keeps_it(rows: int, dimensions: int, bits: int) -> None:
    wanted = Index()
    without, with_one = (
        choose(Facts(rows=rows, dimensions=dimensions, precision="float32", bits=bits, indexed=i), wanted)
        for i in (False, True)
    )
    if without.kind != "none":
        assert with_one == without
        assert (
            choose(Facts(rows=rows + 1, dimensions=dimensions, precision="float32", bits=bits), wanted).kind
            == without.kind
        )
    elif with_one.kind != "none":
        assert (
            choose(Facts(rows=2 * rows + 1, dimensions=dimensions, precision="float32", bits=bits), wanted).kind
            != "none"
        )


@pytest.mark.parametrize(
    ("rows", "dimensions", "bits", "kind", "on"),
    [
        (9_000, 1_024, 1, "none", "float"),
        (33_000, 256, 3, "none", "float"),
        (40_000, 256, 1, "hnsw", "float"),
        (40_000, 256, 2, "hnsw", "bits"),
        (1_000_000, 255, 3, "hnsw", "float"),
        (1_000_000, BITS_FROM_DIMENSIONS - 1, 1, "hnsw", "float"),
        (1_000_000, BITS_FROM_DIMENSIONS - 1, 3, "hnsw", "bits"),
        (1_000_000, BITS_FROM_DIMENSIONS, 1, "hnsw", "bits"),
        (1_000_000, 1_536, 0, "hnsw", "float"),
        (1_000_000, 2_001, 0, "hnsw", "halfvec"),
        (1_000_000, 3_072, 1, "hnsw", "bits"),
        (1_000_000, 4_001, 0, "none", "float"),
        (1_000_000, 4_001, 1, "hnsw", "bits"),
    ],
)
def test_the_index_that_auto_chooses(rows: int, dimensions: int, bits: int, kind: str, on: str) -> None:
    choice = choose(Facts(rows=rows, dimensions=dimensions, precision="float32", bits=bits), Index())
    assert (choice.kind, choice.on) == (kind, on)
    assert EXACT_ELEMENTS


@pytest.mark.parametrize(
    ("dimensions", "bits", "wanted", "message"),
    [
        (256, 0, Index(on="bits"), "target.bits to true"),
        (4_001, 1, Index(on="float"), "4,000"),
        (4_001, 0, Index(kind="hnsw"), "4,000"),
    ],
)
def test_an_impossible_index_setting_is_reported(dimensions: int, bits: int, wanted: Index, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        choose(Facts(rows=10, dimensions=dimensions, precision="float32", bits=bits), wanted)


@given(rows=st.integers(1, 10**9), change=st.floats(0.6, 1.6))
def test_lists_by_rows_do_not_ask_for_a_rebuild_with_every_row(rows: int, change: float) -> None:
    wanted = Index(kind="ivfflat")
    before, after = (
        choose(Facts(rows=n, dimensions=64, precision="float32", bits=0), wanted) for n in (rows, int(rows * change))
    )
    assert fits(before, after) or before.lists < 10
    much_more = choose(Facts(rows=rows * 8 + 40_000, dimensions=64, precision="float32", bits=0), wanted)
    assert not fits(before, much_more) or before.lists > 10_000
    one_list_more = choose(
        Facts(rows=rows, dimensions=64, precision="float32", bits=0), Index(kind="ivfflat", lists=before.lists + 1)
    )
    assert not fits(before, one_list_more)
