"""Hostile files: each is read correctly, or stops the run with one sentence that names the file and the place in it."""

from __future__ import annotations

import gzip
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rowvec.errors import SourceError
from rowvec.operations import rejects
from rowvec.postgres.connection import Connection
from rowvec.sources.diff import Block, diff
from rowvec.sources.files.pg_text import pg_text, pg_type
from rowvec.sources.formats.csv import CsvFormat
from tests.integration.sources.test_files import opened, pipeline, read
from tests.support.cli_process import PrefectServer, start, write_pipeline
from tests.support.paintings import sync

_MB = 1 << 20


def _read(tmp_path: Path, content: bytes | str, name: str = "rows.csv", **source: Any) -> list[tuple[Any, ...]]:
    """The id and content of each row of a file; no row may have been rejected."""
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    rows, aside, _ = read(pipeline(path, "csv" if ".csv" in name else "parquet", **source), tmp_path / "spool")
    assert aside == []
    return [(row["id"], row["content"]) for row in rows]


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("id,text\n", []),
        ("id,text", []),
        ("\ufeffid,text\n1,a\n", [("1", "a")]),
        ('\ufeff"id","text"\n"1","a"\n', [("1", "a")]),
        ("id,text\r\n1,a\r\n2,b\r\n", [("1", "a"), ("2", "b")]),
        ("id,text\r1,a\r2,b\r", [("1", "a"), ("2", "b")]),
        ("id,text\r\n1,a\n2,b\r3,c", [("1", "a"), ("2", "b"), ("3", "c")]),
        ("id,text\n\n1,a\n\n\n2,b\n\n", [("1", "a"), ("2", "b")]),
        ('id,text\n1,19" wheel\n2,a "b" c\n', [("1", '19" wheel'), ("2", 'a "b" c')]),
        ('id,text\n1,"19"" wheel"\n2,"""b"""\n3,""\n4,","\n5,"\r\n"\n', [("1", '19" wheel'), ("2", '"b"'), ("4", ",")]),
        ("id,text,,\n1,a,,\n", [("1", "a")]),
        ("id,text,x,x\n1,a,,\n", [("1", "a")]),
        ("id,text\n1," + "é" * 5 * _MB + "\n2,b\n", [("2", "b"), ("1", "é" * 5 * _MB)]),
        ("id," + "h" * 9 * _MB + ",text\n1,x,a\n", [("1", "a")]),
        (",".join(["id", "text", *map(str, range(20_000))]) + "\n1,a" + ",v" * 20_000 + "\n", [("1", "a")]),
    ],
    ids=range(15),
)
def test_odd_csv_is_read_correctly(tmp_path: Path, content: str, found: list[tuple[str, str]]) -> None:
    assert sorted(_read(tmp_path, content)) == sorted(found)


def test_a_field_of_megabytes_may_come_late(tmp_path: Path) -> None:
    """Some blocks are read before a block is too small: no row is lost, and none is read twice."""
    lines = "".join(f"{i},text {i}\n" for i in range(100_000))
    found = _read(tmp_path, f'id,text\n{lines}a,{"y" * 6 * _MB}\nb,short\nc,"{"z," * 10 * _MB}"\nd,end\n')
    assert len(found) == 100_004
    assert {(i, len(text)) for i, text in found if len(i) == 1 and i.isalpha()} == {
        ("a", 6 * _MB),
        ("b", 5),
        ("c", 20 * _MB),
        ("d", 3),
    }


_QUOTE = r"has a quote that is not closed, or not in its place, from line {} on"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "rows.csv cannot be read as CSV: it is empty, without even a header line"),
        ("\n\r\n\n", "without even a header line"),
        ("\ufeff", "without even a header line"),
        ("id,text\n1\n2,b\n", r"rows.csv has 1 field in row 2, and 2 in the header, which is row 1"),
        ("id,text\n1,a\n2,b,c\n", r"rows.csv has 3 fields in row 3"),
        ('id,text\n1,"a\n2,b\n3,c\n', _QUOTE.format(2)),
        ('id,text\n1,a\n2,"Big" wheel\n', _QUOTE.format(3)),
        ('id,text\n1,"Big 12" wheel\n2,x\n3,"y" z\n', _QUOTE.format(2)),
        ('id,text\n1,"a"x"b"\n2,c\n', _QUOTE.format(2)),
        ("id,text,text\n1,a,b\n", "rows.csv has two columns called 'text'; rename one"),
        ("id;text\n1;a\n", "rows.csv has no column 'id'; it has id;text"),
        ("id , text\n1,a\n", "rows.csv has no column 'id'; it has 'id ', ' text'"),
        ("id,te\0xt\n1,a\n", r"rows.csv has no column 'text'; it has id, 'te\\x00xt'"),
        ("id" + "".join(f",c{i}" for i in range(3000)) + "\n", "no column 'text'; it has id, c0, .* and 2,981 more$"),
        ("id,text\n1,a\n".encode("utf-16"), "rows.csv is UTF-16; convert it to UTF-8"),
        (gzip.compress(b"id,text\n1,a\n"), "rows.csv is compressed; give its name the ending .gz"),
        (b"PK\x03\x04rest", "rows.csv is a ZIP archive; unpack it"),
        (b"id,t\xe9xt\n1,a\n", "not UTF-8"),
    ],
    ids=range(18),
)
def test_an_error_in_hostile_csv_names_the_place(tmp_path: Path, content: bytes | str, says: str) -> None:
    with pytest.raises(SourceError, match=says) as refused:
        _read(tmp_path, content)
    assert len(str(refused.value)) < 600
    assert str(refused.value).isprintable()


def test_a_compressed_csv_file_is_read_and_a_cut_one_is_not(tmp_path: Path) -> None:
    packed = gzip.compress(b'id,text\n1,"a ""b"""\n2,c\n' + b"".join(b"x%d,y\n" % i for i in range(9999)))
    assert len(_read(tmp_path, packed, "rows.csv.gz")) == 10_001
    with pytest.raises(SourceError, match=r"rows\.csv\.gz cannot be read as CSV"):
        _read(tmp_path, packed[:-900], "rows.csv.gz")


def _typed(tmp_path: Path, kind: str, *values: str) -> list[Any]:
    path = tmp_path / "rows.csv"
    path.write_text("id,text,v\n" + "".join(f"{i},t{i},{value}\n" for i, value in enumerate(values)), "utf-8")
    rows, aside, _ = read(pipeline(path, "csv", types={"v": kind}, metadata=["v"]), tmp_path / "spool")
    assert aside == []
    return [row["v"] for row in rows]


def test_typed_fields_are_read_as_postgres_reads_them(tmp_path: Path) -> None:
    nothing = ["", '""', "  ", '" "']
    assert _typed(tmp_path, "bigint", "+1", " 5 ", "-0", "007", *nothing) == [1, 5, 0, 7, None, None, None, None]
    doubles = _typed(tmp_path, "double precision", "+1.5", "+.5", "1E5", "-inf", "Infinity", *nothing)
    assert doubles == [1.5, 0.5, 1e5, -np.inf, np.inf, None, None, None, None]
    assert _typed(tmp_path, "boolean", "Yes", " OFF ", *nothing) == [True, False, None, None, None, None]
    zoned = ("2020-01-01 00:00:00z", "2020-01-01t02:00:00+02", "2020-01-01", '""')
    assert _typed(tmp_path, "timestamptz", *zoned) == ["2020-01-01 00:00:00+00"] * 3 + [None]


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("bigint", "9223372036854775808"),
        ("bigint", "1.0"),
        ("bigint", "++1"),
        ("bigint", "1_0"),
        ("double precision", "1e400"),
        ("double precision", "1,5"),
        ("boolean", "maybe"),
        ("date", "2020-02-30"),
        ("timestamptz", "yesterday"),
        ("bigint", "9" * 1000),
    ],
)
def test_a_field_of_another_type_is_named_by_row_and_column(tmp_path: Path, kind: str, value: str) -> None:
    with pytest.raises(SourceError, match=r"rows\.csv has '.*' in column 'v' of row 4 \(the header is row 1\)") as no:
        _typed(tmp_path, kind, "", '""', f'"{value}"')
    assert f"which is no {kind}; fix it" in str(no.value)
    assert len(str(no.value)) < 250


def test_bytes_in_a_typed_column_are_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"rows\.csv has '5\ufffd' in column 'v' of row 3"):
        _read(tmp_path, b"id,text,v\n1,a,5\n2,b,5\xff\n", types={"v": "bigint"}, metadata=["v"])


def test_a_misspelt_column_in_types_is_an_error(tmp_path: Path) -> None:
    message = r"source\.types names a column 'yaer', which rows\.csv does not have; it has id"
    with pytest.raises(SourceError, match=message):
        _read(tmp_path, "id,text,year\n1,a,5\n", types={"yaer": "bigint"})


@given(
    st.lists(st.lists(st.text(st.sampled_from('ab",\n;'), max_size=4), min_size=2, max_size=2), min_size=1, max_size=8),
    st.integers(1, 7),
)
def test_correct_quotes_are_recognised_whatever_the_block_size(rows: list[list[str]], block: int) -> None:
    """A file that follows the rules passes the quick check, and a file with a stray quote at its end does not."""
    import tempfile

    from rowvec.sources.formats import csv

    written = "".join(",".join('"' + v.replace('"', '""') + '"' for v in row) + "\r\n" for row in rows).encode()
    usual, csv._BLOCK_BYTES = csv._BLOCK_BYTES, block  # pyright: ignore[reportPrivateUsage, reportConstantRedefinition] # the size of what is looked at, not what is done with it
    try:
        with tempfile.NamedTemporaryFile() as file:
            path = Path(file.name)
            path.write_bytes(written)
            assert CsvFormat(",", {})._quotes_are_in_place(path)  # pyright: ignore[reportPrivateUsage]
            for corrupt in (written + b'x"y"', written + b'"', written + b'"a"b'):
                path.write_bytes(corrupt)
                assert not CsvFormat(",", {})._quotes_are_in_place(path)  # pyright: ignore[reportPrivateUsage]
    finally:
        csv._BLOCK_BYTES = usual  # pyright: ignore[reportPrivateUsage, reportConstantRedefinition]


def _parquet(tmp_path: Path, table: pa.Table, spoil: Callable[[bytes], bytes] = bytes, **options: Any) -> Path:
    path = tmp_path / "rows.parquet"
    pq.write_table(table, path, **options)
    path.write_bytes(spoil(path.read_bytes()))
    return path


_MANY = pa.table({"id": list(range(5000)), "text": [f"text {i}" for i in range(5000)]})


def _says_rows(rows: int) -> Callable[[bytes], bytes]:
    """Write another row count into the footer: field 3 of FileMetaData, a zigzag varint after 0x16 (compact Thrift)."""

    def varint(value: int) -> bytes:
        return bytes([(value << 1 & 0x7F) | 0x80, value << 1 >> 7])

    def spoil(data: bytes) -> bytes:
        start = len(data) - 8 - struct.unpack("<I", data[-8:-4])[0]
        footer = data[start:-8]
        assert footer.count(b"\x16" + varint(5000) + b"\x19") == 1
        return (
            data[:start]
            + footer.replace(b"\x16" + varint(5000) + b"\x19", b"\x16" + varint(rows) + b"\x19")
            + data[-8:]
        )

    return spoil


def _kept(start: int | None, end: int | None, *, before: int = 0, text: bytes = b"") -> Callable[[bytes], bytes]:
    """A part of the file, after its own head or after another text."""
    return lambda data: text + data[:before] + data[start:end]


def _flipped(data: bytes) -> bytes:
    return data[:3000] + bytes([data[3000] ^ 1]) + data[3001:]


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_kept(None, -9), "cannot be read as Parquet"),
        (_kept(None, 20_000), "cannot be read as Parquet"),
        (_kept(100, None), "cannot be read as Parquet"),
        (_kept(1000, None, before=100), "cannot be read as Parquet"),
        (_kept(0, 0), "cannot be read as Parquet"),
        (_kept(0, 0, text=b"id,text\n1,a\n"), "cannot be read as Parquet"),
        (_kept(0, 0, text=b"PAR1" * 3), "cannot be read as Parquet"),
        (_flipped, "cannot be read as Parquet: .*CRC"),
        (
            _says_rows(6000),
            "says that it has 6,000 rows, and 5,000 are in it: it was truncated or changed; write it again",
        ),
        (_says_rows(4500), "says that it has 4,500 rows, and 5,000 are in it"),
    ],
    ids=range(10),
)
def test_parquet_that_is_wrong_says_so(tmp_path: Path, spoil: Callable[[bytes], bytes], says: str) -> None:
    path = _parquet(tmp_path, _MANY, spoil, use_dictionary=False, compression="none", write_page_checksum=True)
    with pytest.raises(SourceError, match=r"the file rows\.parquet " + says):
        read(pipeline(path), tmp_path / "spool")


def test_parquet_without_rows_or_row_groups_is_empty(tmp_path: Path) -> None:
    assert read(pipeline(_parquet(tmp_path, _MANY.slice(0, 0))), tmp_path / "spool") == ([], [], 0)
    with pq.ParquetWriter(tmp_path / "rows.parquet", _MANY.schema):
        pass
    assert pq.read_metadata(tmp_path / "rows.parquet").num_row_groups == 0
    assert read(pipeline(tmp_path / "rows.parquet"), tmp_path / "spool") == ([], [], 0)


def test_parquet_columns_of_one_name_matter_only_where_they_are_read(tmp_path: Path) -> None:
    arrays = [pa.array([1]), pa.array(["a"]), pa.array(["b"]), pa.array(["c"])]
    path = _parquet(tmp_path, pa.Table.from_arrays(arrays, names=["id", "text", "x", "x"]))
    assert [row["content"] for row in read(pipeline(path), tmp_path / "spool")[0]] == ["a"]
    path = _parquet(tmp_path, pa.Table.from_arrays(arrays, names=["id", "text", "text", "x"]))
    with pytest.raises(SourceError, match=r"rows\.parquet has two columns called 'text'; rename one"):
        read(pipeline(path), tmp_path / "spool")


def test_encrypted_parquet_says_so(tmp_path: Path) -> None:
    encryption: Any = pytest.importorskip("pyarrow.parquet.encryption")

    class Keys(encryption.KmsClient):  # pyright: ignore[reportUntypedBaseClass] # pyarrow's stubs have no such module
        """Keys that are not even wrapped."""

        def wrap_key(self, key_bytes: bytes, master_key_identifier: str) -> bytes:
            return key_bytes

        def unwrap_key(self, wrapped_key: bytes, master_key_identifier: str) -> bytes:
            return wrapped_key

    def _keys(_: Any) -> Keys:
        return Keys()

    for plain_footer in (False, True):
        configuration = encryption.EncryptionConfiguration(
            footer_key="f", column_keys={"c": ["text"]}, plaintext_footer=plain_footer
        )
        properties = encryption.CryptoFactory(_keys).file_encryption_properties(
            encryption.KmsConnectionConfig(), configuration
        )
        path = tmp_path / "rows.parquet"
        with pq.ParquetWriter(path, _MANY.schema, encryption_properties=properties) as writer:
            writer.write_table(_MANY)
        with pytest.raises(SourceError, match=r"rows\.parquet cannot be read as Parquet: .*[dD]ecrypt"):
            read(pipeline(path), tmp_path / "spool")


def _texts(*raw: bytes) -> pa.Array:
    """An array of texts whose bytes are not checked to be UTF-8."""
    return pa.Array.from_buffers(pa.string(), len(raw), pa.array(raw, pa.binary()).buffers())


_MAP = pa.map_(pa.string(), pa.int64())


@pytest.mark.parametrize(
    "values",
    [
        pa.array([[("k", 1), ("k", 2)], [("k", 1)]], _MAP),
        pa.array([[[("k", 1), ("k", 2)]], [[]]], pa.list_(_MAP)),
        pa.array([{"a": [("k", 1), ("k", 1)]}, {"a": []}], pa.struct([("a", _MAP)])),
        pa.array([2**62, 0], pa.timestamp("ms", "UTC")),
        pa.array([-(2**62), 0], pa.timestamp("ms")),
        pa.array([-(2**62), 0], pa.timestamp("us")),
        pa.array([2**31 - 1, 0], pa.int32()).cast(pa.date32()),
        pa.array([-(2**31), 0], pa.int32()).cast(pa.date32()),
        pa.array([86_400_000_001, 0], pa.int64()).cast(pa.time64("us")),
        pa.array([["nul\0"], [""]]),
        pa.array([{"nul": "\0"}, {"nul": ""}]),
        pa.array([[float("nan")], [0.0]]),
        pa.array(["nul\0", ""]),
        _texts(b"\xff\xfe", b""),
        _texts(b"half \xed\xa0\xbd", b""),
        pa.ListArray.from_arrays([0, 1, 2], _texts(b"\xff", b"")),
    ],
    ids=range(16),
)
def test_one_bad_value_stays_one_bad_row(tmp_path: Path, values: pa.Array) -> None:
    """The bad value is in the metadata, the content or both: only its row is rejected, by key and with its place."""
    ids = pa.array(["bad", "good"])
    path = _parquet(tmp_path, pa.table({"id": ids, "text": ["a", "b"], "v": values}))
    both = {"content": "{text} {v}", "metadata": ["v"]}
    sources: list[dict[str, Any]] = [{"metadata": ["v"]}, {"content": "{text} {v}"}, both]
    for source in sources:
        made = pipeline(path, **source)
        nothing: Iterator[Block] = iter(())
        with opened(made, tmp_path) as files:
            for changes in diff(files.pairs(), nothing):
                files.mark(changes)
            assert [row["id"] for batch in files.rows() for row in batch.to_pylist()] == ["good"]
            ((key, error),) = files.rejects()
        assert (key, error.reason) == ('["bad"]', "unreadable")
        assert error.detail.startswith("row 1 of rows.parquet has in column 'v' a value that is not UTF-8, or that")


@pytest.mark.parametrize(
    "array",
    [
        pa.array([-210_866_803_200_000_000, 2**63 - 1], pa.timestamp("us")),
        pa.array([-210_866_803_200, 9_223_372_036_854], pa.timestamp("s", "UTC")),
        pa.array([-2_440_588, 2_145_042_905], pa.int32()).cast(pa.date32()),
        pa.array([-2_440_588 * 86_400_000, 2_145_042_905 * 86_400_000], pa.int64()).cast(pa.date64()),
        pa.array([0, 86_400_000_000, 86_399_999_999], pa.int64()).cast(pa.time64("us")),
        pa.array([datetime(1, 1, 1), datetime(9999, 12, 31)], pa.timestamp("ms")),  # noqa: DTZ001 # naive on purpose
        pa.array([date(1, 1, 1), date(9999, 12, 31)]),
    ],
    ids=range(7),
)
def test_the_ends_of_the_calendar_are_in_it(connection: Connection, array: pa.Array) -> None:
    texts = pg_text(array).to_pylist()
    kind = pg_type(array.type)
    statement = f"SELECT v::{kind}::text FROM unnest(%s::text[]) WITH ORDINALITY AS u (v, i) ORDER BY i"  # noqa: S608 # a test's own type
    assert [row[0] for row in connection.execute(statement.encode(), (texts,)).fetchall()] == texts


@pytest.mark.parametrize(
    "array",
    [
        pa.array([-210_866_803_200_000_001], pa.timestamp("us")),
        pa.array([9_223_372_036_855], pa.timestamp("s")),
        pa.array([-9_223_372_036_855], pa.timestamp("s")),
        pa.array([-2_440_589], pa.int32()).cast(pa.date32()),
        pa.array([2_145_042_906], pa.int32()).cast(pa.date32()),
        pa.array([2**60], pa.int64()).cast(pa.date64()),
        pa.array([-1], pa.int64()).cast(pa.time64("us")),
    ],
    ids=range(7),
)
def test_a_date_beyond_the_calendar_is_never_read_as_another_day(array: pa.Array) -> None:
    with pytest.raises((ValueError, pa.ArrowInvalid)):
        pg_text(array)


def _between_the_passes(path: Path, tmp_path: Path, what: Callable[[], object]) -> None:
    nothing: Iterator[Block] = iter(())
    with opened(pipeline(path, "csv"), tmp_path) as source:
        for changes in diff(source.pairs(), nothing):
            source.mark(changes)
        what()
        list(source.rows())


def test_a_file_of_equal_size_and_time_is_not_the_same(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("id,text\n1,a\n2,b\n")
    before = path.stat()

    def edit() -> None:
        with path.open("r+") as file:
            file.write("id,text\n1,X\n")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    with pytest.raises(SourceError, match=r"the file rows\.csv changed while it was read; run again"):
        _between_the_passes(path, tmp_path, edit)
    assert path.stat().st_mtime_ns == before.st_mtime_ns


@pytest.mark.parametrize("becomes", ["gone", "broken"])
def test_a_file_that_is_deleted_or_broken_between_the_passes_stops_the_run(tmp_path: Path, becomes: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("id,text\n1,a\n2,b\n")
    what = path.unlink if becomes == "gone" else lambda: path.write_text('id,text\n1,"')
    says = "is gone while it is read: No such file" if becomes == "gone" else "changed while it was read"
    with pytest.raises(SourceError, match=rf"the file rows\.csv {says}.*run again"):
        _between_the_passes(path, tmp_path, what)


def test_rows_without_keys_do_not_fill_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("id,text\n" + ",no key\n" * 50_000 + "1,a\n")
    rows, aside, _ = read(pipeline(path, "csv"), tmp_path / "spool")
    assert [row["id"] for row in rows] == ["1"]
    assert aside == [("[null]", "null_key")]


_HOLD = """
import sys
from pathlib import Path
from rowvec.runtime.home import temporary_folder
with temporary_folder(Path(sys.argv[1])) as place:
    (place / "spill").write_bytes(b"x" * 1000)
    print(place, flush=True)
    sys.stdin.readline()
"""


def test_the_folder_of_a_killed_process_is_removed_and_that_of_a_living_one_stays(tmp_path: Path) -> None:
    def hold() -> tuple[subprocess.Popen[str], Path]:
        process = subprocess.Popen(  # noqa: S603 # our own interpreter
            [sys.executable, "-c", _HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        return process, Path(process.stdout.readline().strip())

    living, place = hold()
    killed, left = hold()
    killed.kill()
    killed.communicate()
    assert left.is_dir()
    path = tmp_path / "rows.csv"
    path.write_text("id,text\n1,a\n")
    with opened(pipeline(path, "csv"), tmp_path) as source:
        assert not left.exists()
        assert (place / "spill").stat().st_size == 1000
        assert len(source.key) == 1
    living.communicate("\n")
    assert living.returncode == 0
    assert list(tmp_path.glob("temporary-*")) == []


def test_the_command_says_one_sentence_about_a_hostile_file(
    source: Connection, tmp_path: Path, prefect_server: PrefectServer
) -> None:
    path = tmp_path / "rows.csv"
    parts = {"artifacts": {"url": str(tmp_path / "artifacts")}, "validation": {"max_delete_fraction": 1}}
    good = pipeline(path, "csv").model_copy(update={"name": "files"})
    good = type(good).model_validate({**good.model_dump(), **parts})
    file = write_pipeline(good, tmp_path)
    path.write_text("id,text\n1,a\n2,b\n3,c\n")
    assert sync(good).new == 3
    for content, says in ((b'id,text\n1,"a\n2,b\n3,c\n', "has a quote that is not closed"), (None, "is not there")):
        path.unlink() if content is None else path.write_bytes(content)
        ended = start(prefect_server.api, "sync", file, "--json").wait()
        assert (ended.status, says in ended.json["error"]) == (1, True), ended
        assert "Traceback" not in ended.stdout + ended.stderr
    count = source.execute("SELECT count(*) FROM vectors.files").fetchone()
    assert count == (3,)
    path.write_bytes(b"id,text\n1,a\n2,\xff\n3,nul\0\n4,d\n")
    ended = start(prefect_server.api, "sync", file, "--json").wait()
    assert (ended.status, ended.json["rejected"], ended.json["rows"]) == (0, 2, 2), ended
    listed = rejects.rejects(good).as_json()["rejects"]
    assert {(r["key"][0], r["detail"][:39]) for r in listed} == {
        ("2", "row 3 of rows.csv has in column 'text' "),
        ("3", "row 4 of rows.csv has in column 'text' "),
    }
    assert not list((tmp_path / "home" / "spool").glob("temporary-*"))
