"""Sends one image or text to Azure AI Vision until it has a vector or is rejected."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx2
import numpy as np
import tenacity
from pydantic import BaseModel, ValidationError

from rowvec.embedders.azure_vision.errors import ErrorDetails, read_error, vision_error
from rowvec.embedders.budget import UNLIMITED, BudgetHold
from rowvec.embedders.checks import defect, usable
from rowvec.embedders.protocol import Answer, Image, without_vectors
from rowvec.embedders.provider.deadline import is_before_sending
from rowvec.embedders.provider.response import WrongDimensions
from rowvec.embedders.provider.retry import back_off, retrier
from rowvec.embedders.rate_limit.limiter import Clock, Pace
from rowvec.errors import EmbedderRefused, EmbedderUnavailable, RowError, RowvecError
from rowvec.vectors.layout import Vectors

DIMENSIONS = 1024

# https://learn.microsoft.com/azure/ai-services/computer-vision/how-to/image-retrieval names the limit of 20 MB.
MOST_BYTES = 20 * 2**20

# If a vector is NaN or zero, the request is repeated this often before the row is rejected.
_SECOND_CHANCES = 2

# Sent if the very first image is refused for a reason that does not name it, to find out whether the image or our
# settings are wrong.
_PROBE = "a"


@dataclass(frozen=True, slots=True)
class Item:
    """An image or a text to be sent."""

    position: int
    content: Image | str


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionEndpoint:
    """The service that every request goes to, and the settings of every request."""

    client: httpx2.Client
    base_url: str
    address: str
    """The server's name, for messages."""
    api_version: str
    model: str
    """The model version; each answer must name the same one."""
    sign_in: Callable[[], dict[str, str]]
    """Gives the headers that authenticate a request."""
    secret: str
    """The key, to keep it out of messages."""
    max_attempts: int


class _Body(BaseModel):
    vector: list[Any]
    """Numbers; a server whose JSON cannot write NaN writes null."""
    modelVersion: str  # the protocol's own spelling


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionRequests:
    """Sends images and texts, one per request; used by many threads at once."""

    endpoint: VisionEndpoint
    has_worked: threading.Event
    """Set once any request was answered with a vector; shared by all threads."""
    pace: Pace
    clock: Clock
    budget: BudgetHold = UNLIMITED

    def answers(self, item: Item, stop: threading.Event) -> Iterator[Answer]:
        """The one answer for the item.

        Raises a ``FatalError``, a ``RetriableError`` after the last try, or ``Stopped``.
        """
        try:
            content, transactions = _bytes_of(item.content), 1
            vector = self._with_retries(content, stop)
            while (bad := not usable(vector[np.newaxis]).all()) and transactions <= _SECOND_CHANCES:
                vector = self._with_retries(content, stop)
                transactions += 1
        except RowError as error:
            yield _rejected(item, error)
            return
        if bad:
            yield _rejected(item, RowError("invalid_vector", f"{defect(vector)}, {transactions} times"), transactions)
        else:
            yield Answer(positions=np.array([item.position]), vectors=vector[np.newaxis], billed=transactions)

    def _with_retries(self, content: bytes | str, stop: threading.Event) -> Vectors:
        retrying = retrier(self.endpoint.max_attempts, self.pace, self.clock, stop)
        try:
            return retrying(self._once, content, stop, retrying)
        except WrongDimensions as error:
            raise EmbedderRefused(
                f"{self.endpoint.model} at {self.endpoint.address} gives vectors of {error.found:,} dimensions, and "
                f"Azure AI Vision's have {DIMENSIONS:,}; check what embedder.base_url leads to"
            ) from None

    def _once(self, content: bytes | str, stop: threading.Event, retrying: tenacity.Retrying) -> Vectors:
        turn = self.pace.wait_turn(1, stop)
        hold = self.budget.reserve(1)
        answered = self._sent(content)
        # A request that was sent and not answered may have been worked on, and billed.
        paid = answered.is_success if isinstance(answered, httpx2.Response) else not is_before_sending(answered)
        self.budget.settle(hold, 1 if paid else 0)
        if isinstance(answered, httpx2.Response) and answered.is_success:
            self.pace.succeeded()
            vector = self._read(answered.content)
            self.has_worked.set()
            return vector
        error, blamed = self._refused(answered)
        back_off(error, self.pace, turn, int(retrying.statistics.get("attempt_number", 1)))
        if isinstance(error, RowError) and not blamed:
            self._blame_the_input(content, error, stop)
        raise error

    def _sent(self, content: bytes | str) -> httpx2.Response | httpx2.HTTPError:
        """The response, or the error of the connection."""
        what = "Text" if isinstance(content, str) else "Image"
        url = f"{self.endpoint.base_url}/computervision/retrieval:vectorize{what}"
        parameters = {"api-version": self.endpoint.api_version, "model-version": self.endpoint.model}
        headers = self.endpoint.sign_in()
        try:
            if isinstance(content, str):
                return self.endpoint.client.post(url, params=parameters, headers=headers, json={"text": content})
            headers["Content-Type"] = "application/octet-stream"
            return self.endpoint.client.post(url, params=parameters, headers=headers, content=content)
        except httpx2.HTTPError as error:
            return error

    def _refused(self, answered: httpx2.Response | httpx2.HTTPError) -> tuple[RowvecError, bool]:
        """Our own error for a refusal, and whether the refusal says that the image or text is wrong."""
        endpoint = self.endpoint
        if isinstance(answered, httpx2.HTTPError):
            # Only the name: the exception holds the request, and the request holds the key.
            details = ErrorDetails((), type(answered).__name__)
            return vision_error(None, details, {}, model=endpoint.model, address=endpoint.address), False
        details = read_error(answered.content, answered.headers, secret=endpoint.secret)
        error = vision_error(
            answered.status_code, details, answered.headers, model=endpoint.model, address=endpoint.address
        )
        return error, details.blames_the_input or answered.status_code == 413

    def _read(self, content: bytes) -> Vectors:
        """``(1024,)``: the vector in a response; it may still hold NaN or only zeros, see ``usable``."""
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
        """Raise ``EmbedderRefused`` if the server has never given a vector and refuses even a plain text."""
        if self.has_worked.is_set():
            return
        try:
            if content != _PROBE:
                self._with_retries(_PROBE, stop)
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
    return without_vectors({item.position: error}, DIMENSIONS, billed=transactions)
