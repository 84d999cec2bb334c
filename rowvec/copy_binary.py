"""Arrow to Postgres' binary COPY format, a block of rows at a time, without a Python object a row.

The format (PostgreSQL documentation, COPY, "Binary Format"): a header of 19 bytes; for each row an int16 with the
number of fields and for each field an int32 with its length (-1 for NULL) and its bytes, big-endian; an int16 of -1.
A vector is int16 dimensions, int16 zero, then float32; a halfvec the same with float16; a bit string is int32 bits,
then the bytes, the last one padded with zeros (``vector_send`` and ``halfvec_send`` of pgvector, ``bit_send``).

Columns of fixed length become one numpy record a row, filled column by column; those of variable length stay Arrow
arrays. Arrow's own ``binary_join_element_wise`` then puts the rows together, and the data buffer of what it returns is
the stream. Blocks are small, so that what is filled is still in the cache when it is joined, and again when it is sent.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any
from uuid import UUID

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rowvec.columns import PgColumn
from rowvec.errors import FatalError

HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
TRAILER = b"\xff\xff"

BLOCK_BYTES = 256 * 1024
"""Measured: 0.25 MB is faster than 64 KB (calls) and than 1 MB (cache); benchmarks/load.py."""

_NUMBERS = {
    "smallint": ">i2",
    "integer": ">i4",
    "bigint": ">i8",
    "real": ">f4",
    "double precision": ">f8",
    "boolean": ">i1",
}
# Their binary form is their text.
_TEXTS = re.compile(r"^(text|name|json|xml|citext|character varying(\(\d+\))?)$")
_VECTOR = re.compile(r"^(?:\w+\.)?(vector|halfvec|bit)\((\d+)\)$")

_Record = npt.NDArray[np.void]


def can_encode(pg_type: str) -> bool:
    """Whether a column of this type can be written; others go through staging as text and are cast by the database."""
    return pg_type in (*_NUMBERS, "bytea", "uuid", "jsonb") or bool(_TEXTS.match(pg_type) or _VECTOR.match(pg_type))


class Encoder:
    """Encodes record batches whose columns are named like ``columns``.

    ``constants`` gives columns that have one value in all rows and are in no batch: int64 for ``bigint``, and
    microseconds since 2000 for ``timestamp with time zone``.
    """

    def __init__(self, columns: Sequence[PgColumn], constants: dict[str, int] | None = None) -> None:
        self._constants = constants or {}
        fixed = [column for column in columns if _width(column, self._constants)]
        variable = [column for column in columns if not _width(column, self._constants)]
        self.columns = (*variable, *fixed)
        """The order in which a row is written: COPY must name the columns in it."""
        self._fixed, self._variable = fixed, variable
        self._dtype = np.dtype([field for column in fixed for field in _fields(column, self._constants)])
        self._head = len(self.columns).to_bytes(2, "big")

    def encode(self, batch: pa.RecordBatch) -> Iterator[memoryview]:
        """The rows of a batch as one-dimensional byte views of about ``BLOCK_BYTES`` each; no header, no trailer.

        Raises ``FatalError`` for a float too large for a halfvec, naming the position.
        """
        if not batch.num_rows:
            return
        width = self._dtype.itemsize + batch.nbytes // batch.num_rows
        rows = max(1, BLOCK_BYTES // max(1, width))
        for start in range(0, batch.num_rows, rows):
            yield self._block(batch.slice(start, rows))

    def _block(self, batch: pa.RecordBatch) -> memoryview:
        n = batch.num_rows
        pieces: list[Any] = [pa.scalar(self._head, pa.large_binary())]
        for column in self._variable:
            lengths, texts = _text(column, batch.column(column.name))
            pieces += [_as_binary(lengths.astype(">i4").view(np.uint8), n, 4), texts]
        record: _Record = np.zeros(n, self._dtype)
        nulls = [column for column in self._fixed if self._fill(record, column, batch)]
        if nulls:
            pieces += self._with_nulls(record, nulls, batch)
        else:
            pieces.append(_as_binary(record.view(np.uint8), n, self._dtype.itemsize))
        joined = _join(pieces)
        offsets = np.frombuffer(joined.buffers()[1], np.int64)
        first, last = int(offsets[joined.offset]), int(offsets[joined.offset + n])
        return memoryview(joined.buffers()[2])[first:last]

    def _fill(self, record: _Record, column: PgColumn, batch: pa.RecordBatch) -> bool:
        """Fill a column's place in the records; returns whether it holds NULLs, which have no place."""
        name, width = column.name, _width(column, self._constants)
        record[f"{name}\0length"] = width
        if name in self._constants:
            record[name] = self._constants[name]
            return False
        array = batch.column(name)
        match = _VECTOR.match(column.pg_type)
        if match is None:
            values = array.fill_null(False if column.pg_type == "boolean" else 0) if array.null_count else array
            record[name] = _numbers(values)
        elif match[1] == "bit":
            record[f"{name}\0head"] = int(match[2])
            record[name] = _fixed_bytes(array)
        else:
            record[f"{name}\0head"] = int(match[2]) << 16
            _fill_vectors(record[name], array, int(match[2]))
        return array.null_count > 0

    def _with_nulls(self, record: _Record, nulls: list[PgColumn], batch: pa.RecordBatch) -> list[Any]:
        """The fixed columns one by one, NULLs with a length of -1 and no bytes: rare, so it may be slower."""
        pieces: list[Any] = []
        for column in self._fixed:
            names = [name for name, *_ in _fields(column, self._constants)]
            part = np.ascontiguousarray(_columns_of(record, names))
            width = part.shape[1]
            values: Any = _as_binary(part.reshape(-1), len(part), width)
            if column in nulls:
                absent = pa.scalar(b"\xff\xff\xff\xff", pa.large_binary())
                values = pc.call_function("if_else", [batch.column(column.name).is_null(), absent, values])
            pieces.append(values)
        return pieces


def _width(column: PgColumn, constants: dict[str, int]) -> int:
    """Bytes of a value, 0 where they differ from row to row."""
    if column.name in constants:
        return 8
    if column.pg_type in _NUMBERS:
        return np.dtype(_NUMBERS[column.pg_type]).itemsize
    match = _VECTOR.match(column.pg_type)
    if match is None:
        return 0
    n = int(match[2])
    return 4 + ((n + 7) // 8 if match[1] == "bit" else n * (4 if match[1] == "vector" else 2))


def _fields(column: PgColumn, constants: dict[str, int]) -> list[tuple[str, str] | tuple[str, str, tuple[int]]]:
    """The places a column has in the record: its length, for vectors and bits a head, its value."""
    name, length = column.name, (f"{column.name}\0length", ">i4")
    if column.name in constants:
        return [length, (name, ">i8")]
    match = _VECTOR.match(column.pg_type)
    if match is None:
        return [length, (name, _NUMBERS[column.pg_type])]
    n, head = int(match[2]), (f"{name}\0head", ">i4")
    if match[1] == "bit":
        return [length, head, (name, "u1", ((n + 7) // 8,))]
    return [length, head, (name, ">f4" if match[1] == "vector" else ">f2", (n,))]


def _numbers(array: pa.Array) -> npt.NDArray[Any]:
    return array.to_numpy(zero_copy_only=False)


def _fill_vectors(place: npt.NDArray[Any], array: pa.FixedSizeListArray, dimensions: int) -> None:
    flat = array.values.to_numpy(zero_copy_only=False)
    floats = flat[array.offset * dimensions : (array.offset + len(array)) * dimensions].reshape(-1, dimensions)
    with np.errstate(over="ignore"):
        place[...] = floats
    if place.dtype.itemsize == 2 and not np.isfinite(place).all():
        row = int(np.flatnonzero(~np.isfinite(place).all(axis=1))[0])
        raise FatalError(
            f"the vector of row {row + 1} of a block has a value over 65,504, the largest that halfvec holds; set "
            "target.precision to float32"
        )


def _fixed_bytes(array: pa.FixedSizeBinaryArray) -> npt.NDArray[np.uint8]:
    width = array.type.byte_width
    data = np.frombuffer(array.buffers()[1], np.uint8)
    return data[array.offset * width : (array.offset + len(array)) * width].reshape(-1, width)


def _text(column: PgColumn, array: pa.Array) -> tuple[npt.NDArray[np.int64], pa.Array]:
    """Lengths (-1 for NULL) and bytes of a column of variable length."""
    if isinstance(array, pa.DictionaryArray):
        array = array.dictionary_decode()
    if column.pg_type == "uuid":
        array = _uuids(array)
    array = array.cast(pa.large_binary())
    if column.pg_type == "jsonb":
        version = pa.scalar(b"\x01", pa.large_binary())
        array = _join([version, array])
    lengths = pc.call_function("binary_length", [array])
    if array.null_count:
        lengths, array = lengths.fill_null(-1), array.fill_null(b"")
    return lengths.to_numpy(zero_copy_only=False), array


def _join(pieces: list[Any]) -> pa.Array:
    """The pieces of each row one after the other; a scalar is the same in all rows."""
    nothing = pa.scalar(b"", pa.large_binary())
    return pc.call_function("binary_join_element_wise", [*pieces, nothing])


def _uuids(array: pa.Array) -> pa.Array:
    """The 16 bytes of each UUID, written as Postgres writes it: 32 hexadecimal digits in five groups."""
    return pa.array([None if text is None else UUID(text).bytes for text in array.to_pylist()], pa.large_binary())


def _as_binary(data: npt.NDArray[np.uint8], rows: int, width: int) -> pa.Array:
    """``rows`` values of ``width`` bytes each as an Arrow array over the same memory."""
    offsets = pa.py_buffer(np.arange(0, (rows + 1) * width, width, dtype=np.int64))
    return pa.Array.from_buffers(pa.large_binary(), rows, [None, offsets, pa.py_buffer(data)])


def _columns_of(record: _Record, names: list[str]) -> npt.NDArray[np.uint8]:
    """The bytes of some neighbouring fields of each record, ``(n, width)``."""
    fields: Any = record.dtype.fields
    start = fields[names[0]][1]
    last = fields[names[-1]]
    end = last[1] + last[0].itemsize
    return record.view(np.uint8).reshape(len(record), -1)[:, start:end]
