"""Reads many sparse vectors at once, as pgvector writes them, ``{1:0.5,7:1.25}/9``; each bad one gets a reason."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pydantic_core import from_json

from rowvec.errors import RowError
from rowvec.vectors.sparse import MOST_NONZEROS, SparseVectors, ascending, ends_of

# Pairs between braces, with indices counted from 1, then the dimensions. Whether a value is a number is checked later.
_VECTOR = re.compile(r"\s*\{((?:\s*\d+\s*:[^,:{}]+)(?:,\s*\d+\s*:[^,:{}]+)*)?\s*\}\s*/\s*(\d{1,10})\s*", re.ASCII)
_SHOWN = 40
_SMALLEST = np.finfo(np.float32).tiny

Pairs = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Read:
    """Texts that have the form of a sparse vector."""

    positions: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]
    pairs: Pairs
    """``(m, 2)``: index, from 1, and value, of all texts one after the other."""


def is_sparse(text: str) -> bool:
    """Whether a text should be read as a sparse vector: no dense form contains a slash."""
    return "/" in text


def read_sparse(
    texts: Sequence[str], positions: Sequence[int], dimensions: int, rejected: dict[int, RowError]
) -> tuple[npt.NDArray[np.int64], SparseVectors]:
    """Positions ``(n,)`` and vectors of the texts with a valid one; the others go to ``rejected``, with the reason.

    Texts are read as pgvector reads them: zeros are dropped, and the pairs may come in any order.
    """
    read = _read(texts, positions, dimensions, rejected)
    rows = np.repeat(np.arange(len(read.counts)), read.counts)
    with np.errstate(over="ignore"):
        values = read.pairs[:, 1].astype(np.float32)
    kept = values != 0
    rows, numbers, values = rows[kept], read.pairs[kept, 0], values[kept]
    in_range = (numbers >= 1) & (numbers <= dimensions)
    order = np.lexsort((numbers, rows))
    found = SparseVectors(
        dimensions,
        ends_of(np.bincount(rows, minlength=len(read.counts))),
        (np.where(in_range, numbers, 1).astype(np.int64) - 1).astype(np.int32)[order],
        values[order],
    )
    bad = _defects(found, numbers[order], in_range[order])
    rejected.update({int(read.positions[row]): RowError("invalid_vector", defect) for row, defect in bad.items()})
    good = np.ones(len(found), np.bool_)
    good[list(bad)] = False
    return read.positions[good], found[good]


def _read(texts: Sequence[str], positions: Sequence[int], dimensions: int, rejected: dict[int, RowError]) -> _Read:
    insides: list[str] = []
    kept: list[int] = []
    for position, text in zip(positions, texts, strict=True):
        match = _VECTOR.fullmatch(text)
        if match is None:
            rejected[position] = _no_vector(text)
        elif int(match[2]) != dimensions:
            rejected[position] = RowError(
                "invalid_vector",
                f"the column holds a sparse vector of {int(match[2]):,} numbers, and the pipeline wants {dimensions:,}",
            )
        else:
            kept.append(position)
            insides.append(match[1] or "")
    pairs = _pairs(",".join(inside for inside in insides if inside))
    if pairs is None:
        # At least one text is no vector. Read them one by one to find it: slow, but rare.
        alone = [_pairs(inside) for inside in insides]
        for position, inside, found in zip(kept, insides, alone, strict=True):
            if found is None:
                rejected[position] = _no_vector(inside)
        whole = [(p, i, f) for p, i, f in zip(kept, insides, alone, strict=True) if f is not None]
        kept, insides = [p for p, _, _ in whole], [i for _, i, _ in whole]
        pairs = np.concatenate([np.empty((0, 2)), *(f for _, _, f in whole)])
    counts = np.array([inside.count(":") for inside in insides], np.int64)
    return _Read(np.array(kept, np.int64), counts, pairs)


def _pairs(inside: str) -> Pairs | None:
    """``(m, 2)``; None if a value is not a number."""
    flat = inside.replace(":", ",")
    try:
        # The fastest parser for what Postgres writes.
        numbers = from_json(f"[{flat}]")
    except ValueError:
        # Slower, but it also reads what Python writes: "1." and "inf".
        try:
            numbers = [float(number) for number in flat.split(",")]
        except ValueError:
            return None
    try:
        return np.array(numbers, np.float64).reshape(-1, 2)
    except (ValueError, TypeError, OverflowError):
        return None


def _defects(vectors: SparseVectors, numbers: Pairs, in_range: npt.NDArray[np.bool_]) -> dict[int, str]:
    """What is wrong with each unusable vector, by its row."""
    rows, dimensions = vectors.rows, vectors.dimensions
    bad: dict[int, str] = {}
    for at in np.flatnonzero(~in_range):
        bad.setdefault(int(rows[at]), f"the index {numbers[at]:,.0f} is not one of 1 to {dimensions:,}")
    for row in np.flatnonzero(vectors.nonzeros > MOST_NONZEROS):
        defect = f"the vector has {vectors.nonzeros[row]:,} nonzeros, and pgvector holds at most {MOST_NONZEROS:,}"
        bad.setdefault(int(row), defect)
    for row in np.flatnonzero(~ascending(vectors)):
        own = vectors[int(row)].indices
        twice = own[1:][np.diff(own) == 0]
        bad.setdefault(int(row), f"the index {int(twice[0]) + 1 if len(twice) else 0:,} occurs twice")
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        # In float32, as pgvector computes it: if it is NaN, infinite or underflows, no search ever finds the row.
        squared = np.bincount(rows, vectors.values.astype(np.float64) ** 2, len(vectors)).astype(np.float32)
    for row in np.flatnonzero(~(np.isfinite(squared) & (squared >= _SMALLEST))):
        bad.setdefault(int(row), _norm_defect(vectors[int(row)].values))
    return bad


def _norm_defect(values: npt.NDArray[np.float32]) -> str:
    if np.isnan(values).any():
        return "the vector holds NaN"
    if np.isinf(values).any():
        return "the vector holds an infinity"
    return "the vector's norm is beyond what float32 can hold" if len(values) else "the vector is zero"


def _no_vector(text: str) -> RowError:
    return RowError(
        "invalid_vector", f"the column holds no sparse vector of numbers, {{1:0.5,7:2}}/9: {text[:_SHOWN]!r}"
    )
