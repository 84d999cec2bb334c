"""CSV files: UTF-8 with a header line; every field is text unless the pipeline gives it another type."""

from __future__ import annotations

import csv as csv_module
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute
from pyarrow import csv

from rowvec.errors import SourceError

# Arrow's functions are made when it is imported: no type checker sees them.
pc: Any = pyarrow.compute

# A line has to fit into a block. Blocks grow, until they do, up to the largest.
_BLOCK_BYTES = 4 << 20
_LARGEST_BLOCK = 512 << 20

_TYPES: dict[str, pa.DataType] = {
    "bigint": pa.int64(),
    "double precision": pa.float64(),
    "boolean": pa.bool_(),
    "date": pa.date32(),
    "timestamptz": pa.timestamp("us", "UTC"),
}
_TRUE, _FALSE = ("true", "t", "yes", "y", "on", "1"), ("false", "f", "no", "n", "off", "0")
_ZONE = r"(?i)(z|[+-]\d\d(:?\d\d)?)$"


class CsvFormat:
    """See ``FileFormat``. ``types`` gives the Postgres types of columns that are not text."""

    def __init__(self, delimiter: str, types: Mapping[str, str]) -> None:
        self._delimiter, self._types = delimiter, types

    def schema(self, path: Path) -> pa.Schema:
        """See ``FileFormat``."""
        names = self._open(path, _BLOCK_BYTES, None).schema.names
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise SourceError(f"the file {path.name} has two columns called {twice!r}; rename one")
        return pa.schema([pa.field(name, _TYPES.get(self._types.get(name, "text"), pa.string())) for name in names])

    def batches(self, path: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """See ``FileFormat``. An empty field is NULL, an empty field in quotes the empty text."""
        self._check_quotes(path)
        row = 2  # the header is the first, as in Arrow's own messages
        for batch in self._texts(path, columns):
            arrays = [self._typed(path, name, batch.column(name), row) for name in columns]
            yield pa.record_batch(arrays, names=list(columns))
            row += batch.num_rows

    def _texts(self, path: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """The rows as texts; where a row does not fit into a block, it goes on from there with larger ones."""
        block, done = _BLOCK_BYTES, 0
        while True:
            try:
                skip = done
                for batch in self._open(path, block, columns):
                    fresh = batch.slice(min(skip, batch.num_rows))
                    skip -= batch.num_rows - fresh.num_rows
                    if fresh.num_rows:
                        yield fresh
                        done += fresh.num_rows
            except (pa.ArrowException, OSError) as error:
                if "straddling" not in str(error) or block >= _LARGEST_BLOCK:
                    raise _unreadable(path, error) from error
                block *= 8
            else:
                return

    def _check_quotes(self, path: Path) -> None:
        """Raise where a quote is not closed: Arrow takes all that follows for one value, and rows would be gone."""
        quotes = 0
        with path.open("rb") as file:
            while chunk := file.read(_BLOCK_BYTES):
                quotes += chunk.count(b'"')
        if quotes % 2 == 0:
            return
        # A quote within an unquoted field is harmless; only a reader that goes character by character can tell.
        limit, line = csv_module.field_size_limit(2**31 - 1), 0
        try:
            with path.open(newline="", encoding="utf-8-sig", errors="replace") as text:
                reader = csv_module.reader(text, delimiter=self._delimiter, strict=True)
                for _ in reader:
                    line = reader.line_num
        except csv_module.Error as error:
            raise SourceError(
                f"the file {path.name} has a quote that is not closed, or not in its place, from line {line + 1:,} on "
                f"({error}); write a quote inside a field twice"
            ) from error
        finally:
            csv_module.field_size_limit(limit)

    def _open(self, path: Path, block: int, columns: Sequence[str] | None) -> csv.CSVStreamingReader:
        try:
            names = columns if columns is not None else ()
            return csv.open_csv(
                path,
                read_options=csv.ReadOptions(block_size=block, use_threads=False),
                parse_options=csv.ParseOptions(delimiter=self._delimiter, newlines_in_values=True),
                convert_options=csv.ConvertOptions(
                    check_utf8=False,
                    column_types={name: pa.string() for name in names},
                    include_columns=list(names) or None,
                    strings_can_be_null=True,
                    quoted_strings_can_be_null=False,
                    null_values=[""],
                ),
            )
        except pa.ArrowInvalid as error:
            if "straddling" in str(error) and block < _LARGEST_BLOCK:
                return self._open(path, block * 8, columns)
            raise _unreadable(path, error) from error
        except OSError as error:
            raise _unreadable(path, error) from error

    def _typed(self, path: Path, name: str, column: pa.Array, first_row: int) -> pa.Array:
        kind = self._types.get(name, "text")
        if kind == "text":
            return column
        try:
            return _convert(kind, pc.utf8_trim_whitespace(column))
        except pa.ArrowInvalid:
            row, value = next((row, value.as_py()) for row, value in enumerate(column) if not _converts(kind, value))
            raise SourceError(
                f"the file {path.name} has {value[:40]!r} in column {name!r} of row {first_row + row:,}, which is no "
                f"{kind}; mend it, or leave the column out of source.types"
            ) from None


def _convert(kind: str, texts: pa.Array) -> pa.Array:
    if kind == "boolean":
        low = pc.utf8_lower(texts)
        true, false = (pc.is_in(low, value_set=pa.array(words)) for words in (_TRUE, _FALSE))
        known = pc.or_(pc.or_(true, false), texts.is_null())
        if not pc.all(known).as_py():
            raise pa.ArrowInvalid("no boolean")
        return pc.if_else(texts.is_null(), pa.scalar(None, pa.bool_()), true)
    if kind == "timestamptz":
        zoned = pc.match_substring_regex(texts, _ZONE)
        dated = pc.match_substring_regex(texts, r"^\d{4}-\d\d-\d\d$")
        texts = pc.if_else(pc.or_(pc.invert(zoned), dated), _utc(texts, dated), texts)
        texts = pc.replace_substring_regex(texts, r"([+-]\d\d)$", r"\1:00")
    return texts.cast(_TYPES[kind])


def _utc(texts: pa.Array, dated: pa.Array) -> pa.Array:
    midnight = pc.binary_join_element_wise(texts, "00:00:00Z", " ")
    return pc.if_else(dated, midnight, pc.binary_join_element_wise(texts, "Z", ""))


def _converts(kind: str, value: Any) -> bool:
    try:
        _convert(kind, pc.utf8_trim_whitespace(pa.array([value.as_py()], pa.string())))
    except pa.ArrowInvalid:
        return False
    return True


def _unreadable(path: Path, error: Exception) -> SourceError:
    reason = str(error).strip().splitlines()[0]
    ragged = re.search(r"Row #(\d+): Expected (\d+) columns, got (\d+)", reason)
    if ragged:
        row, expected, found = ragged.groups()
        return SourceError(
            f"the file {path.name} has {found} field(s) in row {row} (the header is row 1), where the header has "
            f"{expected}; a quote that is not closed, or another source.delimiter, looks like this too"
        )
    return SourceError(f"the file {path.name} cannot be read as CSV: {reason}")
