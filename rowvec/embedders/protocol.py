"""What every embedder is: a stream of texts in, a stream of answers out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from rowvec.errors import RowError
from rowvec.fingerprint import Identity
from rowvec.vector_layout import Embeddings, Vectors

__all__ = ["Answer", "Embedder", "Vectors"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What one request brought: vectors for some of the texts, and the texts that have none."""

    positions: npt.NDArray[np.int64]
    """``(n,)``: which texts, counted from 0 over the whole stream given to ``embed``."""
    vectors: Embeddings
    """``(n, d)``, finite, checked; row i belongs to ``positions[i]``."""
    tokens: int = 0
    """Tokens the provider counted (and bills)."""
    rejected: dict[int, RowError] = field(default_factory=dict[int, RowError])
    """Position of each text that cannot be embedded, with the reason."""


class Embedder(Protocol):
    """Makes vectors of texts."""

    @property
    def identity(self) -> Identity:
        """What the vectors depend on; part of every fingerprint."""
        ...

    @property
    def paid(self) -> bool:
        """Whether a vector costs money: then each answer is made durable before the next is awaited."""
        ...

    def embed(self, texts: Iterable[str]) -> Iterator[Answer]:
        """Answers as they arrive, in any order; each text is in exactly one of them.

        ``texts`` is drawn from lazily: never much more than what is in flight. The texts are distinct and not blank.
        Raises a ``FatalError`` or, when its own retries are used up, a ``RetriableError``.
        """
        ...

    def count_tokens(self, texts: list[str]) -> int:
        """Tokens the provider would bill for these texts; 0 where nothing is billed."""
        ...

    def cost(self, tokens: int) -> float:
        """US dollars for this many tokens."""
        ...
