"""An external sort of row hashes: sorted runs in one temporary file without a name, merged range by range."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from rowvec.errors import FatalError

RECORD = np.dtype(
    [
        ("digest", "=u8", (2,)),
        ("fingerprint", "=u8", (4,)),
        ("metadata_hash", "=u8", (4,)),
        ("row", "=i8"),
        ("blank", "?"),
    ]
)
"""A row of the source: key digest as two numbers, its hashes, its number, and whether it has nothing to embed."""

Records = npt.NDArray[Any]

_MEMORY = 32 << 20  # bytes of records held before a run is written: 370,000 rows
_RANGES = 256  # one per first byte of a digest: 100,000,000 rows make ranges of 35 MB
_YIELD = 1 << 16  # rows in a block that ascending() yields


@dataclass(frozen=True, slots=True)
class _Run:
    """A sorted run: where it starts in the file, and where each range starts in the run."""

    offset: int
    starts: npt.NDArray[np.int64]
    """``(_RANGES + 1,)``, in rows."""


class ExternalSort:
    """Takes records in any order, and returns them sorted by digest, and by row within a digest.

    Records that fit in ``memory`` bytes never touch the disk. The file has no name (or loses it at once), so the system
    frees it when the process ends, even if it is killed. All rows of one key are in memory together.
    """

    def __init__(self, folder: Path, *, memory: int = _MEMORY) -> None:
        self._folder, self._memory = folder, memory
        self._held: list[Records] = []
        self._held_bytes = 0
        self._runs: list[_Run] = []
        self._file: IO[bytes] | None = None
        self._closing = ExitStack()

    def __enter__(self) -> ExternalSort:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.clear()
        self._closing.close()

    def add(self, records: Records) -> None:
        """Add some records. Raises ``FatalError`` if the folder has no room for them."""
        self._held.append(records)
        self._held_bytes += records.nbytes
        if self._held_bytes >= self._memory:
            self._write_run()

    def ascending(self) -> Iterator[Records]:
        """All records that were added, sorted; records of one digest are never in two blocks."""
        if not self._runs:
            if self._held:
                yield from _in_blocks(_sorted(self._held))
            return
        if self._held:
            self._write_run()
        for number in range(_RANGES):
            pieces = [self._piece(run, number) for run in self._runs]
            yield from _in_blocks(_sorted([piece for piece in pieces if len(piece)]))

    def _piece(self, run: _Run, number: int) -> Records:
        assert self._file is not None  # noqa: S101 # a run was written, so there is a file
        first, last = int(run.starts[number]), int(run.starts[number + 1])
        self._file.seek(run.offset + first * RECORD.itemsize)
        data = self._file.read((last - first) * RECORD.itemsize)
        if len(data) != (last - first) * RECORD.itemsize:
            raise FatalError(f"the temporary file in {self._folder} was truncated; run again")
        return np.frombuffer(data, RECORD)

    def _write_run(self) -> None:
        records = _sorted(self._held)
        self._held, self._held_bytes = [], 0
        bounds = np.arange(_RANGES, dtype=np.uint64) << np.uint64(56)
        starts = np.append(np.searchsorted(records["digest"][:, 0], bounds), len(records))
        try:
            if self._file is None:
                self._file = self._closing.enter_context(_temporary_file(self._folder))
            offset = self._file.seek(0, 2)
            self._file.write(records.tobytes())
            self._file.flush()
        except OSError as error:
            raise FatalError(f"cannot sort in {self._folder}: {error.strerror}; free some room there") from error
        self._runs.append(_Run(offset, starts.astype(np.int64)))


def _temporary_file(folder: Path) -> AbstractContextManager[IO[bytes]]:
    return tempfile.TemporaryFile(dir=folder, prefix="sort")


def _sorted(blocks: list[Records]) -> Records:
    if not blocks:
        return np.empty(0, RECORD)
    joined = np.concatenate(blocks)
    return joined[np.lexsort((joined["row"], joined["digest"][:, 1], joined["digest"][:, 0]))]


def _in_blocks(records: Records) -> Iterator[Records]:
    """Blocks of about ``_YIELD`` records; none ends between two records of one digest."""
    start = 0
    while start < len(records):
        end = min(start + _YIELD, len(records))
        while end < len(records) and (records["digest"][end] == records["digest"][end - 1]).all():
            end += 1
        yield records[start:end]
        start = end
