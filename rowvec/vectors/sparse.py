"""Sparse vectors: many at once as their nonzeros, and as the bytes that pgvector sends and receives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rowvec.errors import ArtifactCorrupt

MOST_DIMENSIONS = 1_000_000_000
MOST_NONZEROS = 16_000
"""pgvector's ``SPARSEVEC_MAX_DIM`` and ``SPARSEVEC_MAX_NNZ``."""

# The head of a value in wire format: dimensions, nonzeros, and a reserved zero.
_HEAD_WORDS = 3
_WORD = 4

ARROW = pa.struct(
    [
        pa.field("indices", pa.list_(pa.field("element", pa.int32(), nullable=False)), nullable=False),
        pa.field("values", pa.list_(pa.field("element", pa.float32(), nullable=False)), nullable=False),
    ]
)
"""The type in an artifact: ascending indices counted from 0, and the value at each; no value is NULL or zero."""


@dataclass(frozen=True, slots=True, eq=False)
class SparseVectors:
    """``n`` vectors of one length, as the nonzeros of all of them in sequence.

    Each vector's indices ascend without duplicates, and no value is zero. The code that creates an instance ensures
    this.
    """

    dimensions: int
    starts: npt.NDArray[np.int64]
    """``(n + 1,)``: where the nonzeros of each vector begin, counted from 0, and where those of the last one end."""
    indices: npt.NDArray[np.int32]
    """``(m,)``: counted from 0."""
    values: npt.NDArray[np.float32]
    """``(m,)``."""

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, which: int | slice | npt.NDArray[np.integer] | npt.NDArray[np.bool_]) -> SparseVectors:
        """Some of the vectors, in the given order; a number gives one vector, also as ``SparseVectors``."""
        rows = np.atleast_1d(np.arange(len(self))[which])
        counts = self.nonzeros[rows]
        at = spread(self.starts[rows], counts)
        return SparseVectors(self.dimensions, ends_of(counts), self.indices[at], self.values[at])

    def __iter__(self) -> Iterator[SparseVectors]:
        return (self[row] for row in range(len(self)))

    @property
    def nonzeros(self) -> npt.NDArray[np.int64]:
        """``(n,)``: the number of nonzeros of each vector."""
        return np.diff(self.starts)

    @property
    def rows(self) -> npt.NDArray[np.int64]:
        """``(m,)``: the number of the vector that each nonzero belongs to."""
        return np.repeat(np.arange(len(self)), self.nonzeros)

    def squares(self) -> npt.NDArray[np.float64]:
        """``(n,)``: the square of each vector's norm."""
        wide = self.values.astype(np.float64)
        return np.bincount(self.rows, wide * wide, len(self)).astype(np.float64, copy=False)

    def dense(self) -> npt.NDArray[np.float32]:
        """``(n, dimensions)``, with zeros."""
        found = np.zeros((len(self), self.dimensions), np.float32)
        found[self.rows, self.indices] = self.values
        return found

    def wires(self) -> pa.Array:
        """Each vector as pgvector's ``sparsevec_recv`` reads it, a ``large_binary`` array; its bytes are consecutive.

        int32 dimensions, int32 nonzeros, int32 zero, then the indices as int32 and the values as float32; big-endian.
        """
        counts = self.nonzeros
        words = ends_of(_HEAD_WORDS + 2 * counts)
        wire = np.zeros(words[-1], ">i4")
        wire[words[:-1]] = self.dimensions
        wire[words[:-1] + 1] = counts
        at = spread(words[:-1] + _HEAD_WORDS, counts)
        wire[at] = self.indices
        wire[at + np.repeat(counts, counts)] = self.values.astype(">f4").view(">i4")
        buffers = [None, pa.py_buffer(words * _WORD), pa.py_buffer(wire.view(np.uint8))]
        return pa.Array.from_buffers(pa.large_binary(), len(self), buffers)

    def arrow(self) -> pa.Array:
        """As ``ARROW``; raises ``OverflowError`` for 2^31 nonzeros and more, which no batch has."""
        if self.starts[-1] >= 2**31:
            raise OverflowError(f"{self.starts[-1]:,} nonzeros in one Arrow array")
        offsets = pa.array(self.starts, pa.int32())
        lists = [
            pa.ListArray.from_arrays(offsets, pa.array(numbers), type=ARROW.field(name).type)
            for name, numbers in (("indices", self.indices), ("values", self.values))
        ]
        return pa.StructArray.from_arrays(lists, fields=list(ARROW))


def of_dense(vectors: npt.NDArray[np.float32]) -> SparseVectors:
    """``(n, d)`` vectors without their zeros."""
    rows, indices = np.nonzero(vectors)
    counts = np.bincount(rows, minlength=len(vectors))
    return SparseVectors(vectors.shape[1], ends_of(counts), indices.astype(np.int32), vectors[rows, indices])


def of_arrow(array: pa.Array, dimensions: int) -> SparseVectors:
    """The vectors of an array of the type ``ARROW``. Raises ``ArtifactCorrupt`` if they are not valid."""
    lists = [array.field(name) for name in ("indices", "values")]
    starts, others = (one.offsets.to_numpy().astype(np.int64) for one in lists)
    found = SparseVectors(
        dimensions,
        starts - starts[0],
        lists[0].flatten().to_numpy(zero_copy_only=False),
        lists[1].flatten().to_numpy(zero_copy_only=False),
    )
    if not np.array_equal(found.starts, others - others[0]) or not _is_sound(found):
        raise ArtifactCorrupt(
            f"sparse vectors are not {dimensions:,} dimensions with ascending indices and a value at each; "
            "fetch their artifact from the store again"
        )
    return found


def of_wires(sent: Sequence[bytes], dimensions: int) -> SparseVectors:
    """The vectors of values that pgvector's ``sparsevec_send`` wrote, which are valid."""
    words = np.frombuffer(b"".join(sent), ">i4")
    counts = np.array([len(one) for one in sent], np.int64) // (2 * _WORD) - 1
    starts = ends_of(_HEAD_WORDS + 2 * counts)[:-1]
    at = spread(starts + _HEAD_WORDS, counts)
    values = words[at + np.repeat(counts, counts)].view(">f4").astype(np.float32)
    return SparseVectors(dimensions, ends_of(counts), words[at].astype(np.int32), values)


def together(parts: Sequence[SparseVectors], dimensions: int) -> SparseVectors:
    """Several groups of vectors as one."""
    counts = np.concatenate([np.empty(0, np.int64), *(part.nonzeros for part in parts)])
    indices = np.concatenate([np.empty(0, np.int32), *(part.indices for part in parts)])
    values = np.concatenate([np.empty(0, np.float32), *(part.values for part in parts)])
    return SparseVectors(dimensions, ends_of(counts), indices, values)


def products(vectors: SparseVectors, queries: SparseVectors) -> npt.NDArray[np.float64]:
    """``(q, n)`` inner products, in double precision.

    Works by dimension, like a search engine's postings: only dimensions that a query and a vector share are read.
    """
    order = np.argsort(vectors.indices, kind="stable")
    indices, rows = vectors.indices[order], vectors.rows[order]
    values = vectors.values[order].astype(np.float64)
    found = np.zeros((len(queries), len(vectors)))
    for q, query in enumerate(queries):
        first = np.searchsorted(indices, query.indices, "left")
        counts = np.searchsorted(indices, query.indices, "right") - first
        at = spread(first, counts)
        weights = values[at] * np.repeat(query.values.astype(np.float64), counts)
        found[q] = np.bincount(rows[at], weights, len(vectors))
    return found


def spread(starts: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """``(sum(counts),)``: for each start, the next ``count`` consecutive numbers."""
    ends = ends_of(counts)
    return np.arange(ends[-1]) + np.repeat(starts - ends[:-1], counts)


def ends_of(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """``(n + 1,)``: a zero, and the sum of the counts up to each."""
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def ascending(vectors: SparseVectors) -> npt.NDArray[np.bool_]:
    """``(n,)``: whether each vector's indices ascend and none occurs twice."""
    rows = vectors.rows
    steps = (np.diff(vectors.indices) <= 0) & (np.diff(rows) == 0)
    return np.bincount(rows[1:][steps], minlength=len(vectors)) == 0


def _is_sound(vectors: SparseVectors) -> bool:
    in_range = bool(((vectors.indices >= 0) & (vectors.indices < vectors.dimensions)).all())
    return in_range and bool(ascending(vectors).all()) and bool(vectors.values.all())
