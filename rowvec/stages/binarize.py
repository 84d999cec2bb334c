"""The binarize stage: one to three bits per dimension, which is all that a shortlist by Hamming distance needs."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rowvec.pipeline import Pipeline
from rowvec.runtime.telemetry import traced
from rowvec.stages.batch import Batch
from rowvec.vectors.bits import thresholds
from rowvec.vectors.layout import Precision

# Rows worked on at once: 1,024 vectors of 1,536 dimensions are 6 MB, their comparison another 1.5.
_ROWS = 1024


def binarize(vectors: npt.NDArray[np.floating], bits: int = 1) -> npt.NDArray[np.uint8]:
    """Vectors ``(n, d)`` as packed bits ``(n, ceil(bits * d / 8))``: what ``VectorTable.bits_of`` makes of them.

    One bit per dimension is what pgvector's ``binary_quantize`` gives: 1 where the value is above zero, so 0, -0 and
    NaN give 0 and the least subnormal 1. With more, each vector is scaled to length 1, and each threshold gives one bit
    per dimension: 1 where the component is above it. All bits of the lowest threshold come first.

    The first dimension is the highest bit of the first byte, and the bits past the last are 0: the layout of Postgres'
    ``bit``.
    """
    if bits == 1:
        return np.packbits(vectors > 0, axis=1)
    directions = _scaled(vectors)
    above = [directions > np.float32(threshold) for threshold in thresholds(bits, vectors.shape[1])]
    return np.packbits(np.concatenate(above, axis=1), axis=1)


def _scaled(vectors: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    """Each vector at length 1, as pgvector's ``l2_normalize`` computes it; a zero vector stays zero.

    The squares are added up in double precision, in which each of them is exact; the quotient is rounded to float32
    once. Only the order of the additions differs, so two norms may differ in their 16th digit, which no quotient
    shows unless it lies that near to the middle between two float32.
    """
    wide = vectors.astype(np.float64)
    norms = np.sqrt(np.einsum("nd,nd->n", wide, wide))[:, None]
    # A vector beyond float16's range has infinities here; the load refuses it by name.
    with np.errstate(invalid="ignore"):
        return (wide / np.where(norms > 0, norms, 1)).astype(np.float32)


def write_bits(spool: Path, into: Path, dimensions: int, bits: int, precision: Precision = "float32") -> None:
    """Write an Arrow file with the column ``embedding_bits`` for the ``embedding`` of another, batch by batch.

    The bits are those of the vector as a table of this precision keeps it: a value that is too small for float16 is 0
    there, and ``binary_quantize`` gives 0 for it. ``bits``: how many per dimension.
    """
    schema = pa.schema([pa.field("embedding_bits", pa.binary((bits * dimensions + 7) // 8), nullable=False)])
    with (
        pa.memory_map(str(spool)) as source,
        pa.OSFile(str(into), "wb") as sink,
        pa.ipc.new_file(sink, schema) as out,
    ):
        reader = pa.ipc.open_file(source)
        for number in range(reader.num_record_batches):
            vectors = reader.get_batch(number).column("embedding").flatten().to_numpy().reshape(-1, dimensions)
            out.write_batch(pa.record_batch([_bits_of(vectors, bits, precision)], schema=schema))


def _bits_of(vectors: npt.NDArray[np.float32], bits: int, precision: Precision) -> pa.Array:
    packed = np.empty((len(vectors), (bits * vectors.shape[1] + 7) // 8), np.uint8)
    for start in range(0, len(vectors), _ROWS):
        kept = vectors[start : start + _ROWS]
        # One beyond float16's range becomes an infinity here; the load refuses it by name.
        with np.errstate(over="ignore", under="ignore"):
            packed[start : start + _ROWS] = binarize(kept if precision == "float32" else kept.astype(np.float16), bits)
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(packed.shape[1]), len(packed), [None, pa.py_buffer(packed)])


@traced("binarize")
def run(pipeline: Pipeline, batch: Batch) -> Batch:
    """Write the batch's bits next to its vectors, if the table keeps bits."""
    started = time.monotonic()
    if batch.rows and batch.bits:
        write_bits(
            batch.folder / "embedded.arrow",
            batch.folder / "bits.arrow",
            pipeline.embedder.dimensions,
            batch.bits,
            pipeline.target.precision,
        )
    return batch.after("binarize", started)
