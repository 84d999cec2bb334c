"""Arrow to Postgres' binary COPY format, a block of rows at a time, without a Python object per row.

The format (PostgreSQL documentation, COPY, "Binary Format"): a header of 19 bytes; for each row an int16 with the
number of fields and for each field an int32 with its length (-1 for NULL) and its bytes; an int16 of -1. Big-endian.

A row is written in two parts. Its head holds the columns of variable length and the short ones of fixed length. Arrow's
``binary_join_element_wise`` builds the heads of some thousand rows at once. Its tail holds vectors and bits: one numpy
record per row, filled column by column for a block of rows. Arrow then joins heads and tails row by row, and the data
buffer of the result is the stream. Blocks are small, so that a tail is still in the cache when it is joined, and a
block when it is sent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute

from rowvec.errors import FatalError, UnfitValue
from rowvec.postgres.columns import PgColumn
from rowvec.postgres.copy_types import (
    WireForm,
    bytes_values,
    fixed_values,
    overflows_half,
    plain,
    wide_values,
    wire_form,
)

# Any: the module makes its functions when it is imported, and no type checker sees them.
pc: Any = pyarrow.compute

HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
TRAILER = b"\xff\xff"

BLOCK_BYTES = 256 * 1024
"""Size of one write. Smaller writes pay for calls, larger ones leave the cache; docs/decisions/0002-binary-copy.md."""

# Heads are made for this many rows at once, or fewer if texts are long, so that memory is bounded.
_STRETCH_ROWS = 2048
_STRETCH_BYTES = 4 * 1024 * 1024

_NOTHING = pa.scalar(b"", pa.large_binary())
_NULL = pa.scalar(b"\xff\xff\xff\xff", pa.large_binary())
_CONSTANT = WireForm("number", np.dtype(">i8"))

_Record = npt.NDArray[np.void]


def can_encode(pg_type: str, *, from_text: bool = False) -> bool:
    """Whether a column of this type can be written; others go through staging as text, and the database casts them.

    ``from_text``: whether its values are the texts that Postgres writes.
    """
    form = wire_form(pg_type)
    return form is not None and not (from_text and (form.is_wide or form.kind == "sparse"))


class Encoder:
    """Encodes record batches whose columns are named like ``columns``.

    Texts may be any of Arrow's string types, dictionaries included; dates, timestamps and UUIDs may be Arrow's own
    types or the text that Postgres writes for them. ``constants`` has the value of each column that is in no batch
    because it is the same in all rows: int64 for ``bigint``, microseconds since 2000 for ``timestamp with time zone``.

    Raises ``FatalError`` for a type that ``can_encode`` refuses.
    """

    def __init__(self, columns: Sequence[PgColumn], constants: Mapping[str, int] | None = None) -> None:
        self._constants = constants or {}
        self._forms = {column.name: _form(column, self._constants) for column in columns}
        forms = [(column, self._forms[column.name]) for column in columns]
        self._variable = [column for column, form in forms if form.dtype is None]
        self._short = [column for column, form in forms if form.dtype is not None and not form.is_wide]
        self._wide = [column for column, form in forms if form.is_wide]
        self._first = columns[0]
        self.columns = (*self._variable, *self._short, *self._wide)
        """The columns in the order in which a row holds them; COPY must name them in this order."""
        self._short_dtype, self._wide_dtype = self._record_type(self._short), self._record_type(self._wide)

    def encode(self, batch: pa.RecordBatch) -> Iterator[memoryview]:
        """The rows of a batch as one-dimensional byte views of about ``BLOCK_BYTES`` each; no header, no trailer.

        Raises ``UnfitValue`` for a value that its column's type cannot hold.
        """
        named = {column.name for column in self.columns} - self._constants.keys()
        batch = batch.select([name for name in batch.schema.names if name in named])
        rows = self._stretch_rows(batch)
        for start in range(0, batch.num_rows, rows):
            yield from self._stretch(batch.slice(start, rows))

    def _stretch_rows(self, batch: pa.RecordBatch) -> int:
        # All rows share a dictionary, and heads hold no vectors: neither is counted.
        wide = {column.name for column in self._wide}
        counted = [
            array.nbytes
            for name, array in zip(batch.schema.names, batch.columns, strict=True)
            if name not in wide and not isinstance(array, pa.DictionaryArray)
        ]
        a_row = max(1, sum(counted) // max(1, batch.num_rows))
        return min(_STRETCH_ROWS, max(1, _STRETCH_BYTES // a_row))

    def _stretch(self, batch: pa.RecordBatch) -> Iterator[memoryview]:
        heads = self._heads(batch)
        if not self._wide:
            yield _data(heads)
            return
        arrays = {column.name: plain(batch.column(column.name)) for column in self._wide}
        values = {c.name: self._values(c, arrays[c.name]) for c in self._wide}
        nulls = {name: array.is_null() for name, array in arrays.items() if array.null_count}
        a_row = self._wide_dtype.itemsize + heads.nbytes // len(heads)
        rows = min(len(heads), max(1, BLOCK_BYTES // a_row))
        tails = self._empty(self._wide, self._wide_dtype, rows)
        for start in range(0, len(heads), rows):
            n = min(rows, len(heads) - start)
            for column in self._wide:
                floats = values[column.name][start : start + n]
                self._fill_wide(tails[column.name]["values"][:n], floats, column, batch.slice(start, n))
            absent = {name: is_null.slice(start, n) for name, is_null in nulls.items()}
            yield _data(_join(heads.slice(start, n), *self._pieces(self._wide, tails[:n], absent)))

    def _heads(self, batch: pa.RecordBatch) -> pa.Array:
        counts = np.full(batch.num_rows, len(self.columns), ">i2")
        pieces: list[Any] = [_as_binary(counts.view(np.uint8), batch.num_rows, 2)]
        for column in self._variable:
            texts = self._values(column, plain(batch.column(column.name)))
            pieces += [_lengths(texts), pc.fill_null(texts, b"") if texts.null_count else texts]
        record = self._empty(self._short, self._short_dtype, batch.num_rows)
        absent: dict[str, pa.Array] = {}
        for column in self._short:
            if column.name in self._constants:
                record[column.name] = self._constants[column.name]
                continue
            array = plain(batch.column(column.name))
            record[column.name] = self._values(column, array)
            if array.null_count:
                absent[column.name] = array.is_null()
        return _join(*pieces, *self._pieces(self._short, record, absent))

    def _values(self, column: PgColumn, array: pa.Array) -> Any:
        form = self._forms[column.name]
        try:
            if form.is_wide:
                return wide_values(column, form, array)
            return bytes_values(form, array) if form.dtype is None else fixed_values(column, form, array)
        except pa.ArrowException as error:
            raise UnfitValue(f"column {column.name} cannot be written as {column.pg_type}: {error}") from error

    def _fill_wide(self, place: npt.NDArray[Any], values: npt.NDArray[Any], column: PgColumn, rows: Any) -> None:
        if place.dtype.itemsize == 2 and overflows_half(values):
            self._check_half(values, column, rows)
            values = np.nan_to_num(values, nan=0, posinf=0, neginf=0)
        with np.errstate(over="ignore"):
            place[...] = values

    def _check_half(self, values: npt.NDArray[Any], column: PgColumn, rows: pa.RecordBatch) -> None:
        """Raise ``UnfitValue`` for the first row that float16 cannot hold; the values of a NULL row do not count."""
        present = rows.column(column.name).is_valid().to_numpy(zero_copy_only=False)
        for row in np.flatnonzero(present):
            if overflows_half(values[row]):
                key = rows.column(self._first.name)[int(row)].as_py()
                raise UnfitValue(
                    f"the vector of the row with {self._first.name} {key!r} has a value beyond 65,504, the most that "
                    "halfvec holds; set target.precision to float32"
                )

    def _record_type(self, columns: Sequence[PgColumn]) -> np.dtype[Any]:
        fields: list[tuple[str, Any]] = []
        for column in columns:
            fields += [(f"{column.name}\0length", ">i4"), (column.name, self._forms[column.name].dtype)]
        return np.dtype(fields)

    def _empty(self, columns: Sequence[PgColumn], dtype: np.dtype[Any], rows: int) -> _Record:
        """Records that hold the bytes that are the same in every row: lengths, and the heads of vectors and bits."""
        record: _Record = np.zeros(rows, dtype)
        for column in columns:
            form = self._forms[column.name]
            record[f"{column.name}\0length"] = dtype[column.name].itemsize
            if form.is_wide:
                record[column.name]["head"] = form.head
        return record

    def _pieces(self, columns: Sequence[PgColumn], record: _Record, absent: Mapping[str, pa.Array]) -> list[Any]:
        """The records as Arrow arrays to join: a single one, or one per column if a column has NULLs."""
        if not columns:
            return []
        if not absent:
            return [_as_binary(record.view(np.uint8), len(record), record.dtype.itemsize)]
        pieces: list[Any] = []
        for column in columns:
            part = np.ascontiguousarray(_bytes_of(record, column.name))
            values = _as_binary(part.reshape(-1), len(part), part.shape[1])
            is_null = absent.get(column.name)
            pieces.append(values if is_null is None else pc.if_else(is_null, _NULL, values))
        return pieces


def _form(column: PgColumn, constants: Mapping[str, int]) -> WireForm:
    form = _CONSTANT if column.name in constants else wire_form(column.pg_type)
    if form is None:
        raise FatalError(
            f"column {column.name} is {column.pg_type}, which cannot be written in binary; load it as text"
        )
    return form


def _join(*pieces: Any) -> pa.Array:
    return pc.binary_join_element_wise(*pieces, _NOTHING)


def _lengths(texts: pa.Array) -> pa.Array:
    lengths = pc.binary_length(texts)
    if texts.null_count:
        lengths = pc.fill_null(lengths, -1)
    big_endian = lengths.to_numpy(zero_copy_only=False).astype(">i4")
    return _as_binary(big_endian.view(np.uint8), len(texts), 4)


def _as_binary(data: npt.NDArray[np.uint8], rows: int, width: int) -> pa.Array:
    """``rows`` values of ``width`` bytes each as an Arrow array over the same memory."""
    offsets = pa.py_buffer(np.arange(0, (rows + 1) * width, width, dtype=np.int64))
    return pa.Array.from_buffers(pa.large_binary(), rows, [None, offsets, pa.py_buffer(data)])


def _bytes_of(record: _Record, name: str) -> npt.NDArray[np.uint8]:
    """A column's length and value in each record, as bytes ``(n, width)``."""
    fields: Any = record.dtype.fields
    start = fields[f"{name}\0length"][1]
    end = fields[name][1] + fields[name][0].itemsize
    return record.view(np.uint8).reshape(len(record), -1)[:, start:end]


def _data(joined: pa.Array) -> memoryview:
    """The bytes of all values of a ``large_binary`` array, one after the other."""
    offsets = np.frombuffer(joined.buffers()[1], np.int64)
    first, last = int(offsets[joined.offset]), int(offsets[joined.offset + len(joined)])
    return memoryview(joined.buffers()[2])[first:last]
