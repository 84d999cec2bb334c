"""Checks that apply to every kind of embedder: texts that none can take, and vectors that no search could find."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from rowvec.errors import RowError
from rowvec.vectors.layout import Vectors


def refusal(text: str) -> RowError | None:
    """Why the text cannot be embedded anywhere, or None."""
    if "\0" in text:
        return RowError("invalid_input", f"the text holds a NUL character (at {text.index(chr(0)):,})")
    # Most texts are ASCII, and Python knows that of a str without a look at its characters.
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            return RowError("invalid_input", f"the text holds half a surrogate pair (at {error.start:,})")
    return None


_SMALLEST = np.finfo(np.float32).tiny


def usable(vectors: Vectors) -> npt.NDArray[np.bool_]:
    """``(n,)``: which rows of ``(n, d)`` have a direction in float32 arithmetic.

    The squared norm is computed in float32, as pgvector computes it. If it is NaN, infinite or underflows, the cosine
    distance is NaN and no search ever finds the row.
    """
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        squared = np.einsum("ij,ij->i", vectors, vectors, dtype=np.float32)
    return np.isfinite(squared) & (squared >= _SMALLEST)


def defect(vector: Vectors) -> str:
    """What is wrong with a vector ``(d,)`` that is not usable."""
    if np.isnan(vector).any():
        return "the vector holds NaN"
    if np.isinf(vector).any():
        return "the vector holds an infinity"
    if not vector.any():
        return "the vector is zero"
    return "the vector's norm is beyond what float32 can hold"
