"""A shorter vector from a longer one that was paid for: models trained so (Matryoshka) put what matters first."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from rowvec.vectors.fingerprint import Identity


def can_be_cut(identity: Identity) -> bool:
    """Whether the provider itself shortens this model's vectors by cutting them and making them one long.

    OpenAI says so of text-embedding-3 and its successors; an Azure deployment's name does not tell the model.
    """
    if identity.provider == "openai":
        return identity.model.startswith("text-embedding-3")
    return identity.provider == "local"


def cut(vectors: npt.NDArray[np.float32], dimensions: int) -> npt.NDArray[np.float32]:
    """The first ``dimensions`` of ``(n, d)`` vectors, each made one long again; ``(n, dimensions)``."""
    heads = vectors[:, :dimensions].astype(np.float64)
    norms = np.linalg.norm(heads, axis=1, keepdims=True)
    return (heads / np.where(norms > 0, norms, 1)).astype(np.float32)
