"""The bits are pgvector's own: compared with what the database itself makes of the same vectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from psycopg.errors import DataException

from rowvec.postgres.connection import Connection
from rowvec.sync.binarize import binarize, write_bits

Vectors = npt.NDArray[np.floating]

_IN_DATABASE = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)  # nothing is written, so one connection serves all examples
_EDGES = (0.0, -0.0, 1e-45, -1e-45, 1.1754944e-38, 6e-8, -6e-8, 1e-8, 1.0, -1.0)


def vectors(dtype: type[np.floating]) -> st.SearchStrategy[Vectors]:
    """Up to 5 vectors of up to 70 dimensions, with zeros of both signs and subnormals."""
    width = np.dtype(dtype).itemsize * 8
    edges = st.sampled_from([float(dtype(edge)) for edge in _EDGES])
    values = st.floats(allow_nan=False, allow_infinity=False, width=width) | edges  # pyright: ignore[reportArgumentType] # 16 or 32
    return hnp.arrays(dtype, st.tuples(st.integers(1, 5), st.integers(1, 70)), elements=values)


def quantized(connection: Connection, wire: npt.NDArray[np.floating], halfvec: bool) -> list[bytes]:
    """What ``binary_quantize`` makes of vectors given in their wire format, which keeps every bit of every value."""
    head = wire.shape[1].to_bytes(2, "big") + bytes(2)
    recv = "halfvec" if halfvec else "vector"
    connection.execute("DROP TABLE IF EXISTS pg_temp.given")
    connection.execute(f"CREATE TEMP TABLE given (i int, v {recv})".encode())
    with connection.cursor() as cursor, cursor.copy("COPY pg_temp.given FROM STDIN (FORMAT binary)") as copy:
        copy.set_types(["int4", "bytea"])
        for i, vector in enumerate(wire):
            copy.write_row((i, head + vector.tobytes()))
    rows = connection.execute("SELECT bit_send(binary_quantize(v)) FROM pg_temp.given ORDER BY i").fetchall()
    return [row[0][4:] for row in rows]


@_IN_DATABASE
@given(given_vectors=vectors(np.float32))
def test_bits_of_vectors_are_the_databases(connection: Connection, given_vectors: Vectors) -> None:
    assert [bits.tobytes() for bits in binarize(given_vectors)] == quantized(
        connection, given_vectors.astype(">f4"), halfvec=False
    )


@_IN_DATABASE
@given(given_vectors=vectors(np.float16))
def test_bits_of_halfvecs_are_the_databases(connection: Connection, given_vectors: Vectors) -> None:
    assert [bits.tobytes() for bits in binarize(given_vectors)] == quantized(
        connection, given_vectors.astype(">f2"), halfvec=True
    )


def test_nan_gives_no_bit_and_the_database_takes_no_nan(connection: Connection) -> None:
    nan = np.array([[np.nan, 1, -np.nan]], np.float32)
    assert binarize(nan).tolist() == [[0b0100_0000]]
    with pytest.raises(DataException, match="NaN not allowed"):
        quantized(connection, nan.astype(">f4"), halfvec=False)


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
    write_bits(spool, bits, 9)
    with pa.memory_map(str(bits)) as source:
        written = pa.ipc.open_file(source).read_all().column("embedding_bits")
        assert [chunk.type for chunk in written.chunks] == [pa.binary(2)] * 3
        assert written.to_pylist() == [row.tobytes() for block in blocks for row in binarize(block)]
