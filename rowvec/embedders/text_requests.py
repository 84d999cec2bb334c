"""Runs the model of a plug-in as an ``Embedder``: packing, prefixes, pace, retries, prices and checks."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import cast
from urllib.parse import urlsplit

import numpy as np

from rowvec.embedders.budget import UNLIMITED, BudgetHold
from rowvec.embedders.checks import refusal
from rowvec.embedders.plugin import Purpose, TextModel
from rowvec.embedders.protocol import Answer, identity_of, without_vectors
from rowvec.embedders.provider.concurrency import in_flight
from rowvec.embedders.provider.packing import RequestLimits, Sized, limits_of, pack
from rowvec.embedders.provider.refusal import Refusal
from rowvec.embedders.provider.requests import PROBE, EndpointSettings, Requests, ServerFacts
from rowvec.embedders.provider.response import Reply
from rowvec.embedders.rate_limit.limiter import Clock, Pace, RateLimitAccount, Schedule, SystemClock, pace_of
from rowvec.errors import EmbedderRefused, RowError, RowvecError
from rowvec.pipeline.embedder_kinds import EMBEDDERS
from rowvec.pipeline.embedders import Embedder, PaidEmbedder, TextEmbedder
from rowvec.vectors.fingerprint import Identity

# The keys of every embedder; they are in the identity by themselves, or change no vector.
_SHARED = frozenset({*TextEmbedder.model_fields, *PaidEmbedder.model_fields, "base_url", "api_key"})


class TextRequests:
    """An embedder in this process that costs nothing: one call at a time, no pace, no second try."""

    def __init__(self, config: TextEmbedder, model: TextModel) -> None:
        self._config, self._model = config, model
        self._server = ServerFacts(send_dimensions=False, ask_about_dimensions=False)
        self._slots = threading.BoundedSemaphore(1)
        self._clock: Clock = SystemClock()
        self._pace = Pace(Schedule(), self._clock)
        self._limits = RequestLimits(inputs=model.most_texts, tokens=model.most_texts)
        self._attempts = 1

    @property
    def identity(self) -> Identity:
        """Kind, model, dimensions, prefix, and the plug-in's version and own keys."""
        config = self._config
        unimportant = _SHARED | getattr(config, "NO_EFFECT", frozenset())
        own = config.model_dump(mode="json", exclude_defaults=True, exclude=set(unimportant))
        version = self._model.version
        if own:
            digest = hashlib.sha256(json.dumps([version, own], sort_keys=True).encode()).digest()
            version = int.from_bytes(digest[:6])
        return identity_of(cast("Embedder", config), version)

    @property
    def paid(self) -> bool:
        """False."""
        return False

    def embed(self, texts: Iterable[str], budget: BudgetHold = UNLIMITED) -> Iterator[Answer]:
        """See ``Embedder``."""
        return self._embed(texts, self._config.document_prefix, "document", budget)

    def embed_queries(self, texts: Iterable[str]) -> Iterator[Answer]:
        """See ``Embedder``."""
        return self._embed(texts, self._config.query_prefix, "query", UNLIMITED)

    def count_tokens(self, texts: list[str]) -> int:
        """0: nothing is billed."""
        del texts
        return 0

    def cost(self, tokens: int) -> float:
        """0: nothing is billed."""
        del tokens
        return 0.0

    def _embed(self, texts: Iterable[str], prefix: str, purpose: Purpose, budget: BudgetHold) -> Iterator[Answer]:
        config, dimensions = self._config, self._config.dimensions
        rejected: dict[int, RowError] = {}
        caller = _Caller(self._model, purpose, config.kind)
        requests = Requests(
            endpoint=EndpointSettings(
                model=config.model,
                address=urlsplit(self._model.account).hostname or config.kind,
                dimensions=dimensions,
                max_attempts=self._attempts,
            ),
            post=caller.post,
            probe=PROBE,
            server=self._server,
            pace=self._pace,
            clock=self._clock,
            budget=budget,
        )
        batches = pack(self._sized(texts, prefix, rejected), self._limits)
        for answer in in_flight(requests.answers, batches, self._concurrency, self._slots):
            if rejected:
                yield without_vectors(dict(rejected), dimensions)
                rejected.clear()
            vectors = answer.vectors if len(answer.positions) else np.empty((0, dimensions), np.float32)
            yield replace(answer, vectors=vectors, billed=answer.billed if self.paid else 0)
        if rejected:
            yield without_vectors(dict(rejected), dimensions)

    @property
    def _concurrency(self) -> int:
        return 1

    def _sized(self, texts: Iterable[str], prefix: str, rejected: dict[int, RowError]) -> Iterator[Sized]:
        """The texts that can be sent; the others are put into ``rejected``."""
        for position, text in enumerate(texts):
            unreadable = refusal(text)
            if unreadable is not None:
                rejected[position] = unreadable
                continue
            sized = self._measured(position, prefix + text)
            if isinstance(sized, Sized):
                yield sized
            else:
                rejected[position] = sized

    def _measured(self, position: int, text: str) -> Sized | RowError:
        # Nothing is billed by tokens, and to count them takes longer than some models do.
        return Sized(position, text, 1)


class PaidTextRequests(TextRequests):
    """An embedder behind a server: requests at once, packed by tokens, at the account's pace, each tried again."""

    def __init__(self, config: PaidEmbedder, model: TextModel, clock: Clock | None = None) -> None:
        """``clock``: the system's if None; tests pass their own."""
        super().__init__(config, model)
        self._paid = config
        self._slots = threading.BoundedSemaphore(config.concurrency)
        self._clock = clock or SystemClock()
        limits = config.requests_per_minute, config.tokens_per_minute
        self._pace = (
            pace_of(self.account, *limits)
            if clock is None
            else Pace(Schedule(requests_per_minute=limits[0], tokens_per_minute=limits[1]), clock)
        )
        packed = limits_of(
            config.max_batch_inputs, config.max_batch_tokens, requests_per_minute=limits[0], tokens_per_minute=limits[1]
        )
        # A text of the greatest permitted length must fit into a request of its own.
        self._limits = RequestLimits(inputs=packed.inputs, tokens=max(packed.tokens, self._longest))
        self._attempts = config.max_attempts

    @property
    def paid(self) -> bool:
        """True: a server of one's own costs time, at least."""
        return True

    @property
    def account(self) -> RateLimitAccount:
        """See ``Paced``."""
        secret = getattr(self._config, "api_key", None) or ""
        return RateLimitAccount(address=self._model.account, model=self._config.model, secret=secret)

    @property
    def pace(self) -> Pace:
        """See ``Paced``."""
        return self._pace

    def count_tokens(self, texts: list[str]) -> int:
        """Tokens of the documents as they would be sent, by the model's count; a rejected text has none."""
        sizes = self._sized(texts, self._config.document_prefix, {})
        return sum(sized.tokens for sized in sizes)

    def cost(self, tokens: int) -> float:
        """US dollars, by the pipeline's price or else the model's list price; 0 if neither is known."""
        own = self._paid.cost_per_million_tokens
        return tokens * (own if own is not None else self._model.usd_per_million_tokens() or 0.0) / 1e6

    @property
    def _concurrency(self) -> int:
        return self._paid.concurrency

    @property
    def _longest(self) -> int:
        return min(self._paid.max_input_tokens, self._paid.max_batch_tokens)

    def _measured(self, position: int, text: str) -> Sized | RowError:
        count, limit = self._model.count_tokens(text), self._longest
        if count <= limit:
            return Sized(position, text, count)
        if self._paid.on_too_long == "reject":
            return RowError("too_long", f"{count:,} tokens, and the model takes {limit:,}")
        cut = self._cut(text, limit)
        return Sized(position, cut, self._model.count_tokens(cut))

    def _cut(self, text: str, limit: int) -> str:
        """About the longest prefix of at most ``limit`` tokens: found by halving, because only counts are known."""
        fits, too_long = 0, len(text)
        while too_long - fits > 1:
            middle = (fits + too_long) // 2
            if self._model.count_tokens(text[:middle]) <= limit:
                fits = middle
            else:
                too_long = middle
        return text[:fits]


@dataclass(frozen=True, slots=True)
class _Caller:
    """Calls the model for one purpose; used by many threads at once."""

    model: TextModel
    purpose: Purpose
    kind: str

    def post(self, part: tuple[Sized, ...], with_dimensions: bool) -> Reply | Refusal:
        """See ``requests.Post``. Raises what ``TextModel.embed`` raises, as an error of ours."""
        del with_dimensions
        try:
            answered = self.model.embed([one.text for one in part], self.purpose)
        except RowvecError:
            raise
        except Exception as error:
            raise EmbedderRefused(
                f"the embedder {self.kind} of {EMBEDDERS.plugin_of(self.kind)} failed ({type(error).__name__}: "
                f"{error}): that is a mistake in it, or in what it needs; nothing embedded so far is lost"
            ) from error
        return answered if isinstance(answered, Reply | Refusal) else Reply(answered, None)
