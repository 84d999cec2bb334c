"""The diff of source and vector table: it merges two streams of hashes, sorted by key digest, and does no I/O."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]
Positions = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Some rows of a sorted stream, as hashes."""

    digest: Words
    """``(n, 2)``: the two halves of each key digest as numbers, so that they sort as the 16 bytes do."""
    fingerprint: Words
    """``(n, 4)``: 32 bytes each, compared for equality only."""
    metadata_hash: Words
    """``(n, 4)``, like the fingerprint."""

    def __len__(self) -> int:
        return len(self.digest)

    def __getitem__(self, rows: slice | npt.NDArray[np.bool_]) -> Block:
        return Block(
            digest=self.digest[rows], fingerprint=self.fingerprint[rows], metadata_hash=self.metadata_hash[rows]
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Rows of the source for which the diff found the same action."""

    position: Positions
    """``(n,)``: ordinals in the sorted source."""
    digest: Words
    """``(n, 2)``, as in ``Block``."""

    def __len__(self) -> int:
        return len(self.position)


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What the diff found in one stretch of the two streams."""

    new: Rows
    changed: Rows
    metadata_only: Rows
    duplicates: Rows
    """Rows whose digest occurs more than once in the source: none of them can have its own vector."""
    deleted: Words
    """``(n, 2)``: digests that the target has, and that the source does not have or has more than once."""
    unchanged: int


def empty_block() -> Block:
    """A block of no rows."""
    return Block(
        digest=np.empty((0, 2), np.uint64),
        fingerprint=np.empty((0, 4), np.uint64),
        metadata_hash=np.empty((0, 4), np.uint64),
    )


def diff(source: Iterator[Block], target: Iterator[Block]) -> Iterator[Changes]:
    """Compare the source's rows with the stored ones; both streams ascend by digest, the target without repetition.

    Memory: two blocks per stream, and all rows of one duplicate key. Raises ``ValueError`` if a stream does not ascend,
    because the result would delete vectors that are right.
    """
    wanted, stored = _Stream(source, "source", repeats=True), _Stream(target, "target", repeats=False)
    while True:
        horizon = min((s.last for s in (wanted, stored) if s.fill()), default=None)
        position = wanted.passed
        ours, theirs = wanted.take_below(horizon), stored.take_below(horizon)
        if len(ours) or len(theirs):
            yield _compare(ours, theirs, position)
        if horizon is None:
            return
        for stream in (wanted, stored):
            stream.read_beyond(horizon)


class _Stream:
    """One side of the diff: the rows that were read and are not compared yet."""

    def __init__(self, blocks: Iterator[Block], name: str, *, repeats: bool) -> None:
        self._blocks, self._name, self._repeats = blocks, name, repeats
        self._held = empty_block()
        self._ended = False
        self.passed = 0
        """Number of rows that are compared already."""

    @property
    def last(self) -> tuple[int, int]:
        """The greatest digest read so far."""
        return _at(self._held.digest, -1)

    def fill(self) -> bool:
        """Read until there is at least one row at hand; whether more rows may follow."""
        while not self._ended and not len(self._held):
            self._read()
        return not self._ended

    def read_beyond(self, horizon: tuple[int, int]) -> None:
        """Read one more block if the last row at hand is the horizon: rows equal to it may follow."""
        if not self._ended and len(self._held) and self.last == horizon:
            self._read()

    def take_below(self, horizon: tuple[int, int] | None) -> Block:
        """The rows at hand below the horizon, or all of them."""
        count = len(self._held) if horizon is None else _count_below(self._held.digest, horizon)
        taken, self._held = self._held[:count], self._held[count:]
        self.passed += count
        return taken

    def _read(self) -> None:
        block = next(self._blocks, None)
        if block is None:
            self._ended = True
        elif len(block):
            joined = block if not len(self._held) else _joined(self._held, block)
            self._check_order(joined.digest)
            self._held = joined

    def _check_order(self, digest: Words) -> None:
        high, low = digest[:, 0], digest[:, 1]
        falls = (high[1:] < high[:-1]) | ((high[1:] == high[:-1]) & (low[1:] < low[:-1]))
        if falls.any():
            raise ValueError(f"the {self._name}'s rows do not ascend by key digest")
        if not self._repeats and _equals_previous(digest).any():
            raise ValueError(f"the {self._name} has a key digest twice")


def _compare(wanted: Block, stored: Block, position: int) -> Changes:
    """What has changed, given all rows of both streams below some digest."""
    again = _equals_previous(wanted.digest)
    single = ~again
    single[:-1] &= ~again[1:]
    found, place = _find(wanted.digest, stored.digest)
    found &= single
    at = place[found]
    same_content, same_metadata = np.zeros_like(found), np.zeros_like(found)
    same_content[found] = (wanted.fingerprint[found] == stored.fingerprint[at]).all(axis=1)
    same_metadata[found] = (wanted.metadata_hash[found] == stored.metadata_hash[at]).all(axis=1)
    kept = np.zeros(len(stored), np.bool_)
    kept[at] = True

    def rows(which: npt.NDArray[np.bool_]) -> Rows:
        return Rows(position=position + np.flatnonzero(which), digest=wanted.digest[which])

    return Changes(
        new=rows(single & ~found),
        changed=rows(found & ~same_content),
        metadata_only=rows(same_content & ~same_metadata),
        duplicates=rows(~single),
        deleted=stored.digest[~kept],
        unchanged=int((same_content & same_metadata).sum()),
    )


def _find(wanted: Words, stored: Words) -> tuple[npt.NDArray[np.bool_], Positions]:
    """Which digests of ``wanted`` are in ``stored``, and at which place; ignore the place of the others."""
    if not len(stored):
        return np.zeros(len(wanted), np.bool_), np.zeros(len(wanted), np.int64)
    high, low = np.ascontiguousarray(stored[:, 0]), stored[:, 1]
    place = np.searchsorted(high, wanted[:, 0])
    while True:
        inside = np.minimum(place, len(stored) - 1)
        same_high = (place < len(stored)) & (high[inside] == wanted[:, 0])
        # Two digests almost never have equal first halves, so the loop almost never repeats.
        behind = same_high & (low[inside] < wanted[:, 1])
        if not behind.any():
            return same_high & (low[inside] == wanted[:, 1]), inside
        place = place + behind


def _equals_previous(digest: Words) -> npt.NDArray[np.bool_]:
    equals = np.zeros(len(digest), np.bool_)
    equals[1:] = (digest[1:] == digest[:-1]).all(axis=1)
    return equals


def _count_below(digest: Words, horizon: tuple[int, int]) -> int:
    high = np.uint64(horizon[0])
    start, end = (int(np.searchsorted(digest[:, 0], high, side)) for side in ("left", "right"))
    return start + int(np.searchsorted(digest[start:end, 1], np.uint64(horizon[1])))


def _at(digest: Words, row: int) -> tuple[int, int]:
    return int(digest[row, 0]), int(digest[row, 1])


def _joined(first: Block, second: Block) -> Block:
    return Block(
        digest=np.concatenate([first.digest, second.digest]),
        fingerprint=np.concatenate([first.fingerprint, second.fingerprint]),
        metadata_hash=np.concatenate([first.metadata_hash, second.metadata_hash]),
    )
