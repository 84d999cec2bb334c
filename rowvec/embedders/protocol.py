"""The interface of every embedder: a stream of texts or images in, a stream of answers out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from rowvec.embedders.budget import UNLIMITED, BudgetHold
from rowvec.errors import RowError
from rowvec.pipeline import embedders
from rowvec.vectors.fingerprint import Identity
from rowvec.vectors.layout import Embeddings


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The outcome of one request: vectors for some of the texts or images, and an error for each of the others."""

    positions: npt.NDArray[np.int64]
    """``(n,)``: which texts or images have a vector, counted from 0 over the whole stream."""
    vectors: Embeddings
    """``(n, d)``, finite, checked; row i belongs to ``positions[i]``."""
    billed: int = 0
    """What the provider bills for the request, in its own unit: tokens of texts, transactions of an image embedder."""
    rejected: dict[int, RowError] = field(default_factory=dict[int, RowError])
    """Position of each text or image that cannot be embedded, with the reason."""


def without_vectors(rejected: dict[int, RowError], dimensions: int, *, billed: int = 0) -> Answer:
    """An answer that only rejects texts or images; its ``vectors`` are ``(0, dimensions)``."""
    nothing = np.empty((0, dimensions), np.float32)
    return Answer(positions=np.empty(0, np.int64), vectors=nothing, billed=billed, rejected=rejected)


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """An image to be embedded."""

    name: str
    """Shown in errors."""
    media_type: str
    """For example ``image/png``."""
    read: Callable[[], bytes]
    """Reads the file's bytes. Called only when the image is sent, so that a stream of images costs no memory."""


class Embedder(Protocol):
    """Makes vectors of texts."""

    @property
    def identity(self) -> Identity:
        """What the vectors depend on; part of every fingerprint."""
        ...

    @property
    def paid(self) -> bool:
        """Whether a vector costs money. If so, each answer is made durable before the next one is awaited."""
        ...

    def embed(self, texts: Iterable[str], budget: BudgetHold = UNLIMITED) -> Iterator[Answer]:
        """Answers as they arrive, in any order; each text is in exactly one of them.

        ``texts`` is read lazily: never much further than the requests in flight. The texts must be distinct and not
        blank. Money is reserved from ``budget`` before each request that costs some. Raises a ``FatalError`` or, after
        the last of its own retries, a ``RetriableError``.
        """
        ...

    def embed_queries(self, texts: Iterable[str]) -> Iterator[Answer]:
        """Like ``embed``, for texts to search by; some models want another prefix or another setting for them."""
        ...

    def count_tokens(self, texts: list[str]) -> int:
        """What the provider would bill for these texts, in the unit of ``Answer.billed``; 0 if nothing is billed."""
        ...

    def cost(self, tokens: int) -> float:
        """US dollars for this many units of ``Answer.billed``."""
        ...


class ImageEmbedder(Embedder, Protocol):
    """Makes vectors of images, and of texts in the same space; ``embed`` raises ``UsageError`` if it takes no texts."""

    def embed_images(self, images: Iterable[Image], budget: BudgetHold = UNLIMITED) -> Iterator[Answer]:
        """Like ``embed``, for images: positions count the stream, and each image is in exactly one answer.

        An image that cannot be decoded, or that the provider refuses, is rejected by itself. If ``read`` raises
        anything except a ``RowError``, that passes through.
        """
        ...


def identity_of(config: embedders.Embedder, preprocessing: int) -> Identity:
    """The identity of an embedder whose vectors depend on kind, model, dimensions, preprocessing and prefix alone."""
    return Identity(
        provider=config.kind,
        model=config.model,
        dimensions=config.dimensions,
        preprocessing=preprocessing,
        document_prefix=config.document_prefix if isinstance(config, embedders.TextEmbedder) else "",
    )


class QueriesLikeDocuments:
    """Mix-in for an embedder that treats a text to search by like any other."""

    def embed_queries(self: Embedder, texts: Iterable[str]) -> Iterator[Answer]:
        """See ``Embedder``."""
        return self.embed(texts)


class Unbilled:
    """Mix-in for an embedder that runs in this process and costs nothing."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity

    @property
    def identity(self) -> Identity:
        """See ``Embedder``."""
        return self._identity

    @property
    def paid(self) -> bool:
        """False."""
        return False

    def count_tokens(self, texts: list[str]) -> int:
        """0: nothing is billed."""
        del texts
        return 0

    def cost(self, tokens: int) -> float:
        """0: nothing is billed."""
        del tokens
        return 0.0


class PricedByTransaction:
    """Mix-in for an embedder that is billed by transaction: one per text or image."""

    def __init__(self, usd_per_thousand: float | None) -> None:
        """``usd_per_thousand``: the pipeline's price of 1,000 transactions; None if it names none."""
        self._usd_per_thousand = usd_per_thousand or 0.0

    @property
    def paid(self) -> bool:
        """True: a server of one's own costs time, at least."""
        return True

    def count_tokens(self, texts: list[str]) -> int:
        """Transactions: one per text."""
        return len(texts)

    def cost(self, tokens: int) -> float:
        """US dollars for this many transactions; 0 if the pipeline names no price."""
        return tokens * self._usd_per_thousand / 1000
