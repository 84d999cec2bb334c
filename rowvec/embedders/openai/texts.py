"""Vectors of texts by OpenAI, by Azure OpenAI, and by every server that speaks their protocol."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, cast
from urllib.parse import urlsplit

import numpy as np

from rowvec.embedders.budget import UNLIMITED, BudgetHold
from rowvec.embedders.checks import refusal
from rowvec.embedders.openai.prices import cost_per_million_tokens
from rowvec.embedders.protocol import Answer, identity_of, without_vectors
from rowvec.embedders.provider import tokens as tokenizer
from rowvec.embedders.provider.concurrency import in_flight
from rowvec.embedders.provider.endpoint import entra_token, header_value, web_address
from rowvec.embedders.provider.packing import RequestLimits, Sized, limits_of, pack
from rowvec.embedders.provider.requests import PROBE, Requests, ServerFacts
from rowvec.embedders.rate_limit.limiter import Clock, Pace, RateLimitAccount, Schedule, SystemClock, pace_of
from rowvec.errors import RowError, UsageError
from rowvec.pipeline.embedders import OpenAIEmbedder
from rowvec.vectors.fingerprint import Identity
from rowvec.vectors.layout import Vectors

if TYPE_CHECKING:
    # Imported late below: a run that embeds nothing needs the identity only, and no client.
    from rowvec.embedders.openai.batch_api import OpenAIBatches
    from rowvec.embedders.openai.client import OpenAIEndpoint

_PREPROCESSING = 1

# For uploading or downloading a file of 200 MB on a line of half a megabit per second.
_TRANSFER_SECONDS = 3600.0

_OPENAI = "https://api.openai.com/v1"

# The longest vectors of OpenAI's models whose vectors can be shortened, by name, and the length of those that cannot.
# What other models can do is found out from the server.
_SHORTENS_FROM = {"text-embedding-3-small": 1536, "text-embedding-3-large": 3072}
_FIXED = {"text-embedding-ada-002": 1536}


class OpenAIApi:
    """An embedder behind ``POST /embeddings``."""

    def __init__(
        self,
        config: OpenAIEmbedder,
        clock: Clock | None = None,
    ) -> None:
        """Raises ``UsageError`` if no request could succeed. ``clock``: the system's if None; tests pass their own."""
        self._config = config
        self._secret = header_value(config.api_key)
        self._base_url = web_address(config.base_url or _OPENAI, "write https://HOST/v1, or leave it out for OpenAI")
        _check_dimensions(config)
        # Batches that are embedded at the same time share the pipeline's concurrency.
        self._slots = threading.BoundedSemaphore(config.concurrency)
        self._clock = clock or SystemClock()
        self._pace = self._pace_for(clock)
        fixed = config.kind == "openai" and config.model in _FIXED
        self._server = ServerFacts(
            send_dimensions=config.model not in _FIXED,
            ask_about_dimensions=not fixed and config.model not in _SHORTENS_FROM,
        )

    @property
    def identity(self) -> Identity:
        """Kind, model (Azure: the deployment), dimensions. The address is not part of it, because a model may move."""
        return identity_of(self._config, _PREPROCESSING)

    @property
    def paid(self) -> bool:
        """True: a server of one's own costs time, at least."""
        return True

    @property
    def account(self) -> RateLimitAccount:
        """See ``Paced``."""
        return RateLimitAccount(address=self._base_url, model=self._config.model, secret=self._secret)

    @property
    def pace(self) -> Pace:
        """See ``Paced``."""
        return self._pace

    def embed(self, texts: Iterable[str], budget: BudgetHold = UNLIMITED) -> Iterator[Answer]:
        """See ``Embedder``."""
        return self._embed(texts, self._config.document_prefix, budget)

    def embed_queries(self, texts: Iterable[str]) -> Iterator[Answer]:
        """See ``Embedder``."""
        return self._embed(texts, self._config.query_prefix, UNLIMITED)

    def _embed(self, texts: Iterable[str], prefix: str, budget: BudgetHold) -> Iterator[Answer]:
        config = self._config
        rejected: dict[int, RowError] = {}
        limits = limits_of(
            config.max_batch_inputs,
            config.max_batch_tokens,
            requests_per_minute=config.requests_per_minute,
            tokens_per_minute=config.tokens_per_minute,
        )
        # A text of the greatest permitted length must fit into a request of its own.
        limits = RequestLimits(inputs=limits.inputs, tokens=max(limits.tokens, self._max_input_tokens))
        batches = pack(self._sized(texts, prefix, rejected), limits)
        with self._endpoint() as endpoint:
            requests = Requests(
                endpoint=endpoint,
                post=endpoint.post,
                probe=PROBE,
                server=self._server,
                pace=self._pace,
                clock=self._clock,
                budget=budget,
            )
            for answer in in_flight(requests.answers, batches, config.concurrency, self._slots):
                if rejected:
                    yield self._without_vectors(rejected)
                    rejected.clear()
                yield answer if len(answer.positions) else replace(answer, vectors=self._no_vectors())
        if rejected:
            yield self._without_vectors(rejected)

    @contextmanager
    def batch_api(self) -> Generator[OpenAIBatches]:
        """The provider's Batch API, with the same account."""
        from rowvec.embedders.openai.batch_api import OpenAIBatches

        with self._endpoint() as endpoint:
            jobs = self._config.jobs
            model = (jobs and jobs.model) or self._config.model
            yield OpenAIBatches(
                replace(endpoint, model=model),
                self._server,
                transfer_seconds=_TRANSFER_SECONDS,
                clock=self._clock,
            )

    def count_tokens(self, texts: list[str]) -> int:
        """Tokens of the texts as they would be sent: exact for OpenAI's models, an estimate for others."""
        total, prefix = 0, self._config.document_prefix
        for text in texts:
            tokens = tokenizer.count(prefix + text) if refusal(text) is None else 0
            if tokens > self._max_input_tokens:
                tokens = self._max_input_tokens if self._config.on_too_long == "truncate" else 0
            total += tokens
        return total

    def cost(self, tokens: int) -> float:
        """US dollars, by the pipeline's price or else the list price; 0 if neither is known."""
        return tokens * cost_per_million_tokens(self._config.model, self._config.cost_per_million_tokens) / 1e6

    @property
    def _max_input_tokens(self) -> int:
        return min(self._config.max_input_tokens, self._config.max_batch_tokens)

    def sized(self, texts: Iterable[str], rejected: dict[int, RowError]) -> Iterator[Sized]:
        """The documents that can be sent, prefix and all, with their tokens; the others are put into ``rejected``."""
        return self._sized(texts, self._config.document_prefix, rejected)

    def _sized(self, texts: Iterable[str], prefix: str, rejected: dict[int, RowError]) -> Iterator[Sized]:
        limit = self._max_input_tokens
        for position, text in enumerate(texts):
            unreadable = refusal(text)
            if unreadable is not None:
                rejected[position] = unreadable
                continue
            text = prefix + text
            tokens = tokenizer.count(text)
            if tokens <= limit:
                yield Sized(position, text, tokens)
            elif self._config.on_too_long == "truncate":
                yield Sized(position, tokenizer.truncate(text, limit), limit)
            else:
                rejected[position] = RowError("too_long", f"{tokens:,} tokens, and the model takes {limit:,}")

    @contextmanager
    def _endpoint(self) -> Generator[OpenAIEndpoint]:
        """A client for one call of ``embed``; its connections are closed at the end."""
        from rowvec.embedders.openai.client import OpenAIEndpoint, open_client

        config = self._config
        with open_client(config, self._base_url, self._secret, lambda: self._entra_token) as client:
            yield OpenAIEndpoint(
                client=client,
                model=config.model,
                address=cast("str", urlsplit(self._base_url).hostname),
                secret=self._secret,
                dimensions=config.dimensions,
                max_attempts=config.max_attempts,
            )

    @cached_property
    def _entra_token(self) -> Callable[[], str]:
        return entra_token("Azure OpenAI", "Cognitive Services OpenAI User")

    def _pace_for(self, clock: Clock | None) -> Pace:
        config = self._config
        limits = config.requests_per_minute, config.tokens_per_minute
        if clock is None:
            return pace_of(self.account, *limits)
        return Pace(Schedule(requests_per_minute=limits[0], tokens_per_minute=limits[1]), clock)

    def _no_vectors(self) -> Vectors:
        return np.empty((0, self._config.dimensions), np.float32)

    def _without_vectors(self, rejected: dict[int, RowError]) -> Answer:
        return without_vectors(dict(rejected), self._config.dimensions)


def _check_dimensions(config: OpenAIEmbedder) -> None:
    if config.kind != "openai":
        return
    if config.model in _FIXED and config.dimensions != _FIXED[config.model]:
        raise UsageError(
            f"{config.model} gives {_FIXED[config.model]:,} dimensions and cannot shorten them; set "
            f"embedder.dimensions to {_FIXED[config.model]}"
        )
    if config.dimensions > _SHORTENS_FROM.get(config.model, config.dimensions):
        raise UsageError(
            f"{config.model} gives at most {_SHORTENS_FROM[config.model]:,} dimensions, and the pipeline wants "
            f"{config.dimensions:,}; lower embedder.dimensions"
        )
