"""The layout of a table's vectors, on the wire and in artifacts: the one module that tells dense from sparse."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, LiteralString

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pgvector import HalfVector, SparseVector, Vector
from psycopg import sql

from rowvec.vectors import sparse
from rowvec.vectors.sparse import SparseVectors

Precision = Literal["float32", "float16", "sparse"]

Vectors = npt.NDArray[np.float32]
Embeddings = Vectors | SparseVectors
"""Vectors ``(n, d)``, dense or sparse. A single one, such as a search's, is ``(d,)`` or ``SparseVectors`` of one."""

AnyVectors = npt.NDArray[np.float32] | npt.NDArray[np.float64] | SparseVectors
"""Vectors ``(n, d)`` for arithmetic; accepting double precision saves a copy."""

MOST_DIMENSIONS = 16_000
"""pgvector's ``VECTOR_MAX_DIM`` and ``HALFVEC_MAX_DIM``."""

_TYPES: dict[Precision, LiteralString] = {"float32": "vector", "float16": "halfvec", "sparse": "sparsevec"}

# Before the values of a dense vector in wire format: int16 dimensions, int16 zero.
_DENSE_HEAD = 4

# Numbers that a distance between two typical sparse vectors reads: 128 nonzeros, an index and a value each.
_SPARSE_ELEMENTS = 256


@dataclass(frozen=True, slots=True)
class Layout:
    """The layout of one table's vectors."""

    precision: Precision
    dimensions: int

    @property
    def is_sparse(self) -> bool:
        """Whether only nonzeros are kept."""
        return self.precision == "sparse"

    @property
    def type_name(self) -> LiteralString:
        """pgvector's type, without its length: ``vector``, ``halfvec`` or ``sparsevec``."""
        return _TYPES[self.precision]

    @property
    def send(self) -> sql.SQL:
        """The function that gives a vector in wire format."""
        return sql.SQL(self.type_name + "_send")

    @property
    def norm(self) -> sql.SQL:
        """The function that gives a vector's norm."""
        return sql.SQL("vector_norm" if self.precision == "float32" else "l2_norm")

    @property
    def arrow(self) -> pa.DataType:
        """Artifacts hold float32 whatever the precision, because vectors that were paid for are kept in full.

        The elements are never NULL, so that Parquet keeps no levels for them and reads three times as fast.
        """
        if self.is_sparse:
            return sparse.ARROW
        return pa.list_(pa.field("element", pa.float32(), nullable=False), self.dimensions)

    @property
    def elements(self) -> int:
        """Numbers that one distance reads; a typical figure for sparse vectors."""
        return min(_SPARSE_ELEMENTS, 2 * self.dimensions) if self.is_sparse else self.dimensions

    def adopt(self, vectors: Embeddings) -> Embeddings:
        """Vectors ``(n, d)`` of any layout, converted to this one; values stay float32."""
        if self.is_sparse:
            return vectors if isinstance(vectors, SparseVectors) else sparse.of_dense(vectors)
        return dense(vectors)

    def to_arrow(self, vectors: Embeddings) -> pa.Array:
        """Vectors as a column of an artifact."""
        vectors = self.adopt(vectors)
        if isinstance(vectors, SparseVectors):
            return vectors.arrow()
        flat = pa.array(vectors.reshape(-1), pa.float32())
        return pa.FixedSizeListArray.from_arrays(flat, type=self.arrow)

    def wires(self, vectors: Embeddings) -> Iterator[bytes]:
        """Each vector as pgvector sends and receives it; a value beyond float16 becomes an infinity there.

        pgvector's ``vector_recv`` and ``halfvec_recv``: int16 dimensions, int16 zero, then the values, big-endian;
        ``sparsevec_recv``: see ``SparseVectors.wires``.
        """
        vectors = self.adopt(vectors)
        if isinstance(vectors, SparseVectors):
            yield from vectors.wires().to_pylist()
            return
        head = self.dimensions.to_bytes(2, "big") + bytes(_DENSE_HEAD - 2)
        with np.errstate(over="ignore"):
            values = vectors.astype(self._wire)
        for one in values:
            yield head + one.tobytes()

    def of_wires(self, sent: Sequence[bytes]) -> Embeddings:
        """The vectors of values that pgvector has sent; float16 becomes float32."""
        if self.is_sparse:
            return sparse.of_wires(sent, self.dimensions)
        kind = HalfVector if self.precision == "float16" else Vector
        found = np.empty((len(sent), self.dimensions), np.float32)
        for row, one in enumerate(sent):
            found[row] = kind.from_binary(one).to_numpy()
        return found

    def to_pgvector(self, vector: Embeddings) -> Vector | HalfVector | SparseVector:
        """A single vector as the value of pgvector's own Python class, for a statement's parameter."""
        one = self.question(vector)
        if isinstance(one, SparseVectors):
            nonzeros = zip(one.indices.tolist(), one.values.tolist(), strict=True)
            return SparseVector(dict(nonzeros), self.dimensions)
        return HalfVector(one) if self.precision == "float16" else Vector(one)

    def together(self, parts: Sequence[Embeddings]) -> Embeddings:
        """Several groups of vectors as one, in this layout."""
        adopted = [self.adopt(part) for part in parts]
        if self.is_sparse:
            return sparse.together([p for p in adopted if isinstance(p, SparseVectors)], self.dimensions)
        empty = np.empty((0, self.dimensions), np.float32)
        return np.concatenate([empty, *(p for p in adopted if not isinstance(p, SparseVectors))])

    def question(self, vector: Embeddings) -> Embeddings:
        """A single vector in this layout; see ``Embeddings``."""
        if isinstance(vector, SparseVectors):
            return vector if self.is_sparse else vector.dense()[0]
        return sparse.of_dense(vector[None]) if self.is_sparse else vector

    def unit(self) -> Embeddings:
        """A single vector along the first dimension, for searches whose results do not matter."""
        one = SparseVectors(self.dimensions, np.array([0, 1]), np.zeros(1, np.int32), np.ones(1, np.float32))
        return self.question(one)

    @property
    def _wire(self) -> str:
        return ">f2" if self.precision == "float16" else ">f4"


def dense(vectors: Embeddings) -> Vectors:
    """Vectors ``(n, d)`` with their zeros."""
    return vectors.dense() if isinstance(vectors, SparseVectors) else vectors


def of_arrow(array: pa.Array, dimensions: int) -> Embeddings:
    """The vectors of an artifact's column, in the column's own layout. Raises ``ArtifactCorrupt``."""
    if pa.types.is_struct(array.type):
        return sparse.of_arrow(array, dimensions)
    return array.flatten().to_numpy().reshape(-1, dimensions)


def is_layout(kind: pa.DataType) -> bool:
    """Whether this Arrow type can hold an artifact's vectors: dense of any length, or sparse."""
    if pa.types.is_fixed_size_list(kind):
        return kind.equals(Layout("float32", kind.list_size).arrow)
    return kind.equals(sparse.ARROW)


def squares(vectors: AnyVectors) -> npt.NDArray[np.float64]:
    """``(n,)``: the square of each vector's norm."""
    if isinstance(vectors, SparseVectors):
        return vectors.squares()
    wide = vectors.astype(np.float64, copy=False)
    return np.einsum("nd,nd->n", wide, wide)


def products(vectors: AnyVectors, queries: AnyVectors) -> npt.NDArray[np.float64]:
    """``(q, n)`` inner products in double precision; both arguments have the same layout."""
    if isinstance(vectors, SparseVectors) and isinstance(queries, SparseVectors):
        return sparse.products(vectors, queries)
    if isinstance(vectors, SparseVectors) or isinstance(queries, SparseVectors):
        raise TypeError("one side is sparse, the other dense")
    return queries.astype(np.float64, copy=False) @ vectors.astype(np.float64, copy=False).T
