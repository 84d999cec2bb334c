"""Files as a source: values are written as Postgres writes them, bad rows are rejected, and some faults stop a run."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from azure.core.credentials import AzureNamedKeyCredential
from azure.storage.blob import ContainerClient
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from psycopg import sql

from rowvec.embedders import open_embedder
from rowvec.errors import FatalError, SourceError
from rowvec.pipeline import Pipeline
from rowvec.postgres.columns import PgColumn
from rowvec.postgres.connection import Connection
from rowvec.postgres.fragments import key_digest
from rowvec.sources.diff import Block, diff
from rowvec.sources.files import download
from rowvec.sources.files.external_sort import RECORD, ExternalSort
from rowvec.sources.files.pg_text import float_text, json_text, pg_record, pg_text, pg_type
from rowvec.sources.files.rows import columns_of, vector_bytes, vector_text
from rowvec.sources.files.source import FileSource, open_files
from rowvec.sources.formats.parquet import ParquetFormat
from rowvec.sources.hash_stream import unpack_digests
from tests.support import paintings
from tests.support.servers.azurite import Container


def _times_ten(parts: tuple[int, int]) -> float:
    return parts[0] * 10.0 ** parts[1]


def _times_two(parts: tuple[int, int]) -> float:
    return float(parts[0] * 2 ** parts[1])


_WITH_DATABASE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
_TEXT = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=8)
_JSON_FLOAT = st.floats(allow_nan=False, allow_infinity=False)
_NESTED = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | _JSON_FLOAT | _TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=4),
    max_leaves=8,
)
# Large powers of ten and of two: a decimal may lie half-way between two floats there.
_FLOATS = (
    st.floats()
    | st.tuples(st.integers(-999, 999), st.integers(-30, 30)).map(_times_ten)
    | st.tuples(st.integers(1, 2**54), st.integers(0, 60)).map(_times_two)
)


def _asked(connection: Connection, values: list[str], pg_type: str) -> list[str]:
    """The texts, each cast to a type by Postgres and written as text again."""
    statement = f"SELECT v::{pg_type}::text FROM unnest(%s::text[]) WITH ORDINALITY AS u (v, i) ORDER BY i"  # noqa: S608 # a test's own type
    rows = connection.execute(statement.encode(), (values,))
    return [row[0] for row in rows.fetchall()]


@_WITH_DATABASE
@example(values=[2.0**55, -(2.0**56), 1e23])
@given(values=st.lists(_FLOATS, min_size=1, max_size=50))
def test_floats_are_written_as_postgres_does(connection: Connection, values: list[float]) -> None:
    ours = [float_text(v, "double precision") for v in values]
    assert ours == _asked(connection, [repr(v) for v in values], "float8")
    with np.errstate(over="ignore"):
        singles = [float(np.float32(v)) for v in values]
    # A single-precision float is also an exact double. Its 17 digits cannot be read back as another double.
    exact = [f"{v:.17g}" for v in singles]
    assert [float_text(v, "real") for v in singles] == _asked(connection, exact, "float4")


@_WITH_DATABASE
@given(value=_NESTED)
def test_nested_values_are_written_as_jsonb_is(connection: Connection, value: Any) -> None:
    ours = json_text(value)
    assert _asked(connection, [ours], "jsonb") == [ours]


_COLUMNS: dict[str, tuple[pa.DataType, st.SearchStrategy[Any]]] = {
    "int8": (pa.int8(), st.integers(-128, 127)),
    "uint16": (pa.uint16(), st.integers(0, 65535)),
    "uint32": (pa.uint32(), st.integers(0, 2**32 - 1)),
    "uint64": (pa.uint64(), st.integers(0, 2**64 - 1)),
    "bigint": (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    "float16": (pa.float16(), st.floats(width=16).map(np.float16)),
    "float32": (pa.float32(), st.floats(width=32)),
    "double": (pa.float64(), st.floats()),
    "bool": (pa.bool_(), st.booleans()),
    "text": (pa.string(), _TEXT),
    "word": (pa.dictionary(pa.int8(), pa.large_string()), st.sampled_from(["a", "", "b c"])),
    "date": (pa.date32(), st.dates()),
    "naive": (pa.timestamp("us"), st.datetimes()),
    "zoned": (
        pa.timestamp("us", "Europe/Paris"),
        st.datetimes(datetime(1700, 1, 1), datetime(2300, 1, 1)).map(lambda v: v.replace(tzinfo=timezone.utc)),  # noqa: DTZ001, UP017 # bounds of naive values
    ),
    "clock": (pa.time64("us"), st.times()),
    "price": (pa.decimal128(20, 7), st.decimals(-1000000, 1000000, places=7)),
    "bytes": (pa.binary(), st.binary(max_size=6)),
}


@_WITH_DATABASE
@given(data=st.data())
def test_records_are_written_as_postgres_does(connection: Connection, data: st.DataObject) -> None:
    names = data.draw(st.lists(st.sampled_from(sorted(_COLUMNS)), max_size=6))
    arrays = [pa.array([data.draw(st.none() | _COLUMNS[name][1])], _COLUMNS[name][0]) for name in names]
    typed = ", ".join(f"%s::{pg_type(array.type)}" for array in arrays)
    values = [pg_text(array)[0].as_py() for array in arrays]
    row = connection.execute(f"SELECT ROW({typed})::text".encode(), values).fetchone()
    assert row == (pg_record(arrays, 1)[0].as_py(),)
    for array, text in zip(arrays, values, strict=True):
        if text is not None:
            assert _asked(connection, [text], pg_type(array.type) or "") == [text]


@pytest.mark.parametrize(
    ("array", "text"),
    [
        (pa.array([-(2**37)], pa.timestamp("s")), None),
        (pa.array([2**38], pa.timestamp("s", "UTC")), None),
        (pa.array([-719529], pa.date32()), None),
        (pa.array([3_000_000], pa.date32()), None),
        (pa.array([1_500_000_000_123_456_789], pa.timestamp("ns")), "2017-07-14 02:40:00.123456"),
        (pa.array([10], pa.timestamp("s")), "1970-01-01 00:00:10"),
        (pa.array([[("k", 1.50)]], pa.map_(pa.string(), pa.float64())), '{"k": 1.5}'),
        (pa.array([{"b": [Decimal("1.50")], "aa": None}]), '{"b": [1.50], "aa": null}'),
    ],
)
def test_odd_values(connection: Connection, array: pa.Array, text: str | None) -> None:
    ours = pg_text(array)[0].as_py()
    if text is not None:
        assert ours == text
    assert _asked(connection, [ours], pg_type(array.type) or "") == [ours]


_UUID = "0b5e8ff4-16a9-4d2e-a1c0-3f7d5a9e2b11"
_LOGICAL: dict[str, tuple[pa.Array, str, str]] = {
    "uuid": (pa.array([UUID(_UUID).bytes], pa.uuid()), "uuid", _UUID),
    "json": (
        pa.array(['{"bb": 1.10, "a": [1e3, -0, 123456789012345678901234567890, "\\u00e9"]}'], pa.json_()),
        "jsonb",
        '{"a": [1000, 0, 123456789012345678901234567890, "é"], "bb": 1.10}',
    ),
    "uuids": (pa.ListArray.from_arrays([0, 1], pa.array([UUID(_UUID).bytes], pa.uuid())), "jsonb", f'["{_UUID}"]'),
    "bool8": (pa.ExtensionArray.from_storage(pa.bool8(), pa.array([1], pa.int8())), "boolean", "true"),
    "string_view": (pa.array(["a word"], pa.string_view()), "text", "a word"),
    "binary_view": (pa.array([b"\x01\xff"], pa.binary_view()), "bytea", "\\x01ff"),
    "large_string": (pa.array(["a word"], pa.large_string()), "text", "a word"),
    "fixed_size_binary": (pa.array([b"\x01\xff"], pa.binary(2)), "bytea", "\\x01ff"),
    "decimal256": (pa.array([Decimal("1" * 60 + ".5")], pa.decimal256(61, 1)), "numeric", "1" * 60 + ".5"),
    "float16": (pa.array([np.float16(0.1)], pa.float16()), "real", "0.099975586"),
    "time64": (pa.array([time(1, 2, 3, 4)], pa.time64("ns")), "time without time zone", "01:02:03.000004"),
    "zone": (
        pa.array([datetime(2026, 1, 1, tzinfo=timezone.utc)], pa.timestamp("ns", "Asia/Tokyo")),  # noqa: UP017 # as above
        "timestamp with time zone",
        "2026-01-01 00:00:00+00",
    ),
    "dictionary": (pa.array(["a"], pa.dictionary(pa.int8(), pa.string())), "text", "a"),
    "list_view": (pa.array([[1, None]], pa.list_view(pa.int8())), "jsonb", "[1, null]"),
    "fixed_size_list": (pa.array([[1, 2]], pa.list_(pa.int8(), 2)), "jsonb", "[1, 2]"),
    "struct": (pa.array([{"b": 1, "a": "x"}]), "jsonb", '{"a": "x", "b": 1}'),
}


@pytest.mark.parametrize("name", _LOGICAL)
def test_a_logical_type_of_parquet_becomes_its_type_of_postgres(
    connection: Connection, tmp_path: Path, name: str
) -> None:
    array, kind, text = _LOGICAL[name]
    path = tmp_path / "logical.parquet"
    pq.write_table(pa.table({"v": array}), path)
    reader = ParquetFormat()
    (batch,) = reader.batches(path, ["v"])
    assert batch.schema == reader.schema(path)
    assert pg_type(batch.schema.field("v").type) == kind
    assert pg_text(batch.column("v")).to_pylist() == [text]
    assert _asked(connection, [text], kind) == [text]


def test_a_uuid_is_a_key_and_a_json_text_is_metadata(source: Connection, tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    ids = [UUID(int=i) for i in range(3)]
    rows: dict[str, pa.Array] = {
        "id": pa.array([each.bytes for each in ids], pa.uuid()),
        "text": pa.array(["one", "two", "three"]),
        "more": pa.array(['{"b": 1, "a": 2}', None, "[1.50]"], pa.json_()),
    }
    pq.write_table(pa.table(rows), path)
    read = {"kind": "parquet", "path": str(path), "key": ["id"], "content": "{text}", "metadata": ["more"]}
    pipeline = paintings.pipeline(str(tmp_path / "artifacts"), source=read)
    assert paintings.sync(pipeline).rows == 3
    again = paintings.sync(pipeline)
    assert (again.unchanged, again.new + again.changed + again.metadata_only + again.deleted) == (3, 0)
    stored = source.execute(
        "SELECT id, more::text, pg_typeof(more)::text FROM vectors.paintings ORDER BY id"
    ).fetchall()
    assert stored == [(ids[0], '{"a": 2, "b": 1}', "jsonb"), (ids[1], None, "jsonb"), (ids[2], "[1.50]", "jsonb")]


def test_an_enumeration_of_parquet_is_a_text(tmp_path: Path) -> None:
    """No Python library writes one, so a column of texts is made one: the numbers of its converted and logical type."""
    path = tmp_path / "words.parquet"
    pq.write_table(pa.table({"v": ["one", "two"]}), path, store_schema=False)
    text, enumeration = b"\x25\x00\x4c\x1c\x00\x00", b"\x25\x08\x4c\x4c\x00\x00"
    assert path.read_bytes().count(text) == 1
    path.write_bytes(path.read_bytes().replace(text, enumeration))
    with pq.ParquetFile(path) as file:
        assert file.schema.column(0).logical_type.type == "ENUM"
    (batch,) = ParquetFormat().batches(path, ["v"])
    assert batch.column("v").to_pylist() == ["one", "two"]
    assert pg_type(batch.schema.field("v").type) == "text"


@pytest.mark.parametrize(
    ("array", "kind"),
    [
        (pa.array([timedelta(seconds=1)], pa.duration("us")), "duration[us]"),
        (pa.array([[timedelta(seconds=1)]], pa.list_(pa.duration("us"))), "duration[us]"),
        (pa.FixedShapeTensorArray.from_numpy_ndarray(np.zeros((1, 2), np.float32)), "fixed_shape_tensor"),
    ],
    ids=["duration", "list of durations", "tensor"],
)
def test_a_type_without_one_form_in_postgres_is_refused_with_file_column_and_type(
    tmp_path: Path, array: pa.Array, kind: str
) -> None:
    path = tmp_path / "odd.parquet"
    pq.write_table(pa.table({"v": array}), path)
    with pytest.raises(SourceError) as raised:
        columns_of(ParquetFormat().schema(path), ["v"], key=False, where="the file odd.parquet")
    assert all(part in str(raised.value) for part in ("'v'", "odd.parquet", kind, "cast it to text"))


@pytest.mark.parametrize("text", ["{", '{"a": NaN}', "[1e200000]", '"\\u0000"', '"\\ud800"', "[" * 100_000])
def test_a_json_text_that_jsonb_cannot_hold_makes_its_row_unreadable(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 # each text fails in words of its own
        pg_text(pa.array([text], pa.json_()))


def test_nan_in_a_nested_value_is_not_json() -> None:
    with pytest.raises(ValueError, match="NaN"):
        json_text([float("nan")])


def pipeline(path: Path | str, kind: str = "parquet", **source: Any) -> Pipeline:
    """A pipeline over a file."""
    written = {"kind": kind, "path": str(path), "key": ["id"], "content": "{text}", "metadata": [], **source}
    parts: dict[str, Any] = {
        "name": "files",
        "source": written,
        "embedder": {"kind": "local", "dimensions": 64},
        "target": {"table": "vectors.files"},
    }
    return Pipeline.model_validate(parts)


@contextmanager
def opened(made: Pipeline, folder: Path) -> Generator[FileSource]:
    """The pipeline's files."""
    assert made.source.kind != "postgres"
    with open_files(
        made, made.source, open_embedder(made.embedder).identity, folder, download.fetcher(made.source.credential)
    ) as source:
        yield source


def read(made: Pipeline, folder: Path) -> tuple[list[dict[str, Any]], list[tuple[str, str]], int]:
    """All rows of the files, by content, with the rejected rows and the number of blank ones."""
    folder.mkdir(exist_ok=True)
    with opened(made, folder) as source:
        nothing: Iterator[Block] = iter(())
        for changes in diff(source.pairs(), nothing):
            source.mark(changes)
        rows = [row for batch in source.rows() for row in batch.to_pylist()]
        aside = sorted((key, error.reason) for key, error in source.rejects())
        blank = source.blank
    assert list(folder.iterdir()) == []
    return sorted(rows, key=lambda row: row["content"]), aside, blank


def write(folder: Path, name: str = "rows.parquet", **columns: Any) -> Path:
    """A Parquet file."""
    pq.write_table(pa.table(columns), folder / name)
    return folder / name


def test_csv_fields_are_read_as_written(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(
        b'\xef\xbb\xbfid;text;note\r\n1;"two\nlines; and a ""quote""";\r\n2; spaces ;""\r\n"3";x;caf\xc3\xa9\r\n'
    )
    rows, aside, blank = read(pipeline(path, "csv", delimiter=";", metadata=["note"]), tmp_path / "spool")
    found = [(r["id"], r["content"], r["note"]) for r in rows]
    assert found == [("2", " spaces ", ""), ("1", 'two\nlines; and a "quote"', None), ("3", "x", "café")]
    assert (aside, blank) == ([], 0)


def test_csv_columns_have_the_types_the_pipeline_gives(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(
        "id,text,n,x,b,d,t\n1,one,5,0.1,Yes,2020-02-03,2020-01-01 10:00:00+02\n2,two,,,,,\n"
        "3,z,-1,1e300,f,0001-01-01,2020-01-01T10:00:00.5Z\n"
    )
    types = {"n": "bigint", "x": "double precision", "b": "boolean", "d": "date", "t": "timestamptz"}
    rows, _, _ = read(pipeline(path, "csv", types=types, metadata=list(types)), tmp_path / "spool")
    found = [tuple(row[name] for name in types) for row in rows]
    assert found == [
        (5, 0.1, True, "2020-02-03", "2020-01-01 08:00:00+00"),
        (None,) * 5,
        (-1, 1e300, False, "0001-01-01", "2020-01-01 10:00:00.5+00"),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "rows.csv cannot be read as CSV: it is empty"),
        ("id,text\n1,a\n2,b,c\n", "rows.csv has 3 fields in row 3, and 2 in the header, which is row 1"),
        ('id,text\n1,a\n2,"b\n3,c\n', "rows.csv has a quote that is not closed.*line 3"),
        ("id,body\n1,a\n", "rows.csv has no column 'text'; it has id, body"),
        ("id,text,text\n1,a,b\n", "rows.csv has two columns called 'text'"),
        ("id,text,n\n1,a,4\n2,b,4x\n", "rows.csv has '4x' in column 'n' of row 3 .*, which is no bigint"),
    ],
)
def test_errors_in_csv_files_name_the_place(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(content)
    typed = {"types": {"n": "bigint"}, "metadata": ["n"]} if "n\n" in content[:10] else {}
    made = pipeline(path, "csv", **typed)
    with pytest.raises(SourceError, match=message):
        read(made, tmp_path / "spool")


def test_a_csv_field_larger_than_a_block_is_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("id,text\n1,a\n2," + "z" * 9_000_000 + "\n3,b\n")
    rows, _, _ = read(pipeline(path, "csv"), tmp_path / "spool")
    assert [len(row["content"]) for row in rows] == [1, 1, 9_000_000]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_rows_without_a_key_of_their_own_are_rejected(tmp_path: Path, kind: str) -> None:
    ids = ["1", "2", "2", None, "3", None, "4", "5"]
    texts = ["a", "b", "c", "d", "", "e", " \t", "f"]
    path = tmp_path / f"rows.{kind}"
    if kind == "csv":
        path.write_text("id,text\n" + "".join(f'{i or ""},"{t}"\n' for i, t in zip(ids, texts, strict=True)))
    else:
        write(tmp_path, id=ids, text=texts)
    rows, aside, blank = read(pipeline(path, kind, empty="reject"), tmp_path / "spool")
    assert [row["id"] for row in rows] == ["1", "5"]
    null = ("[null]", "null_key")
    assert aside == sorted([('["2"]', "duplicate_key"), ('["3"]', "empty"), ('["4"]', "empty"), null])
    assert blank == 2


def test_bytes_that_are_not_text_are_rejected(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b"id,text\n1,good\n2,\xff\xfe\n\xff,bad key\n4,nul\0here\n5,also good\n")
    rows, aside, _ = read(pipeline(path, "csv"), tmp_path / "spool")
    assert [row["id"] for row in rows] == ["5", "1"]
    assert aside == [('["2"]', "unreadable"), ('["4"]', "unreadable"), ('["�"]', "unreadable")]


def test_a_glob_is_read_in_the_order_of_names(tmp_path: Path) -> None:
    for name, n in (("b", 2), ("a", 1), ("c", 3)):
        write(tmp_path, f"{name}.parquet", id=[n], text=[f"text {n}"])
    (tmp_path / "d.csv").write_text("id,text\n4,x\n")
    rows, _, _ = read(pipeline(tmp_path / "*.parquet"), tmp_path / "spool")
    assert [row["id"] for row in rows] == [1, 2, 3]
    write(tmp_path, "c.parquet", id=["3"], text=["text"])
    with pytest.raises(SourceError, match=r"'id' is int64 in a.parquet and string in c.parquet"):
        read(pipeline(tmp_path / "*.parquet"), tmp_path / "spool")


def test_files_that_cannot_be_read_say_why(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    with pytest.raises(SourceError, match=r"the source file .*none.parquet is not there"):
        read(pipeline(tmp_path / "none.parquet"), spool)
    with pytest.raises(SourceError, match="is a folder"):
        read(pipeline(tmp_path), spool)
    with pytest.raises(SourceError, match="no file matches"):
        read(pipeline(tmp_path / "x*.parquet"), spool)
    path = write(tmp_path, id=[1], text=["a"], x=[1.5], deep=[[1]], lasting=[timedelta(1)])
    for key, message in (("x", "key column 'x'.*double.*cannot tell rows apart"), ("deep", "key column 'deep'")):
        with pytest.raises(SourceError, match=message):
            read(pipeline(path, key=[key]), spool)
    with pytest.raises(SourceError, match=r"'lasting'.*duration.*cast it to text"):
        read(pipeline(path, metadata=["lasting"]), spool)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(SourceError, match=r"rows\.parquet cannot be read as Parquet"):
        read(pipeline(path), spool)


def test_a_file_that_changes_between_the_passes_stops_the_run(tmp_path: Path) -> None:
    path = write(tmp_path, id=[1, 2], text=["a", "b"])
    nothing: Iterator[Block] = iter(())
    with opened(pipeline(path), tmp_path) as source:
        for changes in diff(source.pairs(), nothing):
            source.mark(changes)
        path.write_bytes(path.read_bytes())
        os.utime(path, (1, 1))
        with pytest.raises(SourceError, match="changed while it was read; run again"):
            list(source.rows())


def test_key_digests_are_those_of_the_database(connection: Connection, tmp_path: Path) -> None:
    columns = {
        "a": pa.array(["x", "é", ""], pa.string()),
        "b": pa.array([date(2020, 1, 2)] * 3),
        "c": pa.array([True, False, True]),
        "d": pa.array([datetime(2020, 1, 2, 3, 4, 5, 600000)] * 3, pa.timestamp("us", "UTC")),  # noqa: DTZ001 # UTC
        "e": pa.array([Decimal("1.50"), Decimal("0.00"), Decimal("-3.10")]),
        "f": pa.array([time(1, 2, 3)] * 3),
    }
    key = tuple(PgColumn(name, pg_type(array.type) or "") for name, array in columns.items())
    path = write(tmp_path, text=["one", "two", "three"], **columns)
    with opened(pipeline(path, key=list(columns)), tmp_path) as source:
        assert source.key == key
        ours = [d for block in source.pairs() for d in unpack_digests(block.digest)]
    definition = ", ".join(f"{c.name} {c.pg_type}" for c in key)
    connection.execute(f"CREATE TABLE keyed ({definition})".encode())
    for row in zip(*(pg_text(array).to_pylist() for array in columns.values()), strict=True):
        connection.execute("INSERT INTO keyed VALUES (%s, %s, %s, %s, %s, %s)", row)
    statement = sql.SQL("SELECT {} FROM keyed ORDER BY 1").format(key_digest(key))
    assert [row[0] for row in connection.execute(statement).fetchall()] == ours


_FLOAT32 = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(st.lists(st.none() | st.lists(_FLOAT32, min_size=2, max_size=2), max_size=6))
def test_vectors_keep_every_bit(vectors: list[list[float] | None]) -> None:
    for kind in (pa.list_(pa.float32()), pa.list_(pa.float32(), 2), pa.large_list(pa.float64())):
        array = pa.array([None, *vectors], kind).slice(1)
        texts, raw = vector_text(array, 2).to_pylist(), vector_bytes(array, 2)
        wanted = [None if v is None else np.array(v, "<f4").tobytes() for v in vectors]
        assert raw == wanted
        parsed = [None if t is None else np.array(t.strip("[]").split(","), "<f4").tobytes() for t in texts]
        assert parsed == wanted


@given(
    st.lists(st.tuples(st.integers(0, 2**64 - 1) | st.integers(0, 3), st.integers(0, 3)), max_size=80),
    st.integers(1, 20),
)
def test_a_sort_gives_every_record_in_order_whatever_fits_into_memory(digests: list[tuple[int, int]], run: int) -> None:
    records = np.zeros(len(digests), RECORD)
    records["digest"] = np.array(digests, np.uint64).reshape(-1, 2)
    records["row"] = np.arange(len(digests))
    with ExternalSort(Path("/tmp"), memory=run * RECORD.itemsize) as rows_sort:  # noqa: S108 # hypothesis forbids tmp_path
        for start in range(0, len(records), 7):
            rows_sort.add(records[start : start + 7])
        found = [(*map(int, r["digest"]), int(r["row"])) for block in rows_sort.ascending() for r in block]
    assert found == sorted((*digest, row) for row, digest in enumerate(digests))


def test_a_folder_without_room_is_named(tmp_path: Path) -> None:
    with ExternalSort(tmp_path / "missing", memory=1) as rows_sort, pytest.raises(FatalError, match="cannot sort in"):
        rows_sort.add(np.zeros(1, RECORD))


@pytest.mark.azurite
def test_blobs_are_fetched_one_or_by_a_glob(container: Container, tmp_path: Path) -> None:
    key = AzureNamedKeyCredential(container.account, container.key)
    with ContainerClient(container.account_url, container.name, credential=key) as client:
        client.create_container()
        for name, n in (("in/b 1.parquet", 2), ("in/a.parquet", 1), ("in/deep/c.parquet", 3)):
            path = write(tmp_path, id=[n], text=[f"text {n}"])
            client.upload_blob(f"some/prefix/{name}", path.read_bytes())

    def ids(name: str, credential: str = container.key) -> list[int]:
        rows, _, _ = read(with_credential(pipeline(f"{container.url}/{name}"), credential), tmp_path / "spool")
        return [row["id"] for row in rows]

    assert ids("in/b%201.parquet") == [2]
    assert ids("in/*.parquet") == [1, 2]
    with pytest.raises(SourceError, match=r"in/none\.parquet cannot be read: it is not there"):
        ids("in/none.parquet")
    with pytest.raises(SourceError, match="no blob matches"):
        ids("in/*.csv")
    with pytest.raises(SourceError, match=r"the service refused, status 403.*source\.credential") as refused:
        ids("in/a.parquet", "b3RoZXI=")
    assert "b3RoZXI" not in str(refused.value)


def with_credential(made: Pipeline, credential: str) -> Pipeline:
    """The pipeline after its references have been resolved."""
    source = made.source.model_copy(update={"credential": credential})
    return made.model_copy(update={"source": source})


def test_invalid_utf8_in_a_csv_file_is_one_sentence(source: Connection, tmp_path: Path) -> None:
    (tmp_path / "latin.csv").write_bytes(b"id,t\xe9xt\n1,a\n")
    latin = paintings.pipeline(
        str(tmp_path / "artifacts"),
        source={"kind": "csv", "path": str(tmp_path / "latin.csv"), "key": ["id"], "content": "{text}"},
    )
    with pytest.raises(SourceError, match="not UTF-8"):
        paintings.sync(latin)
