"""What the reader of a source's rows needs of a kind of file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import pyarrow as pa


class FileFormat(Protocol):
    """A kind of file."""

    first_row: int
    """The number that people give the first row: with a header line it is 2."""

    def schema(self, path: Path) -> pa.Schema:
        """The file's columns. Raises ``SourceError`` if the file cannot be read."""
        ...

    def batches(self, path: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """The file's rows, some thousand at a time, with these columns in this order.

        Raises ``SourceError`` if the file cannot be read, or a value does not fit its column's type.
        """
        ...
