"""Parquet files, read in batches whose size follows the size of their rows."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from rowvec.errors import SourceError

# Arrow makes its functions when it is imported, so no type checker sees them.
pc: Any = pyarrow.compute

# Uncompressed size of a batch: large enough that the cost per batch does not matter, small against 700 MB.
_BATCH_BYTES = 16 << 20
_BATCH_ROWS = 16_384


class ParquetFormat:
    """See ``FileFormat``."""

    first_row = 1

    def schema(self, path: Path) -> pa.Schema:
        """See ``FileFormat``."""
        with _opened(path) as file:
            return _schema(file)

    def batches(self, path: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """See ``FileFormat``."""
        with _opened(path) as file:
            rows, schema = file.metadata.num_rows, _schema(file)
            size = sum(file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups))
            batch_rows = max(1, min(_BATCH_ROWS, _BATCH_BYTES * max(1, rows) // max(1, size)))
            left = rows
            for batch in file.iter_batches(batch_rows, columns=list(columns)):
                left -= batch.num_rows
                plain = {name: _plain(batch.column(name), schema.field(name).type) for name in columns}
                yield pa.record_batch(plain, pa.schema([schema.field(name) for name in columns]))
            if left:
                raise SourceError(
                    f"the file {path.name} says that it has {rows:,} rows, and {rows - left:,} are in it: it was "
                    "truncated or changed; write it again"
                )


@contextmanager
def _opened(path: Path) -> Generator[pq.ParquetFile]:
    """Raises ``SourceError`` if the file is not there, is no Parquet file, or was truncated."""
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise SourceError(f"the file {path.name} cannot be read as Parquet: {reason}") from error


def _schema(file: pq.ParquetFile) -> pa.Schema:
    """The columns, in types that have one form: no views, no booleans of one byte, and enumerations as texts."""
    words = {column.path for column in map(file.schema.column, range(len(file.schema))) if _is_enum(column)}
    return pa.schema([field.with_type(_plain_type(field, words)) for field in file.schema_arrow])


def _is_enum(column: pq.ColumnSchema) -> bool:
    return column.logical_type.type == "ENUM"


def _plain_type(field: pa.Field, words: set[str]) -> pa.DataType:
    kind = field.type
    if isinstance(kind, pa.Bool8Type):
        return pa.bool_()
    # The format demands UTF-8 of an enumeration; Arrow reads it as bytes.
    if pa.types.is_string_view(kind) or (field.name in words and pa.types.is_binary(kind)):
        return pa.large_string()
    return pa.large_binary() if pa.types.is_binary_view(kind) else kind


def _plain(column: pa.Array, kind: pa.DataType) -> pa.Array:
    """The column in its plain type. Texts are not checked here: one bad text must not stop its batch."""
    if column.type == kind:
        return column
    if isinstance(column, pa.ExtensionArray):
        return pc.not_equal(column.storage, 0)
    raw = column.cast(pa.large_binary())
    return raw.view(pa.large_string()) if pa.types.is_large_string(kind) else raw
