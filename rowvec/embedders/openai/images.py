"""Vectors of images, and of texts in the same space, by a server that speaks OpenAI's embeddings protocol for both."""

from __future__ import annotations

import hashlib
import io
import json
import threading
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from typing import cast
from urllib.parse import urlsplit

import httpx2
import numpy as np
import PIL.Image as pillow

from rowvec.embedders.budget import UNLIMITED, BudgetHold
from rowvec.embedders.checks import refusal
from rowvec.embedders.openai.image_inputs import RequestTemplate, body
from rowvec.embedders.protocol import Answer, Image, PricedByTransaction, QueriesLikeDocuments, without_vectors
from rowvec.embedders.provider.concurrency import in_flight
from rowvec.embedders.provider.deadline import DeadlineTransport, is_before_sending
from rowvec.embedders.provider.endpoint import header_value, web_address
from rowvec.embedders.provider.refusal import Refusal, refusal_in
from rowvec.embedders.provider.requests import EndpointSettings, Requests, ServerFacts
from rowvec.embedders.rate_limit.limiter import Clock, Pace, RateLimitAccount, Schedule, SystemClock, pace_of
from rowvec.errors import RowError
from rowvec.pipeline.embedders import OpenAIImagesEmbedder
from rowvec.vectors.fingerprint import Identity

_PREPROCESSING = 1

# Images of one request are read one after the other until they reach this size. A thread holds these, at most one image
# more, and all of that again as base64.
_REQUEST_BYTES = 8 << 20

# An image, because some models take no text; this large, because DSE-Qwen2 takes no side under 56 pixels.
_PROBE_SIDE = 64


@dataclass(frozen=True, slots=True)
class _Unread:
    """An image or text to be embedded; the image is not read yet."""

    position: int
    content: Image | str


@dataclass(frozen=True, slots=True)
class _Loaded:
    """An image or text to be embedded, in memory. See ``requests.Item``."""

    position: int
    content: bytes | str
    tokens: int = 1
    """One transaction per image or text: how many tokens a server counts for an image is not known beforehand."""


class OpenAIImages(QueriesLikeDocuments, PricedByTransaction):
    """An embedder behind ``POST /embeddings`` that takes images: vLLM's chat messages, or Jina's input objects."""

    def __init__(self, config: OpenAIImagesEmbedder, clock: Clock | None = None) -> None:
        """Raises ``UsageError`` if no request could succeed. ``clock``: the system's if None; tests pass their own."""
        super().__init__(config.cost_per_thousand_transactions)
        self._config = config
        self._secret = "" if config.api_key is None else header_value(config.api_key)
        self._base_url = web_address(
            config.base_url, "write http://HOST:8000/v1, up to what /embeddings follows"
        ).rstrip("/")
        self._clock = clock or SystemClock()
        self._pace = (
            pace_of(self.account, config.requests_per_minute, None)
            if clock is None
            else Pace(Schedule(requests_per_minute=config.requests_per_minute), clock)
        )
        self._server = ServerFacts(send_dimensions=True, ask_about_dimensions=True)
        self._template = RequestTemplate(
            model=config.model,
            form=config.form,
            instruction=config.instruction,
            system=config.system,
            query=config.query,
            extra=config.extra,
            query_extra=config.query_extra,
        )

    @property
    def identity(self) -> Identity:
        """Model, dimensions, and the request template of images: another instruction gives another vector.

        The address is not part of it, because a server may move, nor is what only affects queries.
        """
        asked = {name: value for name, value in asdict(self._template).items() if not name.startswith("query")}
        digest = hashlib.sha256(json.dumps([_PREPROCESSING, asked], sort_keys=True).encode()).digest()
        return Identity(
            provider="openai_images",
            model=self._config.model,
            dimensions=self._config.dimensions,
            preprocessing=int.from_bytes(digest[:6]),
        )

    @property
    def account(self) -> RateLimitAccount:
        """See ``Paced``."""
        return RateLimitAccount(address=self._base_url, model=self._config.model, secret=self._secret)

    @property
    def pace(self) -> Pace:
        """See ``Paced``."""
        return self._pace

    def embed(self, texts: Iterable[str], budget: BudgetHold = UNLIMITED) -> Iterator[Answer]:
        """See ``Embedder``; each text is put into the query template, because only queries are texts here."""
        return self._embed((_Unread(i, text) for i, text in enumerate(texts)), budget)

    def embed_images(self, images: Iterable[Image], budget: BudgetHold = UNLIMITED) -> Iterator[Answer]:
        """See ``ImageEmbedder``. ``read`` is called in many threads."""
        return self._embed((_Unread(i, image) for i, image in enumerate(images)), budget)

    def _embed(self, contents: Iterator[_Unread], budget: BudgetHold) -> Iterator[Answer]:
        config = self._config
        limits = httpx2.Limits(max_connections=config.concurrency, max_keepalive_connections=config.concurrency)
        headers = {"Authorization": f"Bearer {self._secret}"} if self._secret else {}
        transport = DeadlineTransport(limits=limits)
        with httpx2.Client(timeout=config.timeout_seconds, transport=transport, headers=headers) as client:
            sender = _Sender(
                client=client, url=f"{self._base_url}/embeddings", template=self._template,
                dimensions=config.dimensions, secret=self._secret,
            )  # fmt: skip
            requests = Requests(
                endpoint=EndpointSettings(
                    model=config.model,
                    address=cast("str", urlsplit(self._base_url).hostname),
                    dimensions=config.dimensions,
                    max_attempts=config.max_attempts,
                    what="image",
                    by_usage=False,
                ),
                post=sender.post,
                probe=_Loaded(-1, _plain_image()),
                server=self._server,
                pace=self._pace,
                clock=self._clock,
                budget=budget,
            )
            image_requests = _ImageRequests(requests, config.dimensions)
            yield from in_flight(image_requests.answers, _grouped(contents, self._inputs), config.concurrency)

    @property
    def _inputs(self) -> int:
        """The most images of one request; with ``messages`` only one, because a list of messages is one prompt."""
        return self._config.max_batch_inputs if self._config.form == "input" else 1


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sender:
    """Sends one request at a time to the server; used by many threads at once."""

    client: httpx2.Client
    url: str = field(repr=False)
    template: RequestTemplate
    dimensions: int
    secret: str = field(repr=False)

    def post(self, part: tuple[_Loaded, ...], with_dimensions: bool) -> bytes | Refusal:
        """See ``requests.Post``."""
        content = body(self.template, (one.content for one in part), self.dimensions if with_dimensions else None)
        try:
            response = self.client.post(self.url, json=content)
        except httpx2.HTTPError as error:
            # Only the name: the exception holds the request, and the request holds the key.
            return Refusal(None, "", "", "", type(error).__name__, {}, unanswered=not is_before_sending(error))
        if response.is_success:
            return response.content
        return refusal_in(response.status_code, response.content, response.headers, secret=self.secret)


@dataclass(frozen=True, slots=True)
class _ImageRequests:
    """Reads images, sends them, and names them in errors; used by many threads at once."""

    requests: Requests[_Loaded]
    dimensions: int

    def answers(self, unread: tuple[_Unread, ...], stop: threading.Event) -> Iterator[Answer]:
        """Answers that together hold each image once. Raises what ``Requests.answers`` and ``Image.read`` raise."""
        names = {one.position: one.content.name for one in unread if isinstance(one.content, Image)}
        rejected: dict[int, RowError] = {}
        for loaded in _request_groups(unread, rejected):
            for answer in self.requests.answers(loaded, stop):
                yield self._named(answer, names)
        if rejected:
            yield self._named(without_vectors(rejected, self.dimensions), names)

    def _named(self, answer: Answer, names: dict[int, str]) -> Answer:
        rejected = {position: _about(error, names.get(position)) for position, error in answer.rejected.items()}
        vectors = answer.vectors if len(answer.positions) else np.empty((0, self.dimensions), np.float32)
        return replace(answer, rejected=rejected, vectors=vectors)


def _grouped(contents: Iterator[_Unread], inputs: int) -> Iterator[tuple[_Unread, ...]]:
    while group := tuple(islice(contents, inputs)):
        yield group


def _request_groups(unread: Iterable[_Unread], rejected: dict[int, RowError]) -> Iterator[tuple[_Loaded, ...]]:
    """The images and texts, read, in groups of one request; unreadable ones are put into ``rejected``."""
    loaded, size = list[_Loaded](), 0
    for one in unread:
        try:
            content = _content(one.content)
        except RowError as error:
            rejected[one.position] = error
            continue
        loaded.append(_Loaded(one.position, content))
        size += len(content)
        if size >= _REQUEST_BYTES:
            yield tuple(loaded)
            loaded, size = [], 0
    if loaded:
        yield tuple(loaded)


def _content(content: Image | str) -> bytes | str:
    if isinstance(content, Image):
        return content.read()
    if (unreadable := refusal(content)) is not None:
        raise unreadable
    return content


def _about(error: RowError, name: str | None) -> RowError:
    """The error with the image's name. If the prompt is too long, the image is too large."""
    if name is None:
        return error
    detail = error.detail if name in error.detail else f"{name}: {error.detail}"
    return RowError("image_too_large" if error.reason == "too_long" else error.reason, detail)


def _plain_image() -> bytes:
    """A grey PNG."""
    out = io.BytesIO()
    pillow.new("RGB", (_PROBE_SIDE, _PROBE_SIDE), (128, 128, 128)).save(out, "PNG")
    return out.getvalue()
