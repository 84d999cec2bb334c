"""The binarize stage: one bit per dimension, which is all that a shortlist by Hamming distance needs."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rowvec.pipeline import Pipeline
from rowvec.runtime.telemetry import traced
from rowvec.stages.batch import Batch
from rowvec.vectors.layout import Precision

# Rows worked on at once: 1,024 vectors of 1,536 dimensions are 6 MB, their comparison another 1.5.
_ROWS = 1024


def binarize(vectors: npt.NDArray[np.floating]) -> npt.NDArray[np.uint8]:
    """Vectors ``(n, d)`` as packed bits ``(n, ceil(d / 8))``: what pgvector's ``binary_quantize`` makes of them.

    A bit is 1 where the value is above zero, so 0, -0 and NaN give 0 and the least subnormal 1. The first dimension
    is the highest bit of the first byte, and the bits past the last dimension are 0: the layout of Postgres' ``bit``.
    """
    return np.packbits(vectors > 0, axis=1)


def write_bits(spool: Path, bits: Path, dimensions: int, precision: Precision = "float32") -> None:
    """Write an Arrow file with the column ``embedding_bits`` for the ``embedding`` of another, batch by batch.

    The bits are those of the vector as a table of this precision keeps it: a value that is too small for float16 is 0
    there, and ``binary_quantize`` gives 0 for it.
    """
    schema = pa.schema([pa.field("embedding_bits", pa.binary((dimensions + 7) // 8), nullable=False)])
    with (
        pa.memory_map(str(spool)) as source,
        pa.OSFile(str(bits), "wb") as sink,
        pa.ipc.new_file(sink, schema) as out,
    ):
        reader = pa.ipc.open_file(source)
        for number in range(reader.num_record_batches):
            out.write_batch(pa.record_batch([_bits_of(reader.get_batch(number), dimensions, precision)], schema=schema))


def _bits_of(batch: pa.RecordBatch, dimensions: int, precision: Precision) -> pa.Array:
    vectors = batch.column("embedding").flatten().to_numpy().reshape(-1, dimensions)
    packed = np.empty((len(vectors), (dimensions + 7) // 8), np.uint8)
    for start in range(0, len(vectors), _ROWS):
        kept = vectors[start : start + _ROWS]
        # One beyond float16's range becomes an infinity here; the load refuses it by name.
        with np.errstate(over="ignore", under="ignore"):
            packed[start : start + _ROWS] = binarize(kept if precision == "float32" else kept.astype(np.float16))
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(packed.shape[1]), len(packed), [None, pa.py_buffer(packed)])


@traced("binarize")
def run(pipeline: Pipeline, batch: Batch) -> Batch:
    """Write the batch's bits next to its vectors, if the table keeps bits."""
    started = time.monotonic()
    if batch.rows and pipeline.target.bits:
        write_bits(
            batch.folder / "embedded.arrow",
            batch.folder / "bits.arrow",
            pipeline.embedder.dimensions,
            pipeline.target.precision,
        )
    return batch.after("binarize", started)
