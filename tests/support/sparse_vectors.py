"""Sparse vectors that tests draw, and their comparison to the bit."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from rowvec.embedders import open_embedder
from rowvec.embedders.protocol import Answer
from rowvec.pipeline import embedders
from rowvec.vectors import sparse
from rowvec.vectors.sparse import MOST_DIMENSIONS, SparseVectors

Row = dict[int, float]
"""Value by index; the index counts from 0."""


def sparse_rows(values: st.SearchStrategy[float], least: int = 0) -> st.SearchStrategy[tuple[int, list[Row]]]:
    """Dimensions, and rows of index (from 0) to value."""
    lengths = st.integers(1, 9) | st.sampled_from([30_522, MOST_DIMENSIONS])
    return lengths.flatmap(
        lambda d: st.tuples(
            st.just(d),
            st.lists(st.dictionaries(st.integers(0, d - 1), values, min_size=least, max_size=12), max_size=9),
        )
    )


def made(dimensions: int, rows: list[Row]) -> SparseVectors:
    ordered = [sorted(row.items()) for row in rows]
    flat = [pair for row in ordered for pair in row]
    return SparseVectors(
        dimensions,
        sparse.ends_of(np.array([len(row) for row in ordered], np.int64)),
        np.array([i for i, _ in flat], np.int32),
        np.array([v for _, v in flat], np.float32),
    )


def assert_same(found: SparseVectors, wanted: SparseVectors) -> None:
    assert found.dimensions == wanted.dimensions
    np.testing.assert_array_equal(found.starts, wanted.starts)
    np.testing.assert_array_equal(found.indices, wanted.indices)
    assert found.values.tobytes() == wanted.values.tobytes()


def answers_of(dimensions: int, texts: list[str]) -> list[Answer]:
    embedder = open_embedder(embedders.ColumnEmbedder(kind="column", column="v", dimensions=dimensions))
    return list(embedder.embed(texts))
