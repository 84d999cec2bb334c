"""Postgres reads the encoder's stream back as the same values: every type, NULL, slice and string type."""

from __future__ import annotations

import datetime as dt
import json
import math
import struct
import uuid
from collections import Counter
from typing import Any, LiteralString

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import errors as pg
from psycopg import sql

from rowvec.errors import FatalError, TargetError
from rowvec.postgres import copy_encoder
from rowvec.postgres.columns import PgColumn
from rowvec.postgres.connection import Connection
from rowvec.postgres.copy_encoder import BLOCK_BYTES, HEADER, TRAILER, Encoder, can_encode
from rowvec.stages.load import copy_rows

_TABLE = sql.Identifier("copied")
_TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40)
_DIMENSIONS = 9


# For each type: the Arrow type, a strategy for its values, and the SQL that gives the value back.
_TYPES: dict[str, tuple[pa.DataType, st.SearchStrategy[Any], LiteralString]] = {
    "smallint": (pa.int16(), st.integers(-(2**15), 2**15 - 1), "{}"),
    "integer": (pa.int32(), st.integers(-(2**31), 2**31 - 1), "{}"),
    "bigint": (pa.int64(), st.integers(-(2**63), 2**63 - 1), "{}"),
    "real": (pa.float32(), st.floats(width=32, allow_nan=False), "{}::double precision"),
    "double precision": (pa.float64(), st.floats(allow_nan=False), "{}"),
    "boolean": (pa.bool_(), st.booleans(), "{}"),
    "text": (pa.string(), _TEXT, "{}"),
    "character varying(40)": (pa.large_string(), _TEXT, "{}"),
    "name": (pa.string(), st.text("abcé", max_size=20), "{}::text"),
    "character(5)": (pa.string(), st.text("abc", min_size=5, max_size=5), "{}"),
    "json": (pa.string(), st.dictionaries(_TEXT, st.integers()).map(json.dumps), "{}::text"),
    "jsonb": (pa.string(), st.lists(st.integers(0, 99)).map(json.dumps), "{}::text"),
    "bytea": (pa.binary(), st.binary(max_size=40), "{}"),
    "uuid": (pa.string(), st.uuids().map(str), "{}::text"),
    "date": (pa.date32(), st.dates(), "{}"),
    "timestamp without time zone": (pa.timestamp("us"), st.datetimes(), "{}"),
    "timestamp with time zone": (
        pa.timestamp("us", "UTC"),
        st.datetimes(timezones=st.just(dt.UTC)),
        "{}",
    ),
    f"vector({_DIMENSIONS})": (
        pa.list_(pa.float32(), _DIMENSIONS),
        st.lists(st.floats(-(2.0**126), 2.0**126, width=32), min_size=_DIMENSIONS, max_size=_DIMENSIONS),
        "{}::real[]::double precision[]",
    ),
    f"halfvec({_DIMENSIONS})": (
        pa.list_(pa.float32(), _DIMENSIONS),
        st.lists(st.floats(-60_000, 60_000, width=16), min_size=_DIMENSIONS, max_size=_DIMENSIONS),
        "{}::real[]::double precision[]",
    ),
    "bit(16)": (
        pa.binary(2),
        st.binary(min_size=2, max_size=2),
        "decode(lpad(to_hex({}::int), 4, '0'), 'hex')",
    ),
}


@st.composite
def _tables(draw: st.DrawFn) -> tuple[list[PgColumn], list[pa.Array], list[list[Any]]]:
    """Columns of random types, their Arrow arrays, and the same values as Python lists; NULLs in some columns."""
    chosen = draw(st.lists(st.sampled_from(sorted(_TYPES)), min_size=1, max_size=8))
    rows = draw(st.integers(0, 12))
    columns, arrays, lists = [], [], []
    for i, pg_type in enumerate(chosen):
        arrow, values, _ = _TYPES[pg_type]
        some = st.none() | values if draw(st.booleans()) else values
        column = draw(st.lists(some, min_size=rows, max_size=rows))
        array = pa.array(column, arrow)
        if pa.types.is_string(arrow) and draw(st.booleans()):
            array = array.dictionary_encode()
        columns.append(PgColumn(f"c{i}", pg_type))
        arrays.append(array)
        lists.append(column)
    return columns, arrays, lists


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tables=_tables(), data=st.data())
def test_values_come_back_as_they_went(connection: Connection, tables: Any, data: st.DataObject) -> None:
    columns, arrays, lists = tables
    batch = pa.record_batch(arrays, names=[column.name for column in columns])
    start = data.draw(st.integers(0, batch.num_rows))
    cut = data.draw(st.integers(start, batch.num_rows))
    _create(connection, columns)
    batches = [batch.slice(start, cut - start), batch.slice(cut)]
    assert copy_rows(connection, _TABLE, columns, batches) == batch.num_rows - start
    expected = [tuple(values[row] for values in lists) for row in range(start, batch.num_rows)]
    assert _counted(_read(connection, columns)) == _counted(expected)


@pytest.mark.parametrize(
    ("pg_type", "text"),
    [
        ("date", "2024-02-29"),
        ("date", "0044-03-15 BC"),
        ("date", "infinity"),
        ("date", "-infinity"),
        ("date", "12024-01-01"),
        ("timestamp without time zone", "1999-12-31 23:59:59.999999"),
        ("timestamp without time zone", "0001-01-01 00:00:00 BC"),
        ("timestamp without time zone", "-infinity"),
        ("timestamp with time zone", "1969-07-20 20:17:40+00"),
        ("timestamp with time zone", "2024-01-01 12:34:56.1+05:30"),
        ("timestamp with time zone", "1880-01-01 00:00:00+05:53:28"),
        ("timestamp with time zone", "100000-01-01 00:00:00-03"),
        ("timestamp(0) with time zone", "infinity"),
        ("uuid", "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11"),
        ("uuid", "{a0eebc999c0b4ef8bb6d6bb9bd380a11}"),
    ],
)
def test_text_means_what_postgres_takes_it_for(connection: Connection, pg_type: str, text: str) -> None:
    column = PgColumn("c0", pg_type)
    _create(connection, [column])
    copy_rows(connection, _TABLE, [column], [pa.record_batch([pa.array([None, text])], names=["c0"])])
    same = sql.SQL("SELECT c0 = {}::{}, c0::text FROM copied WHERE c0 IS NOT NULL").format(text, column.type_sql)
    assert [row[0] for row in connection.execute(same)] == [True]


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())]
)
def test_all_kinds_of_strings(connection: Connection, kind: pa.DataType) -> None:
    column = PgColumn("c0", "text")
    _create(connection, [column])
    array = pa.array(["é", None, "", "𝄞 long enough to leave the view's inline part"]).cast(kind)
    copy_rows(connection, _TABLE, [column], [pa.record_batch([array.slice(1)], names=["c0"])])
    assert [row for (row,) in _read(connection, [column])] == array.to_pylist()[1:]


def test_arrow_s_own_uuids_finer_times_and_all_null_columns(connection: Connection) -> None:
    one = uuid.UUID(int=7)
    columns = [
        PgColumn("c0", "uuid"),
        PgColumn("c1", "timestamp without time zone"),
        PgColumn("c2", "vector(2)"),
        PgColumn("c3", "bigint"),
    ]
    _create(connection, columns)
    batch = pa.record_batch(
        [
            pa.array([one.bytes, None], pa.uuid()),
            pa.array([1_000_000_001, None], pa.timestamp("ns")),
            pa.nulls(2),
            pa.array([5, None], pa.int8()),
        ],
        names=["c0", "c1", "c2", "c3"],
    )
    copy_rows(connection, _TABLE, columns, [batch])
    found = connection.execute("SELECT c0, c1::text, c2, c3 FROM copied ORDER BY c0").fetchall()
    assert found == [(one, "1970-01-01 00:00:01", None, 5), (None, None, None, None)]


def test_vectors_of_lists_doubles_and_slices_of_a_larger_array(connection: Connection) -> None:
    columns = [PgColumn("c0", "vector(3)"), PgColumn("c1", "halfvec(3)")]
    _create(connection, columns)
    doubles = pa.array([[1.0, 2.0, 3.0], None, [4.0, 5.0, 6.0]], pa.list_(pa.float64(), 3))
    lists = pa.array([[7.0, 8.0, 9.0], [0.5, 0.25, 0.125], None], pa.list_(pa.float32()))
    batch = pa.record_batch([doubles, lists], names=["c0", "c1"]).slice(1)
    copy_rows(connection, _TABLE, columns, [batch])
    found = connection.execute("SELECT c0::real[], c1::real[] FROM copied").fetchall()
    assert found == [(None, [0.5, 0.25, 0.125]), ([4.0, 5.0, 6.0], None)]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tables=_tables(), block_bytes=st.integers(1, 400))
def test_bytes_are_those_that_the_server_writes(connection: Connection, tables: Any, block_bytes: int) -> None:
    """COPY TO of the same rows gives the same stream, however many blocks the encoder wrote."""
    columns, arrays, _ = tables
    batch = pa.record_batch(arrays, names=[column.name for column in columns])
    _create(connection, columns)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(copy_encoder, "BLOCK_BYTES", block_bytes)
        encoder = Encoder(columns)
        ours = HEADER + b"".join(encoder.encode(batch)) + TRAILER
        copy_rows(connection, _TABLE, columns, [batch])
    names = sql.SQL(", ").join(sql.Identifier(column.name) for column in encoder.columns)
    statement = sql.SQL("COPY copied ({}) TO STDOUT (FORMAT binary)").format(names)
    with connection.cursor() as cursor, cursor.copy(statement) as copy:
        assert ours == b"".join(copy)


@pytest.mark.parametrize("extension", ["xml", "citext"])
def test_types_that_not_every_server_has(connection: Connection, extension: str) -> None:
    columns = [PgColumn("c0", "bigint"), PgColumn("c1", extension), PgColumn("c2", f"{extension}[]")]
    try:
        if extension == "citext":
            connection.execute("CREATE EXTENSION citext")
        _create(connection, columns[:2])
        connection.execute("INSERT INTO copied VALUES (0, '<a>é</a>')")
    except (pg.FeatureNotSupported, pg.UndefinedFile) as error:
        pytest.skip(str(error))
    assert not can_encode(columns[2].pg_type)
    batch = pa.record_batch([pa.array([1, 2]), pa.array(["<a>é</a>", None])], names=["c0", "c1"])
    copy_rows(connection, _TABLE, columns[:2], [batch])
    found = connection.execute("SELECT c1::text FROM copied ORDER BY c0").fetchall()
    assert found == [("<a>é</a>",), ("<a>é</a>",), (None,)]


@pytest.mark.parametrize("block_bytes", [1, 100, 4096])
def test_rows_larger_than_a_block_and_blocks_of_one_row(
    connection: Connection, monkeypatch: pytest.MonkeyPatch, block_bytes: int
) -> None:
    """Texts and vectors of which half are NULL, and texts longer than the heads that are made at once."""
    monkeypatch.setattr(copy_encoder, "BLOCK_BYTES", block_bytes)
    monkeypatch.setattr(copy_encoder, "_STRETCH_BYTES", 10_000)
    columns = [PgColumn("c0", "integer"), PgColumn("c1", "text"), PgColumn("c2", "vector(300)")]
    _create(connection, columns)
    texts = [None if i % 2 else "é" * (i * 10) for i in range(300)]
    vectors = [None if i % 3 else [float(i)] * 300 for i in range(300)]
    batch = pa.record_batch(
        [pa.array(range(300), pa.int32()), pa.array(texts), pa.array(vectors, pa.list_(pa.float32(), 300))],
        names=["c0", "c1", "c2"],
    )
    assert copy_rows(connection, _TABLE, columns, [batch.slice(7)]) == 293
    found = connection.execute("SELECT c0, c1, c2::real[] FROM copied ORDER BY c0").fetchall()
    assert found == [(i, texts[i], vectors[i]) for i in range(7, 300)]


def test_constants_are_in_every_row_and_in_no_batch(connection: Connection) -> None:
    columns = [PgColumn("c0", "text"), PgColumn("run_id", "bigint"), PgColumn("at", "timestamp with time zone")]
    _create(connection, columns)
    batch = pa.record_batch([pa.array(["a", "b"]), pa.array([1, 2])], names=["c0", "not asked for"])
    copy_rows(connection, _TABLE, columns, [batch], {"run_id": 9, "at": 1_000_000})
    at = dt.datetime(2000, 1, 1, 0, 0, 1, tzinfo=dt.UTC)
    assert connection.execute("SELECT * FROM copied").fetchall() == [("a", 9, at), ("b", 9, at)]


def test_the_stream_is_the_same_whatever_the_blocks() -> None:
    columns = [PgColumn("id", "integer"), PgColumn("t", "text"), PgColumn("v", "vector(512)")]
    n = 5000
    vectors = np.arange(n * 512, dtype=np.float32).reshape(n, 512)
    batch = pa.record_batch(
        [
            pa.array(range(n), pa.int32()),
            pa.array(["x" * (i % 7) for i in range(n)]),
            pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), 512),
        ],
        names=["id", "t", "v"],
    )
    encoder = Encoder(columns)
    assert [column.name for column in encoder.columns] == ["t", "id", "v"]
    blocks = list(encoder.encode(batch))
    assert all(block.ndim == 1 and block.itemsize == 1 for block in blocks)
    assert max(map(len, blocks)) <= BLOCK_BYTES * 1.1
    expected = b"".join(
        struct.pack(">hi", 3, i % 7) + b"x" * (i % 7) + struct.pack(">iiiI", 4, i, 2052, 512 << 16) + row
        for i, row in enumerate(map(bytes, vectors.astype(">f4")))
    )
    assert b"".join(blocks) == expected


@pytest.mark.parametrize("value", [65_520.0, -1e30, math.inf, math.nan])
def test_a_halfvec_overflow_names_the_row(value: float) -> None:
    encoder = Encoder([PgColumn("id", "text"), PgColumn("v", "halfvec(2)")])
    vectors = pa.array([[1.0, 65_519.0], None, [0.0, value]], pa.list_(pa.float32(), 2))
    batch = pa.record_batch([pa.array(["a", "b", "c"]), vectors], names=["id", "v"])
    assert list(encoder.encode(batch.slice(0, 2)))
    with pytest.raises(FatalError, match="row with id 'c'"):
        list(encoder.encode(batch))


def test_what_stands_below_a_null_does_not_matter(connection: Connection) -> None:
    column = PgColumn("c0", "halfvec(2)")
    _create(connection, [column])
    values = pa.array([1e30, math.nan, 1.0, 2.0], pa.float32())
    array = pa.FixedSizeListArray.from_arrays(values, 2, mask=pa.array([True, False]))
    copy_rows(connection, _TABLE, [column], [pa.record_batch([array], names=["c0"])])
    assert connection.execute("SELECT c0::real[] FROM copied").fetchall() == [(None,), ([1.0, 2.0],)]


@pytest.mark.parametrize(
    ("pg_type", "array", "message"),
    [
        ("smallint", pa.array([70_000]), "cannot be written as smallint"),
        ("uuid", pa.array(["not a uuid"]), "not a UUID"),
        ("uuid", pa.array(["g" * 32]), "not a UUID"),
        ("date", pa.array(["yesterday"]), "not a date"),
        ("date", pa.array(["2023-02-29"]), "not a date"),
        ("vector(3)", pa.array([[1.0, 2.0]], pa.list_(pa.float32(), 2)), "cannot be written as vector"),
        ("vector(2)", pa.array([[1.0, None]], pa.list_(pa.float32(), 2)), "NULL among its values"),
        ("bit(16)", pa.array([b"a"], pa.binary(1)), "cannot be written as bit"),
        ("numeric", pa.array(["1"]), "cannot be written in binary"),
    ],
)
def test_values_that_do_not_fit_are_refused(pg_type: str, array: pa.Array, message: str) -> None:
    with pytest.raises(FatalError, match=message):
        list(Encoder([PgColumn("c0", pg_type)]).encode(pa.record_batch([array], names=["c0"])))


def test_what_the_server_refuses_is_a_target_error(connection: Connection) -> None:
    column = PgColumn("c0", "text")
    _create(connection, [column])
    with pytest.raises(TargetError, match="0x00"):
        copy_rows(connection, _TABLE, [column], [pa.record_batch([pa.array(["ok", "a\0b"])], names=["c0"])])
    assert not _read(connection, [column])


def test_which_types_can_be_encoded() -> None:
    assert all(can_encode(pg_type) for pg_type in _TYPES)
    assert all(can_encode(t) for t in ("xml", "citext", "public.citext", "extensions.vector(3)", "character varying"))
    assert not any(
        can_encode(t) for t in ("numeric", "text[]", "int4range", '"char"', "vector", "interval", "bit(3)[]")
    )


def _create(connection: Connection, columns: list[PgColumn]) -> None:
    definitions = sql.SQL(", ").join(
        sql.SQL("{} {}").format(sql.Identifier(column.name), column.type_sql) for column in columns
    )
    connection.execute("DROP TABLE IF EXISTS copied")
    connection.execute(sql.SQL("CREATE TABLE copied ({})").format(definitions))


def _counted(rows: list[tuple[Any, ...]]) -> Counter[Any]:
    """How often each row occurs, by value: equal values may print differently, such as times with ``fold=1``."""
    return Counter(tuple(tuple(v) if isinstance(v, list) else v for v in row) for row in rows)


def _read(connection: Connection, columns: list[PgColumn]) -> list[tuple[Any, ...]]:
    read = sql.SQL(", ").join(sql.SQL(_TYPES[c.pg_type][2]).format(sql.Identifier(c.name)) for c in columns)
    # Not prepared, because the table is a different one each time.
    return connection.execute(sql.SQL("SELECT {} FROM copied").format(read), prepare=False).fetchall()
