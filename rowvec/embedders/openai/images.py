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

import httpx
import numpy as np
import PIL.Image as pillow

from rowvec.embedders.checks import refusal
from rowvec.embedders.openai.image_inputs import Wording, body
from rowvec.embedders.openai.requests import Asked, Requests, Understanding
from rowvec.embedders.protocol import Answer, Image
from rowvec.embedders.provider.budget import FREE, Purse
from rowvec.embedders.provider.concurrency import in_flight
from rowvec.embedders.provider.endpoint import header_value, web_address
from rowvec.embedders.provider.refusal import Refusal, refusal_in
from rowvec.embedders.rate_limit.limiter import Account, Clock, Pace, Schedule, SystemClock, pace_of
from rowvec.errors import RowError
from rowvec.pipeline.embedders import OpenAIImagesEmbedder
from rowvec.vectors.fingerprint import Identity

_PREPROCESSING = 1

# Images of one request are read one after the other until they are so many bytes: what a thread holds is that, an
# image more, and both once more as base64.
_ENOUGH_BYTES = 8 << 20

# Some models take no smaller image (DSE-Qwen2 no less than 56 pixels a side), some no text at all.
_PROBE_SIDE = 64


@dataclass(frozen=True, slots=True)
class _Unread:
    """What is to be embedded, before it is read."""

    position: int
    content: Image | str


@dataclass(frozen=True, slots=True)
class _Loaded:
    """What is to be embedded, at hand. See ``openai_requests.Item``."""

    position: int
    content: bytes | str
    tokens: int = 1
    """One transaction, image or text: a server's own count of an image's tokens is not known before."""


class OpenAIImages:
    """An embedder behind ``POST /embeddings`` that takes images: vLLM's chat messages, or Jina's input objects."""

    def __init__(self, config: OpenAIImagesEmbedder, clock: Clock | None = None) -> None:
        """Raises ``UsageError`` where no request could succeed. ``clock`` is the system's; a test may bring its own."""
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
        self._understanding = Understanding(send_dimensions=True, ask_about_dimensions=True)
        self._wording = Wording(
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
        """Model, dimensions, and how an image is asked about: another instruction gives another vector.

        The address is not in it, for a server may move; nor is what only queries are put into.
        """
        asked = {name: value for name, value in asdict(self._wording).items() if not name.startswith("query")}
        digest = hashlib.sha256(json.dumps([_PREPROCESSING, asked], sort_keys=True).encode()).digest()
        return Identity(
            provider="openai_images",
            model=self._config.model,
            dimensions=self._config.dimensions,
            preprocessing=int.from_bytes(digest[:6]),
        )

    @property
    def paid(self) -> bool:
        """Always: a server of one's own costs time, at least."""
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
        """See ``Embedder``; each text is put into the template of queries, for only queries are texts here."""
        return self._embed((_Unread(i, text) for i, text in enumerate(texts)), purse)

    def embed_images(self, images: Iterable[Image], purse: Purse = FREE) -> Iterator[Answer]:
        """See ``ImageEmbedder``. ``read`` is called in many threads."""
        return self._embed((_Unread(i, image) for i, image in enumerate(images)), purse)

    def count_tokens(self, texts: list[str]) -> int:
        """Transactions: one each."""
        return len(texts)

    def cost(self, tokens: int) -> float:
        """US dollars for so many transactions, by the pipeline's price; 0 where it names none."""
        return tokens * (self._config.cost_per_thousand_transactions or 0.0) / 1000

    def _embed(self, contents: Iterator[_Unread], purse: Purse) -> Iterator[Answer]:
        config = self._config
        limits = httpx.Limits(max_connections=config.concurrency, max_keepalive_connections=config.concurrency)
        headers = {"Authorization": f"Bearer {self._secret}"} if self._secret else {}
        with httpx.Client(timeout=config.timeout_seconds, limits=limits, headers=headers) as client:
            desk = _Desk(
                client=client, url=f"{self._base_url}/embeddings", wording=self._wording,
                dimensions=config.dimensions, secret=self._secret,
            )  # fmt: skip
            requests = Requests(
                endpoint=Asked(
                    model=config.model,
                    address=cast("str", urlsplit(self._base_url).hostname),
                    dimensions=config.dimensions,
                    max_attempts=config.max_attempts,
                    what="image",
                    by_usage=False,
                ),
                post=desk.post,
                probe=_Loaded(-1, _plain_image()),
                understanding=self._understanding,
                pace=self._pace,
                clock=self._clock,
                purse=purse,
            )
            shared = _Shared(requests, config.dimensions)
            yield from in_flight(shared.answers, _grouped(contents, self._inputs), config.concurrency)

    @property
    def _inputs(self) -> int:
        """Images of one request: a list of messages is one prompt."""
        return self._config.max_batch_inputs if self._config.form == "input" else 1


@dataclass(frozen=True, slots=True, kw_only=True)
class _Desk:
    """Sends requests and takes what comes back."""

    client: httpx.Client
    url: str = field(repr=False)
    wording: Wording
    dimensions: int
    secret: str = field(repr=False)

    def post(self, part: tuple[_Loaded, ...], with_dimensions: bool) -> bytes | Refusal:
        """See ``openai_requests.Post``."""
        said = body(self.wording, (one.content for one in part), self.dimensions if with_dimensions else None)
        try:
            response = self.client.post(self.url, json=said)
        except httpx.HTTPError as error:
            # The name alone: the exception holds the request, and the request the key.
            return Refusal(None, "", "", "", type(error).__name__, {})
        if response.is_success:
            return response.content
        return refusal_in(response.status_code, response.content, response.headers, secret=self.secret)


@dataclass(frozen=True, slots=True)
class _Shared:
    """What the threads do with the images drawn for them."""

    requests: Requests[_Loaded]
    dimensions: int

    def answers(self, unread: tuple[_Unread, ...], stop: threading.Event) -> Iterator[Answer]:
        """Answers that together hold each of the images once. Raises what ``Requests.answers`` and ``read`` do."""
        names = {one.position: one.content.name for one in unread if isinstance(one.content, Image)}
        rejected: dict[int, RowError] = {}
        for loaded in _enough(unread, rejected):
            for answer in self.requests.answers(loaded, stop):
                yield self._named(answer, names)
        if rejected:
            nothing = Answer(positions=np.empty(0, np.int64), vectors=np.empty((0, 0), np.float32), rejected=rejected)
            yield self._named(nothing, names)

    def _named(self, answer: Answer, names: dict[int, str]) -> Answer:
        rejected = {position: _about(error, names.get(position)) for position, error in answer.rejected.items()}
        vectors = answer.vectors if len(answer.positions) else np.empty((0, self.dimensions), np.float32)
        return replace(answer, rejected=rejected, vectors=vectors)


def _grouped(contents: Iterator[_Unread], inputs: int) -> Iterator[tuple[_Unread, ...]]:
    while group := tuple(islice(contents, inputs)):
        yield group


def _enough(unread: Iterable[_Unread], rejected: dict[int, RowError]) -> Iterator[tuple[_Loaded, ...]]:
    """What one request may hold, read; what cannot be is put into ``rejected``."""
    loaded, size = list[_Loaded](), 0
    for one in unread:
        try:
            content = _content(one.content)
        except RowError as error:
            rejected[one.position] = error
            continue
        loaded.append(_Loaded(one.position, content))
        size += len(content)
        if size >= _ENOUGH_BYTES:
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
    """Names the image; what is too long as a prompt is too large as an image."""
    if name is None:
        return error
    detail = error.detail if name in error.detail else f"{name}: {error.detail}"
    return RowError("image_too_large" if error.reason == "too_long" else error.reason, detail)


def _plain_image() -> bytes:
    """A grey PNG."""
    out = io.BytesIO()
    pillow.new("RGB", (_PROBE_SIDE, _PROBE_SIDE), (128, 128, 128)).save(out, "PNG")
    return out.getvalue()
