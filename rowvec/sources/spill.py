"""Sorting more pairs than memory holds: sorted runs in one nameless temporary file, merged digest range by range."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

import numpy as np
import numpy.typing as npt

from rowvec.diff import PAIR, Block, sortable
from rowvec.errors import FatalError

_MEMORY = 32 << 20  # bytes of pairs in memory before a run is written: 380,000 rows
_RANGES = 256  # by one byte of the digest: 100,000,000 rows make ranges of 35 MB
_LARGEST_RANGE = 96 << 20  # bytes sorted at once; a range over this holds a key many times over
_YIELD = 1 << 16  # rows in a block that is handed out


@dataclass(frozen=True, slots=True)
class _Run:
    """A sorted run: where it starts in the file, and where in it each range does."""

    offset: int
    starts: npt.NDArray[np.int64]  # (_RANGES + 1,) rows


class Spill:
    """Takes pairs in any order, gives them back sorted by digest, and by row within a digest.

    What fits in ``memory`` bytes never touches the disk. The file has no name (or loses it at once), so the system
    frees it when the process ends, in whatever way. Use as a context manager; read it once.
    """

    def __init__(self, folder: Path, *, memory: int = _MEMORY, depth: int = 0) -> None:
        self._folder = folder
        self._memory = memory
        self._depth = depth
        """Which byte of the digest parts the ranges: those before it are equal in all pairs."""
        self._waiting: list[Block] = []
        self._waiting_bytes = 0
        self._runs: list[_Run] = []
        self._file: IO[bytes] | None = None
        self._closing = ExitStack()

    def __enter__(self) -> Spill:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._waiting.clear()
        self._closing.close()

    def add(self, records: Block) -> None:
        """Take a block. Raises ``FatalError`` where the folder has no room for it."""
        if len(records):
            self._waiting.append(records)
            self._waiting_bytes += records.nbytes
        if self._waiting_bytes >= self._memory:
            self._write_run()

    def blocks(self) -> Iterator[Block]:
        """Everything that was added, sorted, in blocks of at most 65,536 rows."""
        if not self._runs:
            yield from _in_blocks(self._take_waiting())
            return
        if self._waiting:
            self._write_run()
        for number in range(_RANGES):
            yield from self._range(number)

    def _range(self, number: int) -> Iterator[Block]:
        sizes = [int(run.starts[number + 1] - run.starts[number]) for run in self._runs]
        if sum(sizes) * PAIR.itemsize <= max(_LARGEST_RANGE if self._memory >= _MEMORY else self._memory, 1):
            yield from _in_blocks(_sorted(list(self._pieces(number))))
        elif self._depth == 15:
            # Sixteen equal bytes: one key, and the runs are in the order of their rows.
            yield from self._pieces(number)
        else:
            with Spill(self._folder, memory=self._memory, depth=self._depth + 1) as finer:
                for piece in self._pieces(number):
                    finer.add(piece)
                yield from finer.blocks()

    def _pieces(self, number: int) -> Iterator[Block]:
        """One range of every run, in the order in which the runs were written, in blocks."""
        for run in self._runs:
            first, last = int(run.starts[number]), int(run.starts[number + 1])
            for start in range(first, last, _YIELD):
                yield self._read(run.offset + start * PAIR.itemsize, min(_YIELD, last - start))

    def _read(self, offset: int, rows: int) -> Block:
        assert self._file is not None  # noqa: S101 # a run was written, so there is a file; for the type checker
        self._file.seek(offset)
        records = np.empty(rows, PAIR)
        if self._file.readinto(memoryview(records).cast("B")) != records.nbytes:
            raise FatalError(f"the temporary file in {self._folder} was cut; run again")
        return records

    def _take_waiting(self) -> Block:
        taken, self._waiting, self._waiting_bytes = self._waiting, [], 0
        return _sorted(taken)

    def _write_run(self) -> None:
        records = self._take_waiting()
        lead = np.ascontiguousarray(records["digest"]).view("u1").reshape(-1, 16)[:, self._depth]
        starts = np.searchsorted(lead, np.arange(_RANGES + 1))
        try:
            if self._file is None:
                self._file = self._closing.enter_context(tempfile.TemporaryFile(dir=self._folder, prefix="spill"))
            offset = self._file.seek(0, 2)
            self._file.write(memoryview(records).cast("B"))
            self._file.flush()
        except OSError as error:
            raise FatalError(f"cannot sort in {self._folder}: {error.strerror}; free some room there") from error
        self._runs.append(_Run(offset, starts.astype(np.int64)))


def _sorted(blocks: list[Block]) -> Block:
    """One block, sorted; stable, so that equal digests stay in the order of their rows."""
    if not blocks:
        return np.empty(0, PAIR)
    joined = np.concatenate(blocks)
    return joined[np.argsort(sortable(joined), kind="stable")]


def _in_blocks(records: Block) -> Iterator[Block]:
    for start in range(0, len(records), _YIELD):
        yield records[start : start + _YIELD]
