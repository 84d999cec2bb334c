"""The bits are the same as pgvector's: they are compared with what the database computes from the same vectors."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from psycopg.errors import DataException

from rowvec.postgres.connection import Connection
from rowvec.stages.binarize import binarize

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
    """``binary_quantize`` of vectors that are sent in their wire format, which keeps every bit of every value."""
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
