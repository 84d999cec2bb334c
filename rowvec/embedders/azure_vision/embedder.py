"""Vectors of images and texts in one space, by Azure AI Vision's multimodal embeddings."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import cast
from urllib.parse import urlsplit

import httpx2

from rowvec.embedders.azure_vision.requests import Item, VisionEndpoint, VisionRequests
from rowvec.embedders.budget import UNLIMITED, BudgetHold
from rowvec.embedders.checks import refusal
from rowvec.embedders.protocol import (
    Answer,
    Image,
    PricedByTransaction,
    QueriesLikeDocuments,
    identity_of,
    without_vectors,
)
from rowvec.embedders.provider.concurrency import in_flight
from rowvec.embedders.provider.deadline import DeadlineTransport
from rowvec.embedders.provider.endpoint import ENTRA, entra_token, header_value, web_address
from rowvec.embedders.rate_limit.limiter import Clock, Pace, RateLimitAccount, Schedule, SystemClock, pace_of
from rowvec.errors import RowError
from rowvec.pipeline.embedders import AzureVisionEmbedder
from rowvec.vectors.fingerprint import Identity

_PREPROCESSING = 1


class AzureVision(QueriesLikeDocuments, PricedByTransaction):
    """An embedder behind ``retrieval:vectorizeImage`` and ``retrieval:vectorizeText``.

    Vectors keep their length, which is near 92 for images: distances are by angle, so the length does not matter.
    """

    def __init__(self, config: AzureVisionEmbedder, clock: Clock | None = None) -> None:
        """Raises ``UsageError`` if no request could succeed. ``clock``: the system's if None; tests pass their own."""
        super().__init__(config.cost_per_thousand_transactions)
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
        self._has_worked = threading.Event()

    @property
    def identity(self) -> Identity:
        """The model is the model version. The address is not part of it, because a resource may move."""
        return identity_of(self._config, _PREPROCESSING)

    @property
    def account(self) -> RateLimitAccount:
        """See ``Paced``."""
        return RateLimitAccount(address=self._base_url, model=self._config.model, secret=self._secret)

    @property
    def pace(self) -> Pace:
        """See ``Paced``."""
        return self._pace

    def embed(self, texts: Iterable[str], budget: BudgetHold = UNLIMITED) -> Iterator[Answer]:
        """See ``Embedder``; one transaction per text."""
        return self._embed(enumerate(texts), budget)

    def embed_images(self, images: Iterable[Image], budget: BudgetHold = UNLIMITED) -> Iterator[Answer]:
        """See ``ImageEmbedder``; one transaction per image. ``read`` is called in many threads."""
        return self._embed(enumerate(images), budget)

    def _embed(self, contents: Iterable[tuple[int, Image | str]], budget: BudgetHold) -> Iterator[Answer]:
        config = self._config
        limits = httpx2.Limits(max_connections=config.concurrency, max_keepalive_connections=config.concurrency)
        rejected: dict[int, RowError] = {}
        with httpx2.Client(timeout=config.timeout_seconds, transport=DeadlineTransport(limits=limits)) as client:
            requests = VisionRequests(
                endpoint=VisionEndpoint(
                    client=client,
                    base_url=self._base_url,
                    address=cast("str", urlsplit(self._base_url).hostname),
                    api_version=config.api_version,
                    model=config.model,
                    sign_in=self._sign_in,
                    secret="" if self._secret == ENTRA else self._secret,
                    max_attempts=config.max_attempts,
                ),
                has_worked=self._has_worked,
                pace=self._pace,
                clock=self._clock,
                budget=budget,
            )
            for answer in in_flight(requests.answers, _sendable(contents, rejected), config.concurrency):
                if rejected:
                    yield self._without_vectors(rejected)
                    rejected.clear()
                yield answer
        if rejected:
            yield self._without_vectors(rejected)

    def _without_vectors(self, rejected: dict[int, RowError]) -> Answer:
        return without_vectors(dict(rejected), self._config.dimensions)

    def _sign_in(self) -> dict[str, str]:
        if self._secret == ENTRA:
            return {"Authorization": f"Bearer {self._entra_token()}"}
        return {"Ocp-Apim-Subscription-Key": self._secret}

    @cached_property
    def _entra_token(self) -> Callable[[], str]:
        return entra_token("Azure AI Vision", "Cognitive Services User")


def _sendable(contents: Iterable[tuple[int, Image | str]], rejected: dict[int, RowError]) -> Iterator[Item]:
    """What can be sent; texts that no embedder can take are put into ``rejected``."""
    for position, content in contents:
        unreadable = refusal(content) if isinstance(content, str) else None
        if unreadable is None:
            yield Item(position, content)
        else:
            rejected[position] = unreadable
