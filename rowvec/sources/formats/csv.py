"""CSV files: UTF-8 with a header line; every field is text unless the pipeline gives it another type."""

from __future__ import annotations

import csv as csv_module
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from pyarrow import csv

from rowvec.errors import SourceError
from rowvec.postgres.columns import listed
from rowvec.runtime.figures import counted
from rowvec.runtime.suggestion import did_you_mean

# Arrow makes its functions when it is imported, so no type checker sees them.
pc: Any = pyarrow.compute

# A line must fit into a block. Blocks grow until every line fits, up to the largest.
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
_ZONE = r"(Z|[+-]\d\d(:?\d\d)?)$"

# What Arrow's message says if a line does not fit into a block.
_TOO_SMALL = ("straddling", "cannot infer number of columns")

_QUOTE = ord('"')

# First bytes of files that are not text in UTF-8, and what to do about such a file.
_OTHER_FORMATS = (
    ((b"\xff\xfe", b"\xfe\xff"), "is UTF-16; convert it to UTF-8"),
    ((b"\x1f\x8b", b"\x28\xb5\x2f\xfd"), "is compressed; give its name the ending .gz or .zst, or unpack it"),
    ((b"PK\x03\x04",), "is a ZIP archive; unpack it"),
)


class CsvFormat:
    """See ``FileFormat``. ``types`` gives the Postgres types of columns that are not text."""

    first_row = 2  # the header is row 1, as in Arrow's own messages

    def __init__(self, delimiter: str, types: Mapping[str, str]) -> None:
        self._delimiter, self._types = delimiter, types

    def schema(self, path: Path) -> pa.Schema:
        """See ``FileFormat``."""
        self._refuse_other_formats(path)
        names = self._open(path, _BLOCK_BYTES, None).schema.names
        unknown = next((name for name in self._types if name not in set(names)), None)
        if unknown is not None:
            raise SourceError(
                f"source.types names a column {unknown!r}, which {path.name} does not have; it has {listed(names)}"
                + did_you_mean(unknown, names)
            )
        return pa.schema([pa.field(name, _TYPES.get(self._types.get(name, "text"), pa.string())) for name in names])

    def batches(self, path: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """See ``FileFormat``. An empty field is NULL, and an empty field in quotes is the empty text."""
        self._check_quotes(path)
        row = self.first_row
        for batch in self._texts(path, columns):
            arrays = [self._typed(path, name, batch.column(name), row) for name in columns]
            yield pa.record_batch(arrays, names=list(columns))
            row += batch.num_rows

    def _texts(self, path: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """The rows as texts. If a row does not fit into a block, reading goes on from that row with larger blocks."""
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
                if not _is_too_small(error, block):
                    raise _unreadable(path, error) from error
                block *= 8
            else:
                return

    def _refuse_other_formats(self, path: Path) -> None:
        try:
            with pa.input_stream(str(path)) as file:
                head = file.read(4)
        except (pa.ArrowException, OSError) as error:
            raise _unreadable(path, error) from error
        for beginnings, what in _OTHER_FORMATS:
            if head.startswith(beginnings):
                raise SourceError(f"the file {path.name} {what}")

    def _check_quotes(self, path: Path) -> None:
        """Raise ``SourceError`` if a quote is not closed: Arrow would take all that follows for one value."""
        if self._quotes_are_in_place(path):
            return
        # A quote within an unquoted field is harmless; only a reader that looks at each character can see that.
        limit, line = csv_module.field_size_limit(2**31 - 1), 0
        try:
            with (
                pa.input_stream(str(path)) as file,
                io.TextIOWrapper(file, newline="", encoding="utf-8-sig", errors="replace") as text,  # pyright: ignore[reportArgumentType] # as Arrow documents
            ):
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

    def _quotes_are_in_place(self, path: Path) -> bool:
        """Whether every quote opens a field, ends one, or is doubled inside one; reads one block at a time."""
        edges = np.zeros(256, np.bool_)
        edges[list(f'{self._delimiter}\r\n"'.encode())] = True
        inside, last, ended = 0, ord("\n"), False
        with pa.input_stream(str(path)) as file:
            while block := file.read(_BLOCK_BYTES):
                data = np.frombuffer(block, np.uint8)
                if ended and not edges[data[0]]:
                    return False
                quotes = np.flatnonzero(data == _QUOTE)
                opening, closing = quotes[inside::2], quotes[1 - inside :: 2]
                before = np.where(opening > 0, data[opening - 1], last)
                after = data[closing[closing + 1 < len(data)] + 1]
                if not (edges[before].all() and edges[after].all()):
                    return False
                ended = len(closing) > 0 and closing[-1] == len(data) - 1
                inside, last = (inside + len(quotes)) % 2, int(data[-1])
        return not inside

    def _open(self, path: Path, block: int, columns: Sequence[str] | None) -> csv.CSVStreamingReader:
        try:
            names = columns if columns is not None else ()
            return csv.open_csv(
                _whole_lines(path, block),
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
            if _is_too_small(error, block) and path.stat().st_size > block:
                return self._open(path, block * 8, columns)
            raise _unreadable(path, error) from error
        except OSError as error:
            raise _unreadable(path, error) from error

    def _typed(self, path: Path, name: str, column: pa.Array, first_row: int) -> pa.Array:
        kind = self._types.get(name, "text")
        if kind == "text":
            return column
        try:
            return _convert(kind, column)
        except pa.ArrowInvalid:
            row, value = next((row, value) for row, value in enumerate(column) if not _converts(kind, value))
            written = value.cast(pa.binary()).as_py().decode(errors="replace")
            raise SourceError(
                f"the file {path.name} has {written[:40]!r} in column {name!r} of row {first_row + row:,} (the header "
                f"is row 1), which is no {kind}; fix it, or leave the column out of source.types"
            ) from None


def _whole_lines(path: Path, block: int) -> Any:
    """The file in a form that Arrow can read: Arrow needs a line end after the header, even if nothing follows."""
    with pa.input_stream(str(path)) as file:
        head = file.read(block)
    if len(head) == block or b"\n" in head or b"\r" in head or not head.removeprefix(b"\xef\xbb\xbf"):
        return path
    return pa.BufferReader(head + b"\n")


def _is_too_small(error: Exception, block: int) -> bool:
    """Whether a larger block may solve what Arrow reports."""
    return block < _LARGEST_BLOCK and any(words in str(error) for words in _TOO_SMALL)


def _convert(kind: str, texts: pa.Array) -> pa.Array:
    """The texts as values. An empty text, in quotes or not, is NULL: only the type text has an empty value.

    Raises ``ArrowInvalid`` if a text is not a value of the type.
    """
    texts = pc.utf8_trim_whitespace(texts)
    texts = pc.if_else(pc.equal(texts, ""), pa.scalar(None, pa.string()), texts)
    if kind == "boolean":
        low = pc.utf8_lower(texts)
        true, false = (pc.is_in(low, value_set=pa.array(words)) for words in (_TRUE, _FALSE))
        known = pc.or_(pc.or_(true, false), texts.is_null())
        if not pc.all(known).as_py():
            raise pa.ArrowInvalid("no boolean")
        return pc.if_else(texts.is_null(), pa.scalar(None, pa.bool_()), true)
    if kind in ("bigint", "double precision"):
        texts = pc.replace_substring_regex(texts, r"^\+([0-9.])", r"\1")
    if kind == "double precision":
        numbers = texts.cast(_TYPES[kind])
        beyond = pc.and_(pc.invert(pc.is_finite(numbers)), pc.invert(pc.match_substring_regex(texts, "(?i)inf|nan")))
        if pc.any(beyond).as_py():
            raise pa.ArrowInvalid("out of range")
        return numbers
    if kind == "timestamptz":
        texts = pc.utf8_upper(texts)
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
        _convert(kind, pa.repeat(value, 1))
    except pa.ArrowInvalid:
        return False
    return True


def _unreadable(path: Path, error: Exception) -> SourceError:
    reason = str(error).strip().splitlines()[0]
    if "Empty CSV" in reason:
        return SourceError(f"the file {path.name} cannot be read as CSV: it is empty, without even a header line")
    ragged = re.search(r"Row #(\d+): Expected (\d+) columns, got (\d+)", reason)
    if ragged:
        row, expected, found = ragged.groups()
        return SourceError(
            f"the file {path.name} has {counted(int(found), 'fields')} in row {row}, and {expected} in the header, "
            "which is row 1; a quote that is not closed, or another source.delimiter, looks like this too"
        )
    return SourceError(f"the file {path.name} cannot be read as CSV: {reason}")
