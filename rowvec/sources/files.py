"""Files as a source: read twice, first to hash and sort what every row is, then for the rows that are wanted."""

from __future__ import annotations

import glob
import json
import tempfile
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rowvec import template
from rowvec.columns import PgColumn
from rowvec.diff import Block, Changes, Rows
from rowvec.errors import RejectReason, RowError, SourceError
from rowvec.fingerprint import Identity
from rowvec.pipeline import CsvSource, ParquetSource, Pipeline
from rowvec.sources.apart import ACTIONS, Reject
from rowvec.sources.csv_files import CsvFormat
from rowvec.sources.parquet_files import ParquetFormat
from rowvec.sources.rendered import Layout, Rendered, columns_of, is_vector
from rowvec.sources.spill import Records, Spill

Fetch = Callable[[str, Path], list[Path]]
"""Fetches what a blob URL names into a folder, and says which files that made."""

# What becomes of a row in the second pass, one byte a row of the source; 1, 2 and 3 are ACTIONS.
_DUPLICATE, _EMPTY = 4, 5

_MARKS_GROWTH = 1 << 20

_REASONS: dict[int, tuple[RejectReason, str]] = {
    _DUPLICATE: ("duplicate_key", "several rows have this key"),
    _EMPTY: ("empty", "the content is empty or white space only"),
}


class FileFormat(Protocol):
    """A kind of file."""

    def schema(self, path: Path) -> pa.Schema:
        """The file's columns. Raises ``SourceError`` where the file cannot be read."""
        ...

    def batches(self, path: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """The file's rows, some thousand at a time, with these columns in this order.

        Raises ``SourceError`` where the file cannot be read, or a value is not what its column's type says.
        """
        ...


@dataclass(frozen=True, slots=True)
class _Mark:
    """What tells whether a file is still the one that was read."""

    path: Path
    size: int
    modified: int
    inode: int

    @staticmethod
    def of(path: Path) -> _Mark:
        status = path.stat()
        return _Mark(path, status.st_size, status.st_mtime_ns, status.st_ino)


class FileSource:
    """See ``ApartSource``. Memory: a batch, a run of sorted hashes, and a byte for each row of the source."""

    def __init__(self, pipeline: Pipeline, identity: Identity, paths: list[Path], spill: Spill, aside: IO[str]) -> None:
        source = pipeline.source
        assert source.kind != "postgres"  # noqa: S101 # for the type checker; open_files says so to the caller
        self._format = file_format(source)
        self._reject_blank = source.empty == "reject"
        self._marks = [_mark(path) for path in paths]
        self._layout = layout(pipeline, identity, self._format, paths)
        self._spill, self._aside = spill, aside
        self._fates = np.zeros(0, np.uint8)
        self._sent: deque[npt.NDArray[np.int64]] = deque()
        self._rows = self._blank = 0

    @property
    def key(self) -> tuple[PgColumn, ...]:
        """See ``ApartSource``."""
        return self._layout.key

    @property
    def metadata(self) -> tuple[PgColumn, ...]:
        """See ``ApartSource``."""
        return self._layout.metadata

    @property
    def blank(self) -> int:
        """See ``ApartSource``."""
        return self._blank

    def pairs(self) -> Iterator[Block]:
        """See ``ApartSource``."""
        for first_row, rendered in self._rendered():
            self._spill.add(rendered.records(first_row))
            self._set_aside_unusable(rendered)
        self._fates = np.zeros(self._rows, np.uint8)
        for records in self._spill.ascending():
            good = records[self._usable(records)]
            self._sent.append(good["row"].copy())
            yield Block(
                digest=np.ascontiguousarray(good["digest"]),
                fingerprint=np.ascontiguousarray(good["fingerprint"]),
                metadata_hash=np.ascontiguousarray(good["metadata_hash"]),
            )

    def mark(self, changes: Changes) -> None:
        """See ``ApartSource``."""
        kinds: tuple[Rows, ...] = (changes.new, changes.changed, changes.metadata_only)
        passed = sum(map(len, kinds)) + len(changes.duplicates) + changes.unchanged
        rows = self._take_sent(passed)
        start = min((int(kind.position[0]) for kind in (*kinds, changes.duplicates) if len(kind)), default=0)
        del start
        for fate, kind in enumerate(kinds, 1):
            self._fates[rows[kind.position - self._passed]] = fate
        self._passed += passed

    def rows(self) -> Iterator[pa.RecordBatch]:
        """See ``ApartSource``."""
        self._check_unchanged()
        for first_row, batch in self._batches():
            fates = self._fates[first_row : first_row + batch.num_rows]
            wanted = np.flatnonzero(fates)
            if len(wanted):
                yield from self._taken(batch.take(pa.array(wanted)), fates[wanted])
        self._check_unchanged()

    def rejects(self) -> Iterator[Reject]:
        """See ``ApartSource``."""
        self._aside.seek(0)
        for line in self._aside:
            key, reason, detail = json.loads(line)
            yield key, RowError(reason, detail)
