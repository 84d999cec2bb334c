"""One bit per dimension, padded to whole bytes; a file of vectors becomes a file of bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from rowvec.stages.binarize import binarize, write_bits


def test_bits_past_the_last_dimension_are_zero() -> None:
    assert binarize(np.ones((2, 9), np.float32)).tolist() == [[255, 128], [255, 128]]
    assert binarize(np.empty((0, 9), np.float32)).shape == (0, 2)


def test_a_file_of_vectors_gets_a_file_of_bits(tmp_path: Path) -> None:
    spool, bits = tmp_path / "embedded.arrow", tmp_path / "bits.arrow"
    type_ = pa.list_(pa.field("element", pa.float32(), nullable=False), 9)
    schema = pa.schema([pa.field("id", pa.int32()), pa.field("embedding", type_, nullable=False)])
    random = np.random.default_rng(1)
    blocks = [random.standard_normal((n, 9)).astype(np.float32) for n in (3000, 1, 17)]
    with pa.OSFile(str(spool), "wb") as sink, pa.ipc.new_file(sink, schema) as out:
        for block in blocks:
            embedding = pa.FixedSizeListArray.from_arrays(pa.array(block.reshape(-1)), type=type_)
            out.write_batch(
                pa.record_batch([pa.array(np.arange(len(block), dtype=np.int32)), embedding], schema=schema)
            )
    write_bits(spool, bits, 9, 1)
    with pa.memory_map(str(bits)) as source:
        written = pa.ipc.open_file(source).read_all().column("embedding_bits")
        assert [chunk.type for chunk in written.chunks] == [pa.binary(2)] * 3
        assert written.to_pylist() == [row.tobytes() for block in blocks for row in binarize(block)]
