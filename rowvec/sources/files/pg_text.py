"""Arrow values as the text that Postgres gives for them, so that a file and a table with equal values hash alike.

The forms follow the types' output functions under the settings in ``rowvec.postgres.connection``: floats as the
shortest digits that read back (``float8out``), times in ISO form and UTC, bytes in hex, jsonb as ``jsonb_out`` writes
it, and a row as ``record_out`` does. Tests compare value by value with the real functions.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterable
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

# Arrow makes its functions when it is imported, so no type checker sees them.
pc: Any = pyarrow.compute

# What record_out quotes: delimiters, quotes, backslashes and white space (isspace of a server in UTF-8), and ''.
_RECORD_QUOTED = r'["\\(), \t\n\v\f\r]|^$'

# From this number of digits before the decimal point on, float8out and float4out write an exponent.
_FLOAT_DIGITS = {"double precision": 15, "real": 6}

# Digits of a numeric before and after the decimal point: about 131,072 and 16,383.
_LEAST_EXPONENT, _GREATEST_EXPONENT = -16_383, 131_071

# Postgres' calendar begins at 4714-11-24 BC: https://www.postgresql.org/docs/current/datatype-datetime.html. Dates end
# with the year 5874897; timestamps end later than 64 bits of microseconds.
_DAY = 86_400_000_000
_FIRST_DAY, _LAST_DAY = -2_440_588, 2_145_042_905
_FIRST_MOMENT = _FIRST_DAY * _DAY


def pg_type(kind: pa.DataType) -> str | None:
    """The Postgres type for an Arrow type, as ``format_type`` writes it; None if there is none."""
    if isinstance(kind, pa.DictionaryType):
        return pg_type(kind.value_type)
    if isinstance(kind, pa.BaseExtensionType):
        return "uuid" if isinstance(kind, pa.UuidType) else "jsonb" if isinstance(kind, pa.JsonType) else None
    if pa.types.is_nested(kind):
        # A value inside has no type in Postgres, but it must have one form.
        inside = [pg_type(kind.field(i).type) for i in range(kind.num_fields)]
        return None if pa.types.is_union(kind) or None in inside else "jsonb"
    return _NUMBERS.get(kind) or _kind_of(kind)


def pg_text(array: pa.Array) -> pa.Array:
    """``value::text`` of each value, as ``large_string``; NULL stays NULL.

    Raises ``ValueError``, or ``ArrowInvalid``, if Postgres has no such value: NaN, a NUL character or a repeated
    key inside a nested value, a time before or after Postgres' calendar.
    """
    if isinstance(array, pa.DictionaryArray):
        return pg_text(array.dictionary).take(array.indices)
    name = pg_type(array.type)
    if name is None:
        raise ValueError(f"values of type {array.type} have no text in Postgres")
    if isinstance(array, pa.ExtensionArray):
        values = array.to_pylist()
        texts = [None if v is None else str(v) if name == "uuid" else json_text(_parsed(v)) for v in values]
        return pa.array(texts, pa.large_string())
    if name == "text" or pa.types.is_integer(array.type) or pa.types.is_boolean(array.type):
        return array.cast(pa.large_string())
    if name.startswith("time"):
        return _times(array)
    if name == "date":
        return _dates(array)
    return _one_by_one(array, name)


def pg_record(columns: Iterable[pa.Array], rows: int) -> pa.Array:
    """``ROW(...)::text`` of each row, as ``large_string``; () for a row of no columns."""
    fields = [_record_field(column) for column in columns]
    if not fields:
        return pa.array(["()"] * rows, pa.large_string())
    inside = pc.binary_join_element_wise(*fields, pa.scalar(",", pa.large_string()))
    return pc.binary_join_element_wise(_string("("), inside, _string(")"), _string(""))


def float_text(value: float, name: str) -> str:
    """A float as float8out (``double precision``) or float4out (``real``) writes it."""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    sign, digits, exponent = _shortest(value, name)
    point = exponent + len(digits)  # the position of the decimal point among the digits
    if digits == "0":
        return sign + "0"
    if not -4 < point <= _FLOAT_DIGITS[name]:
        mantissa = digits[0] + ("." + digits[1:] if len(digits) > 1 else "")
        return f"{sign}{mantissa}e{'-' if point < 1 else '+'}{abs(point - 1):02d}"
    if point <= 0:
        return f"{sign}0.{'0' * -point}{digits}"
    if point >= len(digits):
        return sign + digits + "0" * (point - len(digits))
    return f"{sign}{digits[:point]}.{digits[point:]}"


def json_text(value: Any) -> str:
    """A nested value as ``jsonb_out`` writes it: keys by length and then bytes, numbers without exponents.

    Dates and times are texts, bytes are hex. Raises ``ValueError`` for what JSON or jsonb cannot hold.
    """
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_json_string(k)}: {json_text(v)}" for k, v in _sorted_items(value.items())) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(json_text(item) for item in value) + "]"
    if isinstance(value, (int, float, Decimal)):
        return _json_number(value)
    if isinstance(value, (datetime, date, time)):
        return _json_string(value.isoformat())
    return _json_string("\\x" + value.hex() if isinstance(value, bytes) else str(value))


def _kind_of(kind: pa.DataType) -> str | None:
    """The Postgres type for an Arrow type that is no plain number."""
    for name, tests in _TYPES:
        if any(test(kind) for test in tests):
            return name
    if pa.types.is_timestamp(kind):
        return f"timestamp {'without' if kind.tz is None else 'with'} time zone"
    return None


_types = pa.types
_NUMBERS: dict[pa.DataType, str] = {
    pa.int8(): "smallint",
    pa.int16(): "smallint",
    pa.uint8(): "smallint",
    pa.int32(): "integer",
    pa.uint16(): "integer",
    pa.int64(): "bigint",
    pa.uint32(): "bigint",
    pa.uint64(): "numeric",
    pa.float16(): "real",
    pa.float32(): "real",
    pa.float64(): "double precision",
}
_TYPES: tuple[tuple[str, tuple[Callable[[pa.DataType], bool], ...]], ...] = (
    ("text", (_types.is_string, _types.is_large_string, _types.is_string_view, _types.is_null)),
    ("numeric", (_types.is_decimal,)),
    ("boolean", (_types.is_boolean,)),
    ("date", (_types.is_date,)),
    ("time without time zone", (_types.is_time,)),
    ("bytea", (_types.is_binary, _types.is_large_binary, _types.is_fixed_size_binary)),
)


def _string(text: str) -> pa.Scalar:
    return pa.scalar(text, pa.large_string())


def _one_by_one(array: pa.Array, name: str) -> pa.Array:
    """Texts of types that Arrow writes in another form than Postgres: some microseconds per value."""
    if pa.types.is_float16(array.type):
        array = array.cast(pa.float32())
    try:
        values = array.to_pylist(maps_as_pydicts="strict") if name == "jsonb" else array.to_pylist()
    except KeyError as error:
        raise ValueError("a map has a key twice, which jsonb does not allow") from error
    except OverflowError as error:
        raise ValueError("a nested date or time is before the year 1 or after the year 9999") from error
    return pa.array([None if v is None else _value_text(v, name) for v in values], pa.large_string())


def _value_text(value: Any, name: str) -> str:
    if name in _FLOAT_DIGITS:
        return float_text(value, name)
    if name == "bytea":
        return "\\x" + value.hex()
    return format(value, "f") if name == "numeric" else json_text(value)


def _shortest(value: float, name: str) -> tuple[str, str, int]:
    """Sign, digits without trailing zeros, and the power of ten of the last digit."""
    single = name == "real"
    text = str(np.float32(value)) if single else repr(value)
    precision = 0
    while True:
        number = Decimal(text)
        if not _is_midpoint(number, value, single=single):
            break
        # Postgres avoids decimals half-way between two floats: what they read back as depends on rounding.
        precision = max(precision + 1, len(number.normalize().as_tuple().digits))
        text = f"{value:.{precision}e}"
    sign, digits, exponent = number.as_tuple()
    text = "".join(map(str, digits)).lstrip("0") or "0"
    stripped = text.rstrip("0") or "0"
    return "-" if sign else "", stripped, int(exponent) + len(text) - len(stripped)


def _is_midpoint(number: Decimal, value: float, *, single: bool) -> bool:
    if abs(value) < 2.0 ** (24 if single else 53):
        return False  # below this, a half-way point has more digits than the shortest form ever needs
    whole, exact = int(abs(number)), int(abs(value))
    if whole == exact:
        return False
    # At a power of two the gap below is half the gap above: only the neighbour on the number's own side counts.
    neighbour = _next_float(abs(value), up=whole > exact, single=single)
    return math.isfinite(neighbour) and 2 * whole == exact + int(neighbour)


def _next_float(value: float, *, up: bool, single: bool) -> float:
    """The neighbour of a float; for values from 2**24 on (single) or 2**53 on."""
    if single:
        (bits,) = struct.unpack("<I", struct.pack("<f", value))
        return struct.unpack("<f", struct.pack("<I", bits + (1 if up else -1)))[0]
    return math.nextafter(value, math.inf if up else 0.0)


def _times(array: pa.Array) -> pa.Array:
    kind = array.type
    if pa.types.is_time(kind):
        clock = array.cast(pa.time64("us"), safe=False)
        _check_within(clock.cast(pa.int64()), 0, _DAY)
        # The last moment of the day, 24:00:00, exists in Postgres and not in Arrow.
        midnight = pc.equal(clock.cast(pa.int64()), _DAY)
        early = pc.if_else(midnight, pa.scalar(0, pa.time64("us")), clock)
        return pc.if_else(midnight, _string("24:00:00"), _trimmed(early.cast(pa.large_string()), ""))
    zone = "+00" if kind.tz is not None else ""
    # Postgres keeps microseconds, so finer times are cut; coarser ones may be out of the range of microseconds.
    moments = array.cast(pa.timestamp("us", kind.tz), safe=kind.unit != "ns").cast(pa.timestamp("us"))
    _check_within(moments.cast(pa.int64()), _FIRST_MOMENT, None)
    if _inside_calendar(moments, pc.year):
        return _trimmed(moments.cast(pa.large_string()), zone)
    texts = [None if v is None else _ancient(v, "us", zone) for v in moments.cast(pa.int64()).to_pylist()]
    return pa.array(texts, pa.large_string())


def _dates(array: pa.Array) -> pa.Array:
    if pa.types.is_date64(array.type):
        array = pc.divide(array.cast(pa.int64()), _DAY // 1000).cast(pa.int32()).cast(pa.date32())
    days = array.cast(pa.date32())
    _check_within(days.cast(pa.int32()), _FIRST_DAY, _LAST_DAY)
    if _inside_calendar(days, pc.year):
        return days.cast(pa.large_string())
    texts = [None if v is None else _ancient(v, "D", "") for v in days.cast(pa.int32()).to_pylist()]
    return pa.array(texts, pa.large_string())


def _check_within(numbers: pa.Array, first: int, last: int | None) -> None:
    ends = pc.min_max(numbers).as_py()
    if ends["min"] is not None and (ends["min"] < first or (last is not None and ends["max"] > last)):
        raise ValueError("a date or time is outside of Postgres' calendar")


def _inside_calendar(array: pa.Array, year: Any) -> bool:
    ends = pc.min_max(year(array)).as_py()
    return ends["min"] is None or (ends["min"] >= 1 and ends["max"] <= 9999)


def _ancient(value: int, unit: str, zone: str) -> str:
    """A moment as text; also for years before 1, which Postgres counts as BC, and after 9999."""
    text = str(np.datetime64(value, unit)).lstrip("+")  # pyright: ignore[reportArgumentType, reportCallIssue] # any unit
    sign, text = ("-", text[1:]) if text[0] == "-" else ("", text)
    year, rest = text.split("-", 1)
    number = int(sign + year)
    day, _, clock = rest.partition("T")
    clock = f" {_trim(clock)}{zone}" if clock else ""
    return f"{number if number > 0 else 1 - number:04d}-{day}{clock}{'' if number > 0 else ' BC'}"


def _trim(clock: str) -> str:
    return clock.rstrip("0").rstrip(".") if "." in clock else clock


def _trimmed(texts: pa.Array, zone: str) -> pa.Array:
    """Clock times without trailing zeros in the fraction, and with the zone."""
    texts = pc.replace_substring_regex(texts, r"\.?0*$", "") if _has_fraction(texts) else texts
    return pc.binary_join_element_wise(texts, _string(zone), _string("")) if zone else texts


def _has_fraction(texts: pa.Array) -> bool:
    return bool(pc.any(pc.match_substring(texts, ".")).as_py())


def _record_field(column: pa.Array) -> pa.Array:
    texts = pg_text(column)
    if pa.types.is_boolean(column.type):
        texts = pc.utf8_slice_codeunits(texts, 0, 1)  # boolout writes t and f; the cast to text writes true and false
    special = pc.match_substring_regex(texts, _RECORD_QUOTED)
    if pc.any(special).as_py():
        doubled = pc.replace_substring_regex(texts, r'(["\\])', r"\1\1")
        quoted = pc.binary_join_element_wise(_string('"'), doubled, _string('"'), _string(""))
        texts = pc.if_else(special, quoted, texts)
    return pc.fill_null(texts, "") if texts.null_count else texts


def _parsed(text: str) -> Any:
    """A JSON text whose numbers keep all their digits. Raises ``ValueError`` if it is none."""
    try:
        return json.loads(text, parse_float=Decimal, parse_constant=_no_number)
    except RecursionError as error:
        raise ValueError("a JSON value is nested too deeply") from error


def _no_number(word: str) -> None:
    raise ValueError(f"{word} is no number of JSON")


def _sorted_items(items: Iterable[tuple[Any, Any]]) -> list[tuple[str, Any]]:
    named = {str(key): value for key, value in items}
    return sorted(named.items(), key=lambda item: (len(item[0].encode()), item[0].encode()))


def _json_string(text: str) -> str:
    if "\0" in text:
        raise ValueError("a nested value holds a NUL character, which jsonb does not allow")
    return json.dumps(text, ensure_ascii=False)


def _json_number(value: float | Decimal) -> str:
    if isinstance(value, int):
        return str(value)
    if not math.isfinite(value):
        raise ValueError("a nested value holds NaN or infinity, which JSON does not allow")
    if isinstance(value, Decimal) and not _LEAST_EXPONENT <= value.adjusted() <= _GREATEST_EXPONENT:
        raise ValueError("a nested value holds a number that Postgres' numeric cannot hold")
    text = format(value if isinstance(value, Decimal) else Decimal(repr(value)), "f")
    return text.removeprefix("-") if value == 0 else text
