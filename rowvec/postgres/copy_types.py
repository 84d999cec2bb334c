"""A column's values in Postgres' binary COPY format: which types can be written, and their bytes.

The forms are those of the types' receive functions: numbers big-endian; dates and timestamps as days and microseconds
since 2000-01-01; a UUID its 16 bytes; jsonb the byte 1 and its text; a vector int16 dimensions, int16 zero and float32,
a halfvec the same with float16 (pgvector's ``vector_recv``, ``halfvec_recv``); a sparsevec as ``SparseVectors.wires``
says; a bit string int32 bits and the bytes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute

from rowvec.errors import UnfitValue
from rowvec.postgres.columns import PgColumn
from rowvec.vectors import sparse

# Any: the module makes its functions when it is imported, and no type checker sees them.
pc: Any = pyarrow.compute

Kind = Literal["number", "date", "timestamp", "uuid", "bytes", "jsonb", "sparse", "floats", "bits"]
Numbers = npt.NDArray[Any]

_NUMBERS = {
    "smallint": (">i2", pa.int16()),
    "integer": (">i4", pa.int32()),
    "bigint": (">i8", pa.int64()),
    "real": (">f4", pa.float32()),
    "double precision": (">f8", pa.float64()),
    "boolean": (">i1", pa.bool_()),
}
_BYTES = re.compile(r"(bytea|text|name|json|xml|(\S+\.)?citext|bpchar|character( varying)?(\(\d+\))?)")
_TIMESTAMP = re.compile(r"timestamp(\(\d\))? (with|without) time zone")
_WIDE = re.compile(r"(?:\S+\.)?(vector|halfvec|sparsevec|bit)\((\d+)\)")

# Postgres counts time from 2000-01-01, Arrow from 1970-01-01.
_EPOCH_DAYS = 10_957
_EPOCH_MICROSECONDS = _EPOCH_DAYS * 86_400_000_000
_INFINITY = {"date": 2**31 - 1, "timestamp": 2**63 - 1}
_MOMENT = re.compile(
    r"(?P<year>\d{4,})-(?P<month>\d\d)-(?P<day>\d\d)"
    r"(?:[ T](?P<hour>\d\d):(?P<minute>\d\d):(?P<second>\d\d)(?:\.(?P<fraction>\d{1,6}))?)?"
    r"(?:Z|(?P<sign>[+-])(?P<zone_hour>\d\d)(?::?(?P<zone_minute>\d\d))?(?::?(?P<zone_second>\d\d))?)?"
    r"(?P<bc> BC)?"
)

# From this value on a float rounds to infinity in float16.
_HALF_OVERFLOW = 65_520.0

_NIBBLES = np.full(256, 255, np.uint8)
for _value, _digit in enumerate(b"0123456789abcdef"):
    _NIBBLES[_digit] = _NIBBLES[ord(chr(_digit).upper())] = _value


@dataclass(frozen=True, slots=True)
class WireForm:
    """How a type's values are written in the stream."""

    kind: Kind
    dtype: np.dtype[Any] | None
    """A value of fixed length, big-endian; for vectors and bits a record of head and values. None: length varies."""
    head: int = 0
    """The first four bytes of a vector or bit string as a number; of a sparse vector its dimensions."""

    @property
    def is_wide(self) -> bool:
        """Whether a value is so long that one more copy of it costs noticeable time."""
        return self.kind in ("floats", "bits")


def wire_form(pg_type: str) -> WireForm | None:
    """The form of a type as ``format_type`` writes it; None for a type that only the server can read from text."""
    if pg_type in _NUMBERS:
        return WireForm("number", np.dtype(_NUMBERS[pg_type][0]))
    if pg_type == "date":
        return WireForm("date", np.dtype(">i4"))
    if _TIMESTAMP.fullmatch(pg_type):
        return WireForm("timestamp", np.dtype(">i8"))
    if pg_type == "uuid":
        return WireForm("uuid", np.dtype("V16"))
    if pg_type == "jsonb":
        return WireForm("jsonb", None)
    if _BYTES.fullmatch(pg_type):
        return WireForm("bytes", None)
    match = _WIDE.fullmatch(pg_type)
    return _wide_form(match[1], int(match[2])) if match else None


def fixed_values(column: PgColumn, form: WireForm, array: pa.Array) -> Numbers:
    """``(n,)`` values of a number, date, timestamp or UUID; any value in rows that are NULL."""
    if form.kind == "number":
        array = _cast(array, _NUMBERS[column.pg_type][1])
        filled = pc.fill_null(array, False if column.pg_type == "boolean" else 0) if array.null_count else array
        return filled.to_numpy(zero_copy_only=False)
    if form.kind == "uuid":
        return np.ascontiguousarray(_uuids(column, array)).view("V16").reshape(-1)
    return _days(column, array) if form.kind == "date" else _microseconds(column, array)


def bytes_values(form: WireForm, array: pa.Array) -> pa.Array:
    """Texts, bytes and sparse vectors as a ``large_binary`` array."""
    if form.kind == "sparse":
        return _sparse_values(form, array)
    array = _cast(array, pa.large_binary())
    if form.kind == "jsonb":
        array = pc.binary_join_element_wise(_binary(b"\x01"), array, _binary(b""))
    return array


def wide_values(column: PgColumn, form: WireForm, array: pa.Array) -> Numbers:
    """``(n, values of a row)`` float32 for vectors, uint8 for bits; any values in rows that are NULL.

    Makes no copy if the array has these types already. Raises ``UnfitValue`` for NULL inside a vector.
    """
    width = _width(form)
    if form.kind == "bits":
        array = _cast(array, pa.binary(width))
        return _fixed_bytes(array, width)
    # Arrow's type says whether an element may be NULL: a cast for that alone would copy every vector.
    found, wanted = array.type, pa.list_(pa.float32(), width)
    if not (pa.types.is_fixed_size_list(found) and (found.value_type, found.list_size) == (pa.float32(), width)):
        array = _cast(array, wanted)
    first, last = array.offset * width, (array.offset + len(array)) * width
    floats = array.values
    if floats.null_count and _null_inside(array, floats.slice(first, last - first), width):
        raise UnfitValue(f"a vector in column {column.name} has a NULL among its values; leave its row out")
    flat = np.frombuffer(floats.buffers()[1], np.float32)[floats.offset :]
    return flat[first:last].reshape(-1, width)


def overflows_half(floats: Numbers) -> bool:
    """Whether float16 cannot hold one of the values; cheap, because every block is checked."""
    return not (floats.max() < _HALF_OVERFLOW and floats.min() > -_HALF_OVERFLOW)


def plain(array: pa.Array) -> pa.Array:
    """The array behind a dictionary or an extension type."""
    if isinstance(array, pa.DictionaryArray):
        array = array.dictionary_decode()
    return array.storage if isinstance(array, pa.ExtensionArray) else array


def _wide_form(name: str, n: int) -> WireForm:
    if name == "bit":
        return WireForm("bits", np.dtype([("head", ">i4"), ("values", "u1", ((n + 7) // 8,))]), n)
    if name == "sparsevec":
        return WireForm("sparse", None, n)
    value = ">f4" if name == "vector" else ">f2"
    return WireForm("floats", np.dtype([("head", ">i4"), ("values", value, (n,))]), n << 16)


def _sparse_values(form: WireForm, array: pa.Array) -> pa.Array:
    """Sparse vectors as bytes; a row that is NULL stays NULL, and its nonzeros are not looked at."""
    array = _cast(array, sparse.ARROW)
    if not array.null_count:
        return sparse.of_arrow(array, form.head).wires()
    wires = sparse.of_arrow(array.drop_null(), form.head).wires()
    places = pc.subtract(pc.cumulative_sum(array.is_valid().cast(pa.int64())), 1)
    return wires.take(pc.if_else(array.is_valid(), places, pa.scalar(None, pa.int64())))


def _width(form: WireForm) -> int:
    assert form.dtype is not None  # noqa: S101 - a wide form has a record type
    return form.dtype["values"].shape[0]


def _cast(array: pa.Array, wanted: pa.DataType) -> pa.Array:
    if array.type == wanted:
        return array
    if pa.types.is_null(array.type):
        return pa.nulls(len(array), wanted)
    return array.cast(wanted)


def _binary(value: bytes) -> pa.Scalar:
    return pa.scalar(value, pa.large_binary())


def _fixed_bytes(array: pa.FixedSizeBinaryArray, width: int) -> npt.NDArray[np.uint8]:
    data = np.frombuffer(array.buffers()[1], np.uint8)
    return data[array.offset * width : (array.offset + len(array)) * width].reshape(-1, width)


def _null_inside(array: pa.FixedSizeListArray, floats: pa.Array, width: int) -> bool:
    """Whether a value is NULL in a row that is not NULL itself."""
    nulls = floats.is_null().to_numpy(zero_copy_only=False).reshape(-1, width).any(axis=1)
    return bool((nulls & array.is_valid().to_numpy(zero_copy_only=False)).any())


def _uuids(column: PgColumn, array: pa.Array) -> npt.NDArray[np.uint8]:
    if pa.types.is_fixed_size_binary(array.type) and array.type.byte_width == 16:
        return _fixed_bytes(array, 16)
    digits = pc.replace_substring_regex(_cast(array, pa.large_string()), "[{}-]", "")
    digits = pc.fill_null(digits, "0" * 32)
    lengths = pc.binary_length(digits).to_numpy(zero_copy_only=False)
    if (lengths == 32).all():
        start = int(np.frombuffer(digits.buffers()[1], np.int64)[digits.offset])
        text = np.frombuffer(digits.buffers()[2], np.uint8)[start : start + 32 * len(digits)].reshape(-1, 32)
        nibbles = _NIBBLES[text]
        if (nibbles < 16).all():
            return (nibbles[:, 0::2] * 16 + nibbles[:, 1::2]).astype(np.uint8, copy=False)
    raise UnfitValue(
        f"column {column.name} has a value that is not a UUID; declare the column as text, or fix the value"
    )


def _days(column: PgColumn, array: pa.Array) -> Numbers:
    if _is_text(array):
        try:
            array = _cast(array, pa.date32())
        except pa.ArrowInvalid:
            return _parse(column, "date", array)
    days = _cast(_cast(array, pa.date32()), pa.int32())
    return pc.fill_null(days, 0).to_numpy(zero_copy_only=False) - _EPOCH_DAYS


def _microseconds(column: PgColumn, array: pa.Array) -> Numbers:
    wanted = pa.timestamp("us", "UTC" if column.pg_type.endswith("with time zone") else None)
    if _is_text(array):
        try:
            array = array.cast(wanted)
        except pa.ArrowInvalid:
            return _parse(column, "timestamp", array)
    elif pa.types.is_timestamp(array.type):
        # Postgres keeps no time finer than microseconds.
        array = array.cast(pa.timestamp("us", array.type.tz), safe=False)
    else:
        array = _cast(array, wanted)
    return pc.fill_null(array.cast(pa.int64()), 0).to_numpy(zero_copy_only=False) - _EPOCH_MICROSECONDS


def _is_text(array: pa.Array) -> bool:
    kind = array.type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _parse(column: PgColumn, kind: Literal["date", "timestamp"], array: pa.Array) -> Numbers:
    """One by one, because Arrow knows neither infinity nor years before 1 or after 9999. Slow, but rare."""
    values = [0 if text is None else _moment(column, kind, text) for text in array.to_pylist()]
    return np.array(values, np.int64)


def _moment(column: PgColumn, kind: Literal["date", "timestamp"], text: str) -> int:
    if text in ("infinity", "-infinity"):
        return _INFINITY[kind] if text == "infinity" else -_INFINITY[kind] - 1
    match = _MOMENT.fullmatch(text)
    part = match.groupdict(default="0") if match else {"year": "0", "month": "0", "day": "0"}
    year = 1 - int(part["year"]) if part.get("bc") == " BC" else int(part["year"])
    try:
        days = int(np.datetime64(f"{year:05d}-{part['month']}-{part['day']}", "D").astype(np.int64)) - _EPOCH_DAYS
    except ValueError:
        raise UnfitValue(f"column {column.name} has {text!r}, which is not a {column.pg_type} in ISO form") from None
    if kind == "date":
        return days
    seconds = days * 86_400 + _seconds(part["hour"], part["minute"], part["second"])
    zone = _seconds(part["zone_hour"], part["zone_minute"], part["zone_second"])
    seconds -= -zone if part["sign"] == "-" else zone
    return seconds * 1_000_000 + int(part["fraction"].ljust(6, "0"))


def _seconds(hour: str, minute: str, second: str) -> int:
    return int(hour) * 3600 + int(minute) * 60 + int(second)
