"""The streaming diff is compared with a ten-line model that uses dictionaries."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rowvec.sources.diff import Block, Changes, diff

# Few values, so that halves, hashes and whole digests are often equal.
Digest = tuple[int, int]
Row = tuple[Digest, int, int]
_HALF = st.sampled_from([0, 1, 2, 255, 256, 2**63, 2**64 - 1])
_DIGEST = st.tuples(_HALF, _HALF)
_SOURCE = st.lists(st.tuples(_DIGEST, st.integers(0, 2), st.integers(0, 2)), max_size=60).map(sorted)
_TARGET = st.dictionaries(_DIGEST, st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=40)


def blocks(rows: list[Row], sizes: Iterator[int]) -> Iterator[Block]:
    """The rows, cut into blocks of these sizes; a block may be empty."""
    at = 0
    while at < len(rows):
        part = rows[at : at + next(sizes)]
        at += len(part)
        yield Block(
            digest=np.array([d for d, _, _ in part], np.uint64).reshape(-1, 2),
            fingerprint=np.array([[0, 0, 0, f] for _, f, _ in part], np.uint64).reshape(-1, 4),
            metadata_hash=np.array([[m, 0, 0, 0] for _, _, m in part], np.uint64).reshape(-1, 4),
        )


def cuts(sizes: list[int]) -> Iterator[int]:
    """The sizes of the blocks, repeated for ever; the last of each repetition is never 0."""
    while True:
        yield from sizes
        yield 3


def whole(changes: Iterator[Changes]) -> dict[str, object]:
    """The changes of all stretches in one dictionary."""
    found = list(changes)

    def positions(name: str) -> list[int]:
        return [p for c in found for p in getattr(c, name).position.tolist()]

    kinds = {name: positions(name) for name in ("new", "changed", "metadata_only", "duplicates")}
    deleted = [tuple(d) for c in found for d in c.deleted.tolist()]
    return {**kinds, "deleted": deleted, "unchanged": sum(c.unchanged for c in found)}


def model(source: list[Row], target: dict[Digest, tuple[int, int]]) -> dict[str, object]:
    """The result that the diff must give."""
    times = Counter(d for d, _, _ in source)
    single = [(i, d, f, m) for i, (d, f, m) in enumerate(source) if times[d] == 1]
    known = [(i, (f, m), target[d]) for i, d, f, m in single if d in target]
    return {
        "new": [i for i, d, _, _ in single if d not in target],
        "changed": [i for i, ours, theirs in known if ours[0] != theirs[0]],
        "metadata_only": [i for i, ours, theirs in known if ours[0] == theirs[0] and ours[1] != theirs[1]],
        "duplicates": [i for i, (d, _, _) in enumerate(source) if times[d] > 1],
        "deleted": sorted(d for d in target if times[d] != 1),
        "unchanged": sum(ours == theirs for _, ours, theirs in known),
    }


@given(_SOURCE, _TARGET, st.lists(st.integers(0, 4), max_size=5), st.lists(st.integers(0, 4), max_size=5))
def test_it_agrees_with_the_model(
    source: list[Row], target: dict[Digest, tuple[int, int]], ours: list[int], theirs: list[int]
) -> None:
    stored = [(d, f, m) for d, (f, m) in sorted(target.items())]
    assert whole(diff(blocks(source, cuts(ours)), blocks(stored, cuts(theirs)))) == model(source, target)


@given(st.permutations(range(6)))
def test_fingerprints_that_change_places_are_changes_of_their_keys(order: list[int]) -> None:
    source = [((i, 0), order[i], 0) for i in range(6)]
    target = {(i, 0): (i, 0) for i in range(6)}
    found = whole(diff(blocks(source, cuts([2])), blocks([(d, *v) for d, v in target.items()], cuts([1]))))
    assert found["changed"] == [i for i in range(6) if order[i] != i]
    assert (found["new"], found["deleted"]) == ([], [])


def test_the_digests_of_changed_rows_are_theirs() -> None:
    source: list[Row] = [((1, 0), 5, 0), ((1, 1), 6, 0), ((2, 0), 7, 0)]
    found = list(diff(blocks(source, cuts([9])), blocks([((1, 1), 0, 0)], cuts([9]))))
    assert [d for c in found for d in c.changed.digest.tolist()] == [[1, 1]]
    assert [d for c in found for d in c.new.digest.tolist()] == [[1, 0], [2, 0]]


@pytest.mark.parametrize("size", [1, 2, 5])
def test_streams_that_do_not_ascend_are_refused(size: int) -> None:
    falling: list[Row] = [((1, 5), 0, 0), ((2, 0), 0, 0), ((1, 9), 0, 0)]
    rising: list[Row] = [((i, 0), 0, 0) for i in range(5)]
    with pytest.raises(ValueError, match="source's rows do not ascend"):
        list(diff(blocks(falling, cuts([size])), blocks(rising, cuts([size]))))
    with pytest.raises(ValueError, match="target's rows do not ascend"):
        list(diff(blocks(rising, cuts([size])), blocks(falling, cuts([size]))))
    with pytest.raises(ValueError, match="target has a key digest twice"):
        list(diff(blocks([], cuts([1])), blocks([((1, 0), 0, 0)] * 2, cuts([size]))))
