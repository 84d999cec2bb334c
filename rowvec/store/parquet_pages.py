"""What the pages of a Parquet file say of their size, read before Arrow unpacks any of them.

A page states its unpacked size in its own header, which the footer need not agree with: a file of a few kilobytes may
ask for gigabytes. Pages that refer to a dictionary or to the value before may do so too. rowvec writes neither.

The format: https://parquet.apache.org/docs/file-format/, headers in Thrift's compact protocol.
"""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

MOST_COLUMN_BYTES = 512 << 20
"""Of one column in one row group. rowvec writes row groups of 64 MB, or of one row that is larger."""

MOST_FOOTER_BYTES = 16 << 20
"""A footer takes about 150 bytes for each column of each row group."""

_TAIL = 8
_DATA_PAGE, _PLAIN = 0, 0
# Field numbers of PageHeader, and of the DataPageHeader within it.
_KIND, _UNPACKED, _PACKED, _DATA, _ENCODING = 1, 2, 3, 5, 2
# Types of the compact protocol.
_TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _STRUCT = 1, 2, 3, 7, 8, 12
_NUMBERS = frozenset({4, 5, 6})
_DEEPEST = 8


class PageError(ValueError):
    """The pages are not those that rowvec writes."""


def check_footer(file: BinaryIO) -> None:
    """Raise ``PageError`` if the footer is larger than any that rowvec writes, before it is parsed."""
    size = file.seek(0, 2)
    file.seek(max(0, size - _TAIL))
    tail = file.read(_TAIL)
    if size < _TAIL or int.from_bytes(tail[:4], "little") > MOST_FOOTER_BYTES:
        raise PageError("its footer is too large")


def check_pages(path: Path, file: pq.ParquetFile) -> None:
    """Raise ``PageError`` if a page is packed in another way than rowvec's, or a column is too large when unpacked."""
    if not file.metadata.num_row_groups:
        return
    with path.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for number in range(file.metadata.num_row_groups):
            group = file.metadata.row_group(number)
            for position in range(group.num_columns):
                column = group.column(position)
                if column.has_dictionary_page:
                    raise PageError("it has a dictionary")
                _check_column(content, column.data_page_offset, column.total_compressed_size)


def check_plain(file: pq.ParquetFile, name: str, width: int, at_most: int) -> None:
    """Raise ``PageError`` unless a column holds each of its values in ``width`` bytes, so that no value can be unpacked
    from less, and at most ``at_most`` bytes per row group; only the footer is looked at.
    """
    at = file.schema_arrow.get_field_index(name)
    before = sum(leaves(file.schema_arrow.field(number).type) for number in range(at))
    for number in range(file.metadata.num_row_groups):
        group = file.metadata.row_group(number)
        column = group.column(before)
        is_whole = column.path_in_schema == name and column.num_values == group.num_rows
        if not is_whole or column.compression != "UNCOMPRESSED" or column.has_dictionary_page:
            raise PageError(f"its column {name} is packed")
        if not group.num_rows * width <= column.total_compressed_size <= at_most:
            raise PageError(f"its column {name} has another size than its rows need")


def leaves(kind: pa.DataType) -> int:
    """The number of Parquet columns that a column of this type takes."""
    return sum(leaves(kind.field(number).type) for number in range(kind.num_fields)) or 1


def _check_column(content: mmap.mmap, start: int, size: int) -> None:
    at, end, unpacked = start, start + size, 0
    if start < 0 or size < 0 or end > len(content):
        raise PageError("a column is outside the file")
    while at < end:
        header = _Header(content, at, end)
        at = header.end + header.packed
        unpacked += header.unpacked
        if at > end or unpacked > MOST_COLUMN_BYTES:
            raise PageError("a column is larger than any that rowvec writes")


class _Header:
    """A page's header."""

    __slots__ = ("_content", "_limit", "end", "packed", "unpacked")

    def __init__(self, content: mmap.mmap, at: int, limit: int) -> None:
        self._content, self._limit, self.end = content, limit, at
        fields = self._struct(0)
        data = fields.get(_DATA)
        if fields.get(_KIND) != _DATA_PAGE or not isinstance(data, dict) or data.get(_ENCODING) != _PLAIN:
            raise PageError("a page is not plain")
        self.unpacked, self.packed = _size(fields.get(_UNPACKED)), _size(fields.get(_PACKED))

    def _struct(self, depth: int) -> dict[int, object]:
        """A struct's numbers and structs by field; values of other types are skipped."""
        if depth > _DEEPEST:
            raise PageError("a header is nested too deeply")
        fields: dict[int, object] = {}
        field = 0
        while head := self._byte():
            field = field + (head >> 4) if head >> 4 else _signed(self._varint())
            fields[field] = self._value(head & 15, depth)
        return fields

    def _value(self, kind: int, depth: int) -> object:
        if kind in (_TRUE, _FALSE):
            return kind == _TRUE
        if kind in _NUMBERS:
            return _signed(self._varint())
        if kind == _STRUCT:
            return self._struct(depth + 1)
        if kind not in (_BYTE, _DOUBLE, _BINARY):
            raise PageError("a header has a value of an unknown type")
        self.end += {_BYTE: 1, _DOUBLE: 8}.get(kind, 0) or self._varint()
        return None

    def _byte(self) -> int:
        if self.end >= self._limit:
            raise PageError("a header is cut")
        self.end += 1
        return self._content[self.end - 1]

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
            if shift > 63:
                raise PageError("a header has a number that is too long")


def _signed(zigzag: int) -> int:
    return zigzag >> 1 ^ -(zigzag & 1)


def _size(value: object) -> int:
    if not isinstance(value, int) or value < 0:
        raise PageError("a page has no size")
    return value
