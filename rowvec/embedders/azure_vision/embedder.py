"""Vectors of images and texts in one space, by Azure AI Vision's multimodal embeddings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import cast
from urllib.parse import urlsplit

import httpx
import numpy as np

from rowvec.embedders.azure_vision.requests import DIMENSIONS, Endpoint, Item, Understanding, VisionRequests
from rowvec.embedders.checks import refusal
from rowvec.embedders.protocol import Answer, Image
from rowvec.embedders.provider.budget import FREE, Purse
from rowvec.embedders.provider.concurrency import in_flight
from rowvec.embedders.provider.endpoint import ENTRA, entra_token, header_value, web_address
from rowvec.embedders.rate_limit.limiter import Account, Clock, Pace, Schedule, SystemClock, pace_of
from rowvec.errors import RowError
from rowvec.pipeline.embedders import AzureVisionEmbedder
from rowvec.vectors.fingerprint import Identity

_PREPROCESSING = 1


class AzureVision:
    """An embedder behind ``retrieval:vectorizeImage`` and ``retrieval:vectorizeText``.

    Vectors are kept as they come, with a length near 92 for images: distances are by angle, to which it is nothing.
    """

    def __init__(self, config: AzureVisionEmbedder, clock: Clock | None = None) -> None:
        """Raises ``UsageError`` where no request could succeed. ``clock`` is the system's; a test may bring its own."""
        self._config = config
        self._secret = header_value(config.api_key)
        self._base_url = web_address(config.base_url, "write https://NAME.cognitiveservices.azure.com").rstrip("/")
        self._clock = clock or SystemClock()
        per_minute = config.requests_per_second * 60 if config.requests_per_second else None
        self._pace = (
            pace_of(self.account, per_minute, None)
            if clock is None
            else Pace(Schedule(requests_per_minute=per_minute), clock)
        )
        self._understanding = Understanding()

    @property
    def identity(self) -> Identity:
        """The model version is the model. The address is not in it: a resource may move."""
        return Identity(
            provider="azure_vision", model=self._config.model, dimensions=DIMENSIONS, preprocessing=_PREPROCESSING
        )

    @property
    def paid(self) -> bool:
        """Each request is a transaction on somebody's bill."""
        return True

    @property
    def account(self) -> Account:
        """See ``Paced``."""
        return Account(address=self._base_url, model=self._config.model, secret=self._secret)

    @property
    def pace(self) -> Pace:
        """See ``Paced``."""
        return self._pace

    def embed(self, texts: Iterable[str], purse: Purse = FREE) -> Iterator[Answer]:
        """See ``Embedder``; one transaction a text."""
        return self._embed(enumerate(texts), purse)

    def embed_images(self, images: Iterable[Image], purse: Purse = FREE) -> Iterator[Answer]:
        """See ``ImageEmbedder``; one transaction an image, whose bytes are sent. ``read`` is called in many threads."""
        return self._embed(enumerate(images), purse)

    def count_tokens(self, texts: list[str]) -> int:
        """Transactions: one each."""
        return len(texts)

    def cost(self, tokens: int) -> float:
        """US dollars for so many transactions, by the pipeline's price; 0 where it names none."""
        return tokens * (self._config.cost_per_thousand_transactions or 0.0) / 1000

    def _embed(self, contents: Iterable[tuple[int, Image | str]], purse: Purse) -> Iterator[Answer]:
        config = self._config
        limits = httpx.Limits(max_connections=config.concurrency, max_keepalive_connections=config.concurrency)
        rejected: dict[int, RowError] = {}
        with httpx.Client(timeout=config.timeout_seconds, limits=limits) as client:
            requests = VisionRequests(
                endpoint=Endpoint(
                    client=client,
                    base_url=self._base_url,
                    address=cast("str", urlsplit(self._base_url).hostname),
                    api_version=config.api_version,
                    model=config.model,
                    sign_in=self._sign_in,
                    secret="" if self._secret == ENTRA else self._secret,
                    max_attempts=config.max_attempts,
                ),
                understanding=self._understanding,
                pace=self._pace,
                clock=self._clock,
                purse=purse,
            )
            for answer in in_flight(requests.answers, _sendable(contents, rejected), config.concurrency):
                if rejected:
                    yield _without_vectors(rejected)
                    rejected.clear()
                yield answer
        if rejected:
            yield _without_vectors(rejected)

    def _sign_in(self) -> dict[str, str]:
        if self._secret == ENTRA:
            return {"Authorization": f"Bearer {self._entra_token()}"}
        return {"Ocp-Apim-Subscription-Key": self._secret}

    @cached_property
    def _entra_token(self) -> Callable[[], str]:
        return entra_token("Azure AI Vision", "Cognitive Services User")


def _sendable(contents: Iterable[tuple[int, Image | str]], rejected: dict[int, RowError]) -> Iterator[Item]:
    """What can be sent at all; the others are put into ``rejected``."""
    for position, content in contents:
        unreadable = refusal(content) if isinstance(content, str) else None
        if unreadable is None:
            yield Item(position, content)
        else:
            rejected[position] = unreadable


def _without_vectors(rejected: dict[int, RowError]) -> Answer:
    nothing = np.empty((0, DIMENSIONS), np.float32)
    return Answer(positions=np.empty(0, np.int64), vectors=nothing, rejected=dict(rejected))
