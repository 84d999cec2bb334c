"""Sends one request to an OpenAI-compatible server until each text or image in it has a vector or is rejected."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

import numpy as np
import tenacity

from rowvec.embedders.budget import UNLIMITED, BudgetHold, Reservation
from rowvec.embedders.checks import defect, usable
from rowvec.embedders.protocol import Answer, without_vectors
from rowvec.embedders.provider.packing import Sized, halves
from rowvec.embedders.provider.refusal import Refusal, meaning
from rowvec.embedders.provider.response import Reply, WrongDimensions, checked, read
from rowvec.embedders.provider.retry import back_off, retrier
from rowvec.embedders.rate_limit.limiter import Clock, Pace, Turn
from rowvec.errors import EmbedderRefused, RowError, RowvecError

# If vectors of a request are NaN or zero, their texts are sent again this often before they are rejected.
_SECOND_CHANCES = 2

OPENAI_MODELS = frozenset({"text-embedding-3-small", "text-embedding-3-large", "text-embedding-ada-002"})

PROBE = Sized(-1, "a", 1)
"""Sent if the very first text is refused, to find out whether the text or our settings are wrong."""


class Item(Protocol):
    """A text or an image to be sent."""

    @property
    def position(self) -> int:
        """Counted from 0 over the whole stream."""
        ...

    @property
    def tokens(self) -> int:
        """What we estimate the provider will bill for it: tokens, or 1 for an image."""
        ...


Input = TypeVar("Input", bound=Item)

Post = Callable[[tuple[Input, ...], bool], bytes | Reply | Refusal]
"""Sends one request, with the field ``dimensions`` or without; returns the body of the response, or a ``Refusal``.

A client that parses responses itself returns a ``Reply``, whose vectors are not checked yet, or raises a
``RowvecError``.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointSettings:
    """The server that every request goes to, and the settings of every request."""

    model: str
    address: str
    """The server's name, for messages; no key, no user name."""
    dimensions: int
    max_attempts: int
    what: str = "text"
    """The word for one input in messages: text or image."""
    by_usage: bool = True
    """Whether the provider bills by its own count of tokens. If not, it bills what ``Item.tokens`` says."""


@dataclass(slots=True)
class ServerFacts:
    """What the answers of a server have shown about it; shared by all threads."""

    send_dimensions: bool
    """Whether requests have the field ``dimensions``."""
    ask_about_dimensions: bool
    """Whether to try without the field ``dimensions`` if the server refuses it: the model's name does not tell."""
    works: bool = False
    """Whether any request has ever been answered with vectors."""
    answered_by: str | None = None
    """The model that the server named in its first answer."""

    def check_model(self, asked: str, answered: str | None) -> None:
        """Raise ``EmbedderRefused`` if another model has answered: its vectors may have the same length but another
        meaning.

        A server may have another name for a model than the pipeline: Azure answers with the model behind a deployment.
        But two names of OpenAI's models are always two models, and no server should change the name during a run.
        """
        if answered is None:
            return
        first = self.answered_by = self.answered_by or answered
        if answered != first or (asked != answered and {asked, answered} <= OPENAI_MODELS):
            expected = first if answered != first else asked
            raise EmbedderRefused(
                f"the embedder was asked for {asked} and the answer is by {answered}, not {expected}: vectors of two "
                "models cannot be compared. Nothing of this answer was kept; check what embedder.base_url leads to"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Requests(Generic[Input]):
    """Sends packed texts, or images; used by many threads at once."""

    endpoint: EndpointSettings
    post: Post[Input]
    probe: Input
    """An input that any server of this kind can embed."""
    server: ServerFacts
    pace: Pace
    clock: Clock
    budget: BudgetHold = UNLIMITED

    def answers(self, batch: tuple[Input, ...], stop: threading.Event) -> Iterator[Answer]:
        """Answers that together hold each input of the batch once; several if some inputs are refused or unusable.

        A refused request is halved until the refused input is alone in one. Raises a ``FatalError``, a
        ``RetriableError`` after the last try, or ``Stopped``.
        """
        parts = [(batch, _SECOND_CHANCES)]
        while parts:
            part, chances = parts.pop()
            try:
                reply = self._with_retries(part, stop)
            except RowError as error:
                if len(part) > 1:
                    parts += [(half, chances) for half in reversed(halves(part))]
                    continue
                self._blame_the_input(error, stop)
                yield _rejected(part, error)
                continue
            yield from self._usable_and_bad(part, reply, parts, chances)

    def _usable_and_bad(
        self, part: tuple[Input, ...], reply: Reply, parts: list[tuple[tuple[Input, ...], int]], chances: int
    ) -> Iterator[Answer]:
        good = usable(reply.vectors)
        bad = tuple(part[i] for i in np.flatnonzero(~good))
        rejected: dict[int, RowError] = {}
        if bad and chances:
            parts.append((bad, chances - 1))
        elif bad:
            rejected = {
                part[i].position: RowError("invalid_vector", f"{defect(reply.vectors[i])}, {_SECOND_CHANCES + 1} times")
                for i in np.flatnonzero(~good)
            }
        yield Answer(
            positions=np.array([one.position for one in part], dtype=np.int64)[good],
            vectors=reply.vectors if good.all() else reply.vectors[good],
            billed=sum(one.tokens for one in part) if reply.tokens is None else reply.tokens,
            rejected=rejected,
        )

    def _with_retries(self, part: tuple[Input, ...], stop: threading.Event) -> Reply:
        retrying = retrier(self.endpoint.max_attempts, self.pace, self.clock, stop)
        try:
            return retrying(self._once, part, stop, retrying)
        except WrongDimensions as error:
            wanted = self.endpoint.dimensions
            raise EmbedderRefused(
                f"{self.endpoint.model} at {self.endpoint.address} gives vectors of {error.found:,} dimensions, and "
                f"the pipeline wants {wanted:,}; set embedder.dimensions to {error.found}, or name another model"
            ) from None

    def _once(self, part: tuple[Input, ...], stop: threading.Event, retrying: tenacity.Retrying) -> Reply:
        with_dimensions = self.server.send_dimensions
        estimate = sum(one.tokens for one in part)
        turn = self.pace.wait_turn(estimate, stop)
        hold = self.budget.reserve(estimate)
        try:
            answered = self.post(part, with_dimensions)
        except RowvecError as error:
            self.budget.settle(hold, 0)
            back_off(error, self.pace, turn, _attempt(retrying))
            raise
        if not isinstance(answered, Refusal):
            self.pace.succeeded()
            reply = self._read_and_settle(answered, len(part), hold, estimate)
            self.server.check_model(self.endpoint.model, reply.model)
            self.server.works = True
            return reply
        self.budget.settle(hold, estimate if answered.unanswered else 0)
        if with_dimensions and self.server.ask_about_dimensions and answered.about_dimensions:
            self.server.send_dimensions = False
            return self._once(part, stop, retrying)
        raise self._error_after_back_off(answered, turn, _attempt(retrying), with_dimensions=with_dimensions)

    def _read_and_settle(self, content: bytes | Reply, expected: int, hold: Reservation, estimate: int) -> Reply:
        """The vectors in a response. It is billed even if it is unusable, so the reservation is settled in any case."""
        tokens = estimate
        try:
            dimensions = self.endpoint.dimensions
            if isinstance(content, bytes):
                reply = read(content, expected=expected, dimensions=dimensions)
            else:
                tokens = estimate if content.tokens is None else content.tokens
                reply = checked(content, expected=expected, dimensions=dimensions)
            if not self.endpoint.by_usage:
                reply = replace(reply, tokens=None)
            tokens = estimate if reply.tokens is None else reply.tokens
        finally:
            self.budget.settle(hold, tokens)
        return reply

    def _error_after_back_off(
        self, refused: Refusal, turn: Turn, attempt: int, *, with_dimensions: bool
    ) -> RowvecError:
        """Our own error for a refusal, after all threads were made to wait as it asks for."""
        error = meaning(refused, model=self.endpoint.model, address=self.endpoint.address)
        # If the field was not sent, a refusal that mentions dimensions means those of the input itself.
        if with_dimensions and refused.about_dimensions and isinstance(error, RowError):
            return EmbedderRefused(
                f"{self.endpoint.model} at {self.endpoint.address} does not give {self.endpoint.dimensions} "
                f"dimensions: {refused.message}; change embedder.dimensions"
            )
        back_off(error, self.pace, turn, attempt, complaint=refused.complaint, limits=refused.limits)
        return error

    def _blame_the_input(self, error: RowError, stop: threading.Event) -> None:
        """Raise ``EmbedderRefused`` if the server has never given a vector and refuses even a plain input."""
        if self.server.works:
            return
        try:
            self._with_retries((self.probe,), stop)
        except RowError:
            raise EmbedderRefused(
                f"{self.endpoint.model} at {self.endpoint.address} refuses every {self.endpoint.what}: {error.detail}; "
                "check embedder.model, embedder.dimensions and embedder.base_url"
            ) from None


def _attempt(retrying: tenacity.Retrying) -> int:
    """Which try this is, from 1."""
    return int(retrying.statistics.get("attempt_number", 1))


def _rejected(part: tuple[Item, ...], error: RowError) -> Answer:
    return without_vectors({one.position: error for one in part}, 0)
