"""The bits are the same as pgvector's: they are compared with what the database computes from the same vectors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from psycopg import sql
from psycopg.errors import DataException

from rowvec.postgres.connection import Connection
from rowvec.stages.binarize import binarize
from tests.support.vector_tables import vector_table

Vectors = npt.NDArray[np.floating]

_IN_DATABASE = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)  # nothing is written, so one connection serves all examples
_EDGES = (0.0, -0.0, 1e-45, -1e-45, 1.1754944e-38, 6e-8, -6e-8, 1e-8, 1.0, -1.0)
BITS = st.sampled_from([1, 2, 3])


def vectors(dtype: type[np.floating]) -> st.SearchStrategy[Vectors]:
    """Up to 5 vectors of up to 70 dimensions, with zeros of both signs and subnormals."""
    width = np.dtype(dtype).itemsize * 8
    edges = st.sampled_from([float(dtype(edge)) for edge in _EDGES])
    values = st.floats(allow_nan=False, allow_infinity=False, width=width) | edges  # pyright: ignore[reportArgumentType] # 16 or 32
    return hnp.arrays(dtype, st.tuples(st.integers(1, 5), st.integers(1, 70)), elements=values)


@st.composite
def at_thresholds(draw: st.DrawFn) -> Vectors:
    """Vectors of whole numbers and of powers of two, whose components often are exactly half the root mean square."""
    rows = draw(hnp.arrays(np.int8, st.tuples(st.integers(1, 5), st.sampled_from([4, 16, 64]))))
    scale = np.float32(2.0) ** draw(st.integers(-140, 115))
    # Of 16 components seven are 1, one 5, and eight 2: the root mean square is 2.
    rows[0, :] = np.resize([1, -1, 1, 1, -1, 1, 1, 5, 2, 2, -2, 2, 2, 2, 2, 2], rows.shape[1])
    return rows.astype(np.float32) * scale


def in_the_database(connection: Connection, given_vectors: Vectors, bits: int) -> list[bytes]:
    """The bits of vectors that are sent in their wire format, which keeps every bit of every value."""
    halves = given_vectors.dtype == np.float16
    table = vector_table(given_vectors.shape[1], precision="float16" if halves else "float32", bits=bits)
    connection.execute("DROP TABLE IF EXISTS pg_temp.given")
    connection.execute(sql.SQL("CREATE TEMP TABLE given (i int, v {})").format(sql.SQL(table.layout.type_name)))
    with connection.cursor() as cursor, cursor.copy("COPY pg_temp.given FROM STDIN (FORMAT binary)") as copy:
        copy.set_types(["int4", "bytea"])
        for i, vector in enumerate(table.layout.wires(given_vectors.astype(np.float32))):
            copy.write_row((i, vector))
    statement = sql.SQL("SELECT bit_send({}) FROM pg_temp.given ORDER BY i").format(table.bits_of(sql.SQL("v")))
    return [row[0][4:] for row in connection.execute(statement).fetchall()]


@_IN_DATABASE
@given(given_vectors=vectors(np.float32) | at_thresholds(), bits=BITS)
def test_bits_of_vectors_are_the_databases(connection: Connection, given_vectors: Vectors, bits: int) -> None:
    packed = [row.tobytes() for row in binarize(given_vectors, bits)]
    assert packed == in_the_database(connection, given_vectors, bits)


@_IN_DATABASE
@given(given_vectors=vectors(np.float16), bits=BITS)
def test_bits_of_halfvecs_are_the_databases(connection: Connection, given_vectors: Vectors, bits: int) -> None:
    packed = [row.tobytes() for row in binarize(given_vectors, bits)]
    assert packed == in_the_database(connection, given_vectors, bits)


@pytest.mark.parametrize("dimensions", [1, 7, 256, 1_536, 3_072])
@pytest.mark.parametrize("bits", [2, 3])
def test_bits_of_real_lengths_are_the_databases(connection: Connection, dimensions: int, bits: int) -> None:
    """At each length the squares are added up in another order: by numpy in pairs, by pgvector in lanes."""
    drawn = np.random.default_rng(dimensions).standard_normal((60, dimensions)).astype(np.float32)
    drawn[::2] /= np.linalg.norm(drawn[::2], axis=1, keepdims=True)
    assert [row.tobytes() for row in binarize(drawn, bits)] == in_the_database(connection, drawn, bits)


@pytest.mark.parametrize("bits", [2, 3])
def test_the_length_of_a_vector_does_not_change_its_bits(bits: int) -> None:
    drawn = np.random.default_rng(3).standard_normal((50, 40)).astype(np.float32)
    long = drawn * np.float32(92)
    assert np.mean(np.unpackbits(binarize(drawn, bits)) == np.unpackbits(binarize(long, bits))) > 0.999
    assert (binarize(drawn, bits) == binarize(drawn * np.float32(2.0) ** 40, bits)).all()


def test_a_component_at_a_threshold_is_not_above_it(connection: Connection) -> None:
    tie = np.array([[1, -1, 1, 1, -1, 1, 1, 5, 2, 2, -2, 2, 2, 2, 2, 2]], np.float32)
    above_low, above_high = np.unpackbits(binarize(tie, 2)).reshape(2, 16)
    assert above_high.tolist() == (tie[0] > 1).astype(int).tolist()
    assert above_low.tolist() == (tie[0] > -1).astype(int).tolist()
    assert [binarize(tie, 2).tobytes()] == in_the_database(connection, tie, 2)


def test_nan_gives_no_bit_and_the_database_takes_no_nan(connection: Connection) -> None:
    nan = np.array([[np.nan, 1, -np.nan]], np.float32)
    assert binarize(nan).tolist() == [[0b0100_0000]]
    with pytest.raises(DataException, match="NaN not allowed"):
        in_the_database(connection, nan, 1)


def test_two_numbers_of_bits_are_two_expressions(connection: Connection) -> None:
    table = vector_table(64)
    written = {replace(table, bits=bits).bits_of(sql.SQL("v")).as_string(connection) for bits in (1, 2, 3)}
    assert len(written) == 3
