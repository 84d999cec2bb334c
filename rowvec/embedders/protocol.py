"""What every embedder is: a stream of texts, or of images, in; a stream of answers out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from rowvec.embedders.provider.budget import FREE, Purse
from rowvec.errors import RowError
from rowvec.vectors.fingerprint import Identity
from rowvec.vectors.layout import Embeddings


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What one request brought: vectors for some of the texts or images, and those that have none."""

    positions: npt.NDArray[np.int64]
    """``(n,)``: which texts or images, counted from 0 over the whole stream given."""
    vectors: Embeddings
    """``(n, d)``, finite, checked; row i belongs to ``positions[i]``."""
    tokens: int = 0
    """Tokens the provider counted (and bills); of images, the transactions."""
    rejected: dict[int, RowError] = field(default_factory=dict[int, RowError])
    """Position of each text or image that cannot be embedded, with the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """An image on its way to a vector."""

    name: str
    """Shown in errors."""
    media_type: str
    """``image/png`` and the like."""
    read: Callable[[], bytes]
    """The file's bytes, read when it is the image's turn, so that a stream of images costs no memory."""


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

    def embed(self, texts: Iterable[str], purse: Purse = FREE) -> Iterator[Answer]:
        """Answers as they arrive, in any order; each text is in exactly one of them.

        ``texts`` is drawn from lazily: never much more than what is in flight. The texts are distinct and not blank.
        ``purse`` is asked before each request that costs money. Raises a ``FatalError`` or, when its own retries are
        used up, a ``RetriableError``.
        """
        ...

    def count_tokens(self, texts: list[str]) -> int:
        """Tokens the provider would bill for these texts; 0 where nothing is billed."""
        ...

    def cost(self, tokens: int) -> float:
        """US dollars for this many tokens."""
        ...


class ImageEmbedder(Embedder, Protocol):
    """Makes vectors of images; of texts too, in the same space, where it can: else ``embed`` raises ``UsageError``."""

    def embed_images(self, images: Iterable[Image], purse: Purse = FREE) -> Iterator[Answer]:
        """As ``embed``, of images: positions count the stream, each image is in exactly one answer.

        An image that cannot be decoded, or that the provider refuses, is rejected alone. What ``read`` raises, a
        ``RowError`` apart, passes through.
        """
        ...
