"""Rows of a file as keys, content and hashes, a batch at a time, exactly as Postgres would render the same values."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute

from rowvec.errors import RejectReason, SourceError
from rowvec.pipeline.template import Column, Template
from rowvec.postgres.columns import PgColumn
from rowvec.sources.files.external_sort import RECORD, Records
from rowvec.sources.files.pg_text import pg_record, pg_text, pg_type
from rowvec.sources.hash_stream import DIGEST_BYTES, pack_digests, pack_hashes
from rowvec.sources.protocol import row_schema
from rowvec.vectors.fingerprint import fingerprint

# Arrow makes its functions when it is imported, so no type checker sees them.
pc: Any = pyarrow.compute

Mask = npt.NDArray[np.bool_]

# White space is ASCII only, as in rowvec.sources.postgres.NOT_BLANK.
_NOT_BLANK = r"[^ \t\n\r\f\v]"

LONGEST_KEY = 2600
"""Bytes of a row's key, as text: an entry of a B-tree has room for 2,704, including its overhead."""
_LISTED_KEY = 200

_NOTHING = pa.scalar("", pa.large_string())


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """What each column of a file is used for."""

    key: tuple[PgColumn, ...]
    metadata: tuple[PgColumn, ...]
    content: Template
    vector: str | None
    """The column with the source's own vectors, with the column embedder."""
    refusals: tuple[str, str] | None
    """The columns with the reason and the detail of a rejected row; NULL for every other row."""
    dimensions: int
    """Dimensions of the vectors."""
    identity: bytes

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that are read, each once."""
        own = [column.name for column in (*self.key, *self.metadata)]
        others = [*([self.vector] if self.vector else []), *(self.refusals or ())]
        return tuple(dict.fromkeys([*own, *self.content.columns, *others]))


class Rendered:
    """A batch of ``n`` rows as text and hashes; each part is computed when it is first used."""

    def __init__(self, batch: pa.RecordBatch, layout: Layout) -> None:
        self._batch, self._layout = batch, layout
        self._rows = batch.num_rows
        self.unreadable = np.zeros(self._rows, np.bool_)
        """``(n,)``: rows with a value that Postgres cannot hold as text."""
        self.unreadable_in: dict[int, str] = {}
        """The first column with such a value, by row."""
        named = {column.name for column in (*layout.key, *layout.metadata)} | set(layout.content.columns)
        self._texts = {name: self._readable(name, batch.column(name)) for name in layout.columns if name in named}

    @property
    def null_key(self) -> Mask:
        """``(n,)``: rows whose key is NULL in part."""
        null = np.zeros(self._rows, np.bool_)
        for column in self._layout.key:
            texts = self._texts[column.name]
            if texts.null_count:
                null |= _mask(texts.is_null())
        return null

    @cached_property
    def long_key(self) -> Mask:
        """``(n,)``: rows whose key is longer than a primary key can hold."""
        lengths = np.zeros(self._rows, np.int64)
        for column in self._layout.key:
            lengths += pc.fill_null(pc.binary_length(self._texts[column.name]), 0).to_numpy(zero_copy_only=False)
        return lengths > LONGEST_KEY

    @property
    def refused(self) -> Mask:
        """``(n,)``: rows that the reader of the source has rejected."""
        if self._layout.refusals is None:
            return np.zeros(self._rows, np.bool_)
        return _mask(self._batch.column(self._layout.refusals[0]).is_valid())

    def refusal(self, row: int) -> tuple[RejectReason, str]:
        """The reason and the detail of a rejected row."""
        reason, detail = self._layout.refusals or ("", "")
        return self._batch.column(reason)[row].as_py(), self._batch.column(detail)[row].as_py()

    @cached_property
    def content(self) -> pa.Array:
        """The rendered template, ``large_string``, never NULL."""
        parts = [
            self._filled(part.name) if isinstance(part, Column) else pa.scalar(part, pa.large_string())
            for part in self._layout.content.parts
        ]
        if not any(isinstance(part, Column) for part in self._layout.content.parts):
            fixed = self._layout.content.render({})
            return pa.array([fixed] * self._rows, pa.large_string())
        return pc.binary_join_element_wise(*parts, _NOTHING)

    @property
    def blank(self) -> Mask:
        """``(n,)``: rows that have nothing to embed."""
        if self._layout.vector is not None:
            return _mask(self._batch.column(self._layout.vector).is_null())
        return ~_mask(pc.match_substring_regex(self.content, _NOT_BLANK))

    @cached_property
    def fingerprints(self) -> list[bytes]:
        """32 bytes per row."""
        identity = self._layout.identity
        contents = self.content.cast(pa.large_binary()).to_pylist()
        if self._layout.vector is None:
            return [fingerprint(identity, content) for content in contents]
        vectors = vector_bytes(self._batch.column(self._layout.vector), self._layout.dimensions)
        return [fingerprint(identity, c, v or b"") for c, v in zip(contents, vectors, strict=True)]

    @cached_property
    def metadata_hashes(self) -> list[bytes]:
        """32 bytes per row."""
        if not self._layout.metadata:
            return [hashlib.sha256(b"()").digest()] * self._rows
        arrays = [
            self._texts[c.name] if c.pg_type != "boolean" else self._batch.column(c.name) for c in self._layout.metadata
        ]
        return _sha256(pg_record(arrays, self._rows))

    def records(self, first_row: int) -> Records:
        """The hashes of the rows that have a key and can be read, numbered from ``first_row``."""
        good = ~(self.null_key | self.unreadable | self.long_key | self.refused)
        records = np.zeros(self._rows, RECORD)
        records["digest"] = pack_digests(self._key_digests())
        records["fingerprint"] = pack_hashes(self.fingerprints)
        records["metadata_hash"] = pack_hashes(self.metadata_hashes)
        records["row"] = np.arange(first_row, first_row + self._rows)
        records["blank"] = self.blank
        return records[good]

    def key_json(self, rows: Sequence[int]) -> list[str]:
        """The keys of these rows as the table of rejects holds them: JSON arrays of texts."""
        columns = [self._texts[column.name] for column in self._layout.key]
        return [json.dumps([_shortened(c[row].as_py()) for c in columns], ensure_ascii=False) for row in rows]

    def taken(self, actions: list[str]) -> pa.RecordBatch:
        """The rows as ``HashedSource.rows`` gives them."""
        key, metadata = self._layout.key, self._layout.metadata
        schema = row_schema(key, metadata)
        vector = pa.nulls(self._rows, pa.large_string())
        if self._layout.vector is not None:
            vector = vector_text(self._batch.column(self._layout.vector), self._layout.dimensions)
        columns = [
            pa.array(actions, pa.string()),
            *(self._typed(column) for column in (*key, *metadata)),
            self.content,
            vector,
            pa.array(self.fingerprints, pa.binary()),
            pa.array(self.metadata_hashes, pa.binary()),
        ]
        return pa.record_batch(columns, schema)

    def _typed(self, column: PgColumn) -> pa.Array:
        kind = column.arrow_field.type
        return (self._texts[column.name] if pa.types.is_string(kind) else self._batch.column(column.name)).cast(kind)

    def _filled(self, name: str) -> pa.Array:
        texts = self._texts[name]
        return pc.fill_null(texts, "") if texts.null_count else texts

    def _key_digests(self) -> list[bytes]:
        parts: list[object] = []
        for column in self._layout.key:
            texts = self._filled(column.name)
            lengths = pc.binary_length(texts).cast(pa.large_string())
            parts += [lengths, pa.scalar(":", pa.large_string()), texts]
        return [digest[:DIGEST_BYTES] for digest in _sha256(pc.binary_join_element_wise(*parts, _NOTHING))]

    def _readable(self, name: str, column: pa.Array) -> pa.Array:
        """The column's texts. An unreadable value marks its row, and a readable likeness takes its place."""
        try:
            texts = pg_text(_checked(column))
        except (pa.ArrowInvalid, ValueError):
            texts = self._readable_one_by_one(name, column)
        nul = pc.match_substring(texts, "\0")
        if not pc.any(nul).as_py():
            return texts
        self._mark(name, np.flatnonzero(_mask(pc.fill_null(nul, False))).tolist())
        return pc.replace_substring(texts, "\0", "\N{REPLACEMENT CHARACTER}")

    def _readable_one_by_one(self, name: str, column: pa.Array) -> pa.Array:
        texts: list[str | None] = []
        for row in range(len(column)):
            value = column.slice(row, 1)
            try:
                texts.append(pg_text(_checked(value))[0].as_py())
            except (pa.ArrowInvalid, ValueError):
                self._mark(name, [row])
                likeness = value.cast(pa.large_binary())[0].as_py() if _may_be_misread(value.type) else b""
                texts.append(likeness.decode(errors="replace"))
        return pa.array(texts, pa.large_string())

    def _mark(self, name: str, rows: Sequence[int]) -> None:
        self.unreadable[rows] = True
        for row in rows:
            self.unreadable_in.setdefault(row, name)


def columns_of(schema: pa.Schema, names: Sequence[str], *, key: bool, where: str) -> tuple[PgColumn, ...]:
    """The Postgres columns for a file's columns.

    Raises ``SourceError`` if Postgres has no type for a column, or a key column has a type that cannot identify rows.
    """
    found: list[PgColumn] = []
    for name in names:
        kind = schema.field(name).type
        written = pg_type(kind)
        if written is None:
            raise SourceError(f"column {name!r} of {where} is {kind}, which Postgres has no type for; cast it to text")
        if key and written in ("real", "double precision", "jsonb"):
            raise SourceError(
                f"the key column {name!r} of {where} is {kind}, which cannot tell rows apart reliably; "
                "cast it to an integer or text"
            )
        found.append(PgColumn(name, written))
    return tuple(found)


def vector_bytes(column: pa.Array, dimensions: int) -> list[bytes | None]:
    """The vectors as float32, little-endian, for the fingerprint; sparse vectors and texts as they are written."""
    if pa.types.is_struct(column.type):
        column = vector_text(column, dimensions)
    if not _is_list(column.type):
        return [v.encode() if isinstance(v, str) else v for v in column.cast(pa.large_binary()).to_pylist()]
    floats, starts = _floats(column)
    data = floats.to_numpy(zero_copy_only=False).astype("<f4").tobytes()
    bounds = zip(starts[:-1].tolist(), starts[1:].tolist(), _mask(column.is_valid()), strict=True)
    return [data[4 * start : 4 * end] if valid else None for start, end, valid in bounds]


def vector_text(column: pa.Array, dimensions: int) -> pa.Array:
    """The vectors as ``[1,2.5]``, in digits that read back as the same float32; a text vector as it is written.

    A struct of indices and values becomes ``{1:0.5,7:2}/9``, as pgvector writes it: pgvector counts indices from 1.
    """
    if pa.types.is_struct(column.type):
        return _sparse_text(column, dimensions)
    if not _is_list(column.type):
        return column.cast(pa.large_string())
    floats, starts = _floats(column)
    # Arrow joins only lists with offsets of 32 bits. They suffice: a batch has some megabytes.
    numbers = pa.ListArray.from_arrays(pa.array(starts, pa.int32()), floats.cast(pa.string()))
    joined = pc.binary_join(numbers, ",").cast(pa.large_string())
    texts = pc.binary_join_element_wise(_string("["), joined, _string("]"), _NOTHING)
    return pc.if_else(column.is_valid(), texts, pa.scalar(None, pa.large_string()))


def is_vector(kind: pa.DataType) -> bool:
    """Whether a column of this type can hold vectors."""
    if pa.types.is_struct(kind):
        fields = {field.name: field.type for field in kind}
        indices, values = fields.get("indices"), fields.get("values")
        if indices is None or values is None or not (_is_list(indices) and _is_list(values)):
            return False
        return pa.types.is_integer(indices.value_type) and pa.types.is_floating(values.value_type)
    return _may_be_misread(kind) or (_is_list(kind) and pa.types.is_floating(kind.value_type))


def _sparse_text(column: pa.StructArray, dimensions: int) -> pa.Array:
    """Sparse vectors as text. If a row's lists differ in length, its text says so, which no embedder accepts."""
    indices, values = column.field("indices"), column.field("values")
    (numbers, starts), (weights, others) = _numbers(indices, pa.int64(), -1), _floats(values)
    counts, found = np.diff(starts), np.diff(others)
    odd = counts != found
    if odd.any():
        indices, values = (pc.if_else(pa.array(~odd), one, pa.scalar(None, one.type)) for one in (indices, values))
        (numbers, starts), (weights, others) = _numbers(indices, pa.int64(), -1), _floats(values)
    pairs = pc.binary_join_element_wise(pc.add(numbers, 1).cast(pa.string()), weights.cast(pa.string()), ":")
    joined = pc.binary_join(pa.ListArray.from_arrays(pa.array(starts, pa.int32()), pairs), ",").cast(pa.large_string())
    texts = pc.binary_join_element_wise(_string("{"), joined, _string(f"}}/{dimensions}"), _NOTHING)
    if odd.any():
        lengths = [f"{i} indices / {v} values" for i, v in zip(counts.tolist(), found.tolist(), strict=True)]
        texts = pc.if_else(pa.array(odd), pa.array(lengths, pa.large_string()), texts)
    return pc.if_else(column.is_valid(), texts, pa.scalar(None, pa.large_string()))


def _floats(column: pa.Array) -> tuple[pa.Array, npt.NDArray[np.int64]]:
    """All numbers in one array, NaN for NULL, and where the numbers of each row start, ``(n + 1,)``."""
    return _numbers(column, pa.float32(), float("nan"))


def _numbers(column: pa.Array, kind: pa.DataType, null: float) -> tuple[pa.Array, npt.NDArray[np.int64]]:
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)
    return pc.fill_null(pc.list_flatten(column).cast(kind, safe=False), null), starts


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _may_be_misread(kind: pa.DataType) -> bool:
    """Whether values are texts: neither Parquet nor CSV is checked for UTF-8 while it is read."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _checked(column: pa.Array) -> pa.Array:
    """The column, its texts checked to be UTF-8. Raises ``ArrowInvalid`` if one is not."""
    if isinstance(column, pa.DictionaryArray):
        column = column.dictionary_decode()
    if not _may_be_misread(column.type):
        return column
    return column.cast(pa.large_binary()).cast(pa.large_string())


def _sha256(texts: pa.Array) -> list[bytes]:
    sha256 = hashlib.sha256
    return [sha256(text).digest() for text in texts.cast(pa.large_binary()).to_pylist()]


def _shortened(text: str | None) -> str | None:
    """A part of a key, shortened so that the index on the table of rejects can hold it."""
    if text is None or len(text) <= _LISTED_KEY:
        return text
    raw = text.encode()
    return f"{text[:_LISTED_KEY]}… ({len(raw):,} bytes, sha256 {hashlib.sha256(raw).hexdigest()[:16]})"


def _string(text: str) -> pa.Scalar:
    return pa.scalar(text, pa.large_string())


def _mask(array: pa.Array) -> Mask:
    return array.to_numpy(zero_copy_only=False).astype(np.bool_, copy=False)
