"""Shorter vectors from longer ones that were paid for: Matryoshka models put the important dimensions first."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from rowvec.vectors.fingerprint import Identity


def can_be_cut(identity: Identity) -> bool:
    """Whether the provider shortens this model's vectors by cutting them and scaling them to length 1.

    OpenAI documents this for text-embedding-3 and later. The name of an Azure deployment does not tell its model.
    """
    if identity.provider == "openai":
        return identity.model.startswith("text-embedding-3")
    return identity.provider == "local"


def cut(vectors: npt.NDArray[np.float32], dimensions: int) -> npt.NDArray[np.float32]:
    """The first ``dimensions`` of ``(n, d)`` vectors, each scaled to length 1 again; ``(n, dimensions)``."""
    heads = vectors[:, :dimensions].astype(np.float64)
    norms = np.linalg.norm(heads, axis=1, keepdims=True)
    return (heads / np.where(norms > 0, norms, 1)).astype(np.float32)
