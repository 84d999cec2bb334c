"""What no embedder can take, whatever its kind: text that is no Unicode, or that Postgres could not store."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from rowvec.errors import RowError
from rowvec.vectors.layout import Vectors


def refusal(text: str) -> RowError | None:
    """Why the text cannot be embedded anywhere, or None."""
    if "\0" in text:
        return RowError("invalid_input", f"the text holds a NUL character (at {text.index(chr(0)):,})")
    # A str of ASCII, by far the most frequent, is known to be one without a look at its characters.
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            return RowError("invalid_input", f"the text holds half a surrogate pair (at {error.start:,})")
    return None


_SMALLEST = np.finfo(np.float32).tiny


def usable(vectors: Vectors) -> npt.NDArray[np.bool_]:
    """``(n,)``: which rows have a direction that float32 arithmetic, pgvector's too, can tell.

    The square of the norm is formed in float32 as pgvector forms it: where it is NaN, infinite or vanishes, the
    cosine distance is NaN and no search ever finds the row.
    """
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        squared = np.einsum("ij,ij->i", vectors, vectors, dtype=np.float32)
    return np.isfinite(squared) & (squared >= _SMALLEST)


def defect(vector: Vectors) -> str:
    """What is wrong with a row that is not usable."""
    if np.isnan(vector).any():
        return "the vector holds NaN"
    if np.isinf(vector).any():
        return "the vector holds an infinity"
    if not vector.any():
        return "the vector is zero"
    return "the vector's norm is beyond what float32 can hold"
