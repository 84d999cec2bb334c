"""Parquet files, read in batches whose size follows the size of their rows."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rowvec.errors import SourceError

# Uncompressed size of a batch: large enough that the cost per batch does not matter, small against 700 MB.
_BATCH_BYTES = 16 << 20
_BATCH_ROWS = 16_384


class ParquetFormat:
    """See ``FileFormat``."""

    first_row = 1

    def schema(self, path: Path) -> pa.Schema:
        """See ``FileFormat``."""
        with _opened(path) as file:
            return file.schema_arrow

    def batches(self, path: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """See ``FileFormat``."""
        with _opened(path) as file:
            rows = file.metadata.num_rows
            size = sum(file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups))
            batch_rows = max(1, min(_BATCH_ROWS, _BATCH_BYTES * max(1, rows) // max(1, size)))
            left = rows
            for batch in file.iter_batches(batch_rows, columns=list(columns)):
                left -= batch.num_rows
                yield batch.select(list(columns))
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
