"""One request to Azure AI Vision until its image or text has a vector, or a reason to have none."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import tenacity
from pydantic import BaseModel, ValidationError

from rowvec.embedders.azure_vision.errors import Said, read_error, vision_error
from rowvec.embedders.checks import defect, usable
from rowvec.embedders.protocol import Answer, Image
from rowvec.embedders.provider.budget import FREE, Purse
from rowvec.embedders.provider.response import WrongDimensions
from rowvec.embedders.provider.retry import heed, patient
from rowvec.embedders.rate_limit.limiter import Clock, Pace
from rowvec.errors import EmbedderRefused, EmbedderUnavailable, RowError, RowvecError
from rowvec.vectors.layout import Vectors

DIMENSIONS = 1024

# https://learn.microsoft.com/azure/ai-services/computer-vision/how-to/image-retrieval names the limit of 20 MB.
MOST_BYTES = 20 * 2**20

# A vector that is NaN or zero is asked for again before the row is set aside.
_SECOND_CHANCES = 2

# Sent where the very first image is refused for a reason that does not name it: is it the image, or what we ask for?
_PROBE = "a"


@dataclass(frozen=True, slots=True)
class Item:
    """An image or a text on its way to the provider."""

    position: int
    content: Image | str


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Whom every request asks, and for what."""

    client: httpx.Client
    base_url: str
    address: str
    """The server's name for messages."""
    api_version: str
    model: str
    """The model version; also what an answer must say that it is by."""
    sign_in: Callable[[], dict[str, str]]
    """The headers that say who asks."""
    secret: str
    """The key, to keep it out of messages."""
    max_attempts: int


@dataclass(slots=True)
class Understanding:
    """What was found out about a server while talking to it; shared by all threads."""

    works: bool = False
    """Whether any request has ever been answered with a vector."""


class _Body(BaseModel):
    vector: list[Any]
    """Numbers; a server whose JSON knows no NaN writes null."""
    modelVersion: str  # the protocol's own spelling


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionRequests:
    """Sends images and texts, one a request; used by many threads at once."""

    endpoint: Endpoint
    understanding: Understanding
    pace: Pace
    clock: Clock
    purse: Purse = FREE

    def answers(self, item: Item, stop: threading.Event) -> Iterator[Answer]:
        """The one answer for the item.

        Raises a ``FatalError``, a ``RetriableError`` when the tries are used up, or ``Stopped``.
        """
        try:
            content, transactions = _bytes_of(item.content), 1
            vector = self._persistently(content, stop)
            while (bad := not usable(vector[np.newaxis]).all()) and transactions <= _SECOND_CHANCES:
                vector = self._persistently(content, stop)
                transactions += 1
        except RowError as error:
            yield _rejected(item, error)
            return
        if bad:
            yield _rejected(item, RowError("invalid_vector", f"{defect(vector)}, {transactions} times"), transactions)
        else:
            yield Answer(positions=np.array([item.position]), vectors=vector[np.newaxis], tokens=transactions)

    def _persistently(self, content: bytes | str, stop: threading.Event) -> Vectors:
        retrying = patient(self.endpoint.max_attempts, self.pace, self.clock, stop)
        try:
            return retrying(self._once, content, stop, retrying)
        except WrongDimensions as error:
            raise EmbedderRefused(
                f"{self.endpoint.model} at {self.endpoint.address} gives vectors of {error.found:,} dimensions, and "
                f"Azure AI Vision's have {DIMENSIONS:,}; check what embedder.base_url leads to"
            ) from None

    def _once(self, content: bytes | str, stop: threading.Event, retrying: tenacity.Retrying) -> Vectors:
        turn = self.pace.wait_turn(1, stop)
        hold = self.purse.reserve(1)
        answered = self._sent(content)
        paid = isinstance(answered, httpx.Response) and answered.is_success
        self.purse.settle(hold, 1 if paid else 0)
        if isinstance(answered, httpx.Response) and answered.is_success:
            self.pace.succeeded()
            vector = self._read(answered.content)
            self.understanding.works = True
            return vector
        error, blamed = self._refused(answered)
        heed(error, self.pace, turn, int(retrying.statistics.get("attempt_number", 1)))
        if isinstance(error, RowError) and not blamed:
            self._blame_the_input(content, error, stop)
        raise error

    def _sent(self, content: bytes | str) -> httpx.Response | str:
        """The response, or the name of what happened to the connection."""
        what = "Text" if isinstance(content, str) else "Image"
        url = f"{self.endpoint.base_url}/computervision/retrieval:vectorize{what}"
        parameters = {"api-version": self.endpoint.api_version, "model-version": self.endpoint.model}
        headers = self.endpoint.sign_in()
        try:
            if isinstance(content, str):
                return self.endpoint.client.post(url, params=parameters, headers=headers, json={"text": content})
            headers["Content-Type"] = "application/octet-stream"
            return self.endpoint.client.post(url, params=parameters, headers=headers, content=content)
        except httpx.HTTPError as error:
            # The name alone: the exception holds the request, and the request the key.
            return type(error).__name__

    def _refused(self, answered: httpx.Response | str) -> tuple[RowvecError, bool]:
        """What a refusal means, and whether it names the input as what is wrong."""
        endpoint = self.endpoint
        if isinstance(answered, str):
            said = Said((), answered)
            return vision_error(None, said, {}, model=endpoint.model, address=endpoint.address), False
        said = read_error(answered.content, answered.headers, secret=endpoint.secret)
        error = vision_error(
            answered.status_code, said, answered.headers, model=endpoint.model, address=endpoint.address
        )
        return error, said.blames_the_input or answered.status_code == 413

    def _read(self, content: bytes) -> Vectors:
        """``(1024,)``; it may still hold NaN or only zeros, see ``usable``."""
        try:
            body = _Body.model_validate_json(content)
            with np.errstate(over="ignore"):
                vector = np.array(body.vector, dtype=np.float32)
        except (ValidationError, ValueError, TypeError):
            raise EmbedderUnavailable(
                f"the embedder answered {len(content):,} bytes that are no vector in JSON; is base_url right?"
            ) from None
        if body.modelVersion != self.endpoint.model:
            raise EmbedderRefused(
                f"the embedder was asked for model version {self.endpoint.model} and the answer is by "
                f"{body.modelVersion[:40]!r}: vectors of two models cannot be compared. Nothing of this answer was "
                "kept; check embedder.model and embedder.api_version"
            )
        if vector.shape != (DIMENSIONS,):
            raise WrongDimensions(vector.size)
        return vector

    def _blame_the_input(self, content: bytes | str, error: RowError, stop: threading.Event) -> None:
        """Raise ``EmbedderRefused`` where the server has never taken anything, and takes not even a plain text."""
        if self.understanding.works:
            return
        try:
            if content != _PROBE:
                self._persistently(_PROBE, stop)
                return
        except RowError:
            pass
        raise EmbedderRefused(
            f"Azure AI Vision at {self.endpoint.address} refuses everything: {error.detail}; check embedder.model, "
            "embedder.api_version and embedder.base_url"
        ) from None


def _bytes_of(content: Image | str) -> bytes | str:
    if isinstance(content, str):
        return content
    read = content.read()
    if len(read) > MOST_BYTES:
        raise RowError("image_too_large", f"{len(read):,} bytes, and Azure AI Vision takes {MOST_BYTES:,}")
    return read


def _rejected(item: Item, error: RowError, transactions: int = 0) -> Answer:
    if isinstance(item.content, Image) and item.content.name not in error.detail:
        error = RowError(error.reason, f"{item.content.name}: {error.detail}")
    return Answer(
        positions=np.empty(0, np.int64),
        vectors=np.empty((0, DIMENSIONS), np.float32),
        tokens=transactions,
        rejected={item.position: error},
    )
