"""A batch's vectors on disk, which come in any order from several places and may be larger than memory."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from rowvec.store.protocol import disk_faults
from rowvec.vectors.layout import Embeddings, Layout, Vectors, dense
from rowvec.vectors.sparse import SparseVectors, ends_of, spread

_ADVICE = "make room under ROWVEC_HOME and run again"

Rows = npt.NDArray[np.int64]


class VectorSpool(Protocol):
    """Disk space for a known number of vectors, numbered from 0."""

    def put(self, rows: Rows, vectors: Embeddings) -> None:
        """Keep ``vectors[i]``, in any layout, as number ``rows[i]``."""
        ...

    def take(self, rows: Rows) -> Embeddings:
        """The vectors of these numbers, all of which were put before."""
        ...


def open_spool(folder: Path, layout: Layout, rows: int) -> VectorSpool:
    """Create space for ``rows`` vectors in a file of the folder."""
    return _Sparse(folder, layout, rows) if layout.is_sparse else _Dense(folder, layout, rows)


class _Dense:
    """A file in which each vector has its place from the start."""

    def __init__(self, folder: Path, layout: Layout, rows: int) -> None:
        self._layout = layout
        shape = (max(1, rows), layout.dimensions)
        size = shape[0] * shape[1] * 4
        with disk_faults(folder, _ADVICE), (folder / "vectors.f4").open("wb") as file:
            # Missing disk space is an error here, and not a signal in the middle of the work; macOS cannot allocate
            # ahead.
            if sys.platform == "linux":
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)
        self._vectors: Vectors = np.memmap(folder / "vectors.f4", np.float32, "r+", shape=shape)

    def put(self, rows: Rows, vectors: Embeddings) -> None:
        self._vectors[rows] = dense(vectors)

    def take(self, rows: Rows) -> Embeddings:
        return self._vectors[rows]


class _Sparse:
    """A file of nonzeros in the order in which vectors come: an index and a value each."""

    _PAIR = np.dtype([("index", "<i4"), ("value", "<f4")])

    def __init__(self, folder: Path, layout: Layout, rows: int) -> None:
        self._folder, self._layout = folder, layout
        self._path = folder / "vectors.sparse"
        self._path.touch()
        self._pairs = 0
        self._starts, self._counts = np.zeros(rows, np.int64), np.zeros(rows, np.int64)

    def put(self, rows: Rows, vectors: Embeddings) -> None:
        found = self._layout.adopt(vectors)
        assert isinstance(found, SparseVectors)  # noqa: S101 - what a sparse layout makes of anything
        pairs = np.empty(len(found.indices), self._PAIR)
        pairs["index"], pairs["value"] = found.indices, found.values
        with disk_faults(self._folder, _ADVICE), self._path.open("ab") as file:
            file.write(pairs.tobytes())
        self._starts[rows] = found.starts[:-1] + self._pairs
        self._counts[rows] = found.nonzeros
        self._pairs += len(pairs)

    def take(self, rows: Rows) -> Embeddings:
        counts = self._counts[rows]
        # An empty file cannot be mapped.
        pairs = np.memmap(self._path, self._PAIR, "r") if self._pairs else np.empty(0, self._PAIR)
        taken = pairs[spread(self._starts[rows], counts)]
        return SparseVectors(
            self._layout.dimensions, ends_of(counts), taken["index"].astype(np.int32), taken["value"].astype(np.float32)
        )
