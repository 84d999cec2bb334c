"""One request to an OpenAI-compatible server until each text or image in it has a vector, or a reason to have none."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

import numpy as np
import tenacity

from rowvec.embedders.checks import defect, usable
from rowvec.embedders.openai.packing import Sized, halves
from rowvec.embedders.protocol import Answer
from rowvec.embedders.provider.budget import FREE, Hold, Purse
from rowvec.embedders.provider.refusal import Refusal, meaning
from rowvec.embedders.provider.response import Reply, WrongDimensions, read
from rowvec.embedders.provider.retry import heed, patient
from rowvec.embedders.rate_limit.limiter import Clock, Pace, Turn
from rowvec.errors import EmbedderRefused, RowError, RowvecError

# A row whose vector is NaN or zero is asked for again, alone, before it is set aside.
_SECOND_CHANCES = 2

OPENAI_MODELS = frozenset({"text-embedding-3-small", "text-embedding-3-large", "text-embedding-ada-002"})

PROBE = Sized(-1, "a", 1)
"""Sent where the very first text is refused: is it the text, or what we send with every text?"""


class Item(Protocol):
    """A text or an image on its way to the provider."""

    @property
    def position(self) -> int:
        """Counted from 0 over the whole stream."""
        ...

    @property
    def tokens(self) -> int:
        """What it is reckoned to be billed."""
        ...


Input = TypeVar("Input", bound=Item)

Post = Callable[[tuple[Input, ...], bool], bytes | Refusal]
"""Sends one request, with ``dimensions`` in it or without; the body of its answer, or why there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Whom every request asks, and for what."""

    model: str
    address: str
    """The server's name for messages; no key, no user name."""
    dimensions: int
    max_attempts: int
    what: str = "text"
    """What one input is called in messages."""
    by_usage: bool = True
    """Whether the provider's own count is what is billed; else what the inputs are reckoned to be."""


@dataclass(slots=True)
class Understanding:
    """What was found out about a server while talking to it; shared by all threads."""

    send_dimensions: bool
    ask_about_dimensions: bool
    """Whether a refusal of the field ``dimensions`` is taken as an answer: the model's name tells us nothing."""
    works: bool = False
    """Whether any request has ever been answered with vectors."""
    answered_by: str | None = None
    """The model that the server named in its first answer."""

    def check_model(self, asked: str, answered: str | None) -> None:
        """Raise ``EmbedderRefused`` where another model has answered: its vectors may have the same length, and mean
        something else.

        A server may know a model by another name than we do (Azure names the model behind a deployment); but none of
        OpenAI's models is another one, and no server has a reason to change its mind in the middle of a run.
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

    endpoint: Asked
    post: Post[Input]
    probe: Input
    """Something that any server of the kind can embed."""
    understanding: Understanding
    pace: Pace
    clock: Clock
    purse: Purse = FREE

    def answers(self, batch: tuple[Input, ...], stop: threading.Event) -> Iterator[Answer]:
        """Answers that together hold each input of the batch once: more than one where some make trouble.

        A refused request is halved until the refused input stands alone. Raises a ``FatalError``, a ``RetriableError``
        when the tries are used up, or ``Stopped``.
        """
        parts = [(batch, _SECOND_CHANCES)]
        while parts:
            part, chances = parts.pop()
            try:
                reply = self._persistently(part, stop)
            except RowError as error:
                if len(part) > 1:
                    parts += [(half, chances) for half in reversed(halves(part))]
                    continue
                self._blame_the_input(error, stop)
                yield _rejected(part, error)
                continue
            yield from self._sorted_out(part, reply, parts, chances)

    def _sorted_out(
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
            tokens=sum(one.tokens for one in part) if reply.tokens is None else reply.tokens,
            rejected=rejected,
        )

    def _persistently(self, part: tuple[Input, ...], stop: threading.Event) -> Reply:
        retrying = patient(self.endpoint.max_attempts, self.pace, self.clock, stop)
        try:
            return retrying(self._once, part, stop, retrying)
        except WrongDimensions as error:
            wanted = self.endpoint.dimensions
            raise EmbedderRefused(
                f"{self.endpoint.model} at {self.endpoint.address} gives vectors of {error.found:,} dimensions, and "
                f"the pipeline wants {wanted:,}; set embedder.dimensions to {error.found}, or name another model"
            ) from None

    def _once(self, part: tuple[Input, ...], stop: threading.Event, retrying: tenacity.Retrying) -> Reply:
        with_dimensions = self.understanding.send_dimensions
        estimate = sum(one.tokens for one in part)
        turn = self.pace.wait_turn(estimate, stop)
        hold = self.purse.reserve(estimate)
        answered = self.post(part, with_dimensions)
        if isinstance(answered, bytes):
            self.pace.succeeded()
            reply = self._paid(answered, len(part), hold, estimate)
            self.understanding.check_model(self.endpoint.model, reply.model)
            self.understanding.works = True
            return reply
        self.purse.settle(hold, 0)
        if with_dimensions and self.understanding.ask_about_dimensions and answered.about_dimensions:
            self.understanding.send_dimensions = False
            return self._once(part, stop, retrying)
        attempt = int(retrying.statistics.get("attempt_number", 1))
        raise self._heeded(answered, turn, attempt, with_dimensions=with_dimensions)

    def _paid(self, content: bytes, expected: int, hold: Hold, estimate: int) -> Reply:
        """What was answered; it is paid for, whatever is wrong with it."""
        tokens = estimate
        try:
            reply = read(content, expected=expected, dimensions=self.endpoint.dimensions)
            if not self.endpoint.by_usage:
                reply = replace(reply, tokens=None)
            tokens = estimate if reply.tokens is None else reply.tokens
        finally:
            self.purse.settle(hold, tokens)
        return reply

    def _heeded(self, refused: Refusal, turn: Turn, attempt: int, *, with_dimensions: bool) -> RowvecError:
        """What the refusal means, after all threads were told of the wait it asks for."""
        error = meaning(refused, model=self.endpoint.model, address=self.endpoint.address)
        # Where the field was not sent, a refusal that speaks of dimensions means the input's own.
        if with_dimensions and refused.about_dimensions and isinstance(error, RowError):
            return EmbedderRefused(
                f"{self.endpoint.model} at {self.endpoint.address} does not give {self.endpoint.dimensions} "
                f"dimensions: {refused.message}; change embedder.dimensions"
            )
        heed(error, self.pace, turn, attempt, complaint=refused.complaint, limits=refused.limits)
        return error

    def _blame_the_input(self, error: RowError, stop: threading.Event) -> None:
        """Raise ``EmbedderRefused`` where the server has never taken anything, and takes not even a plain input."""
        if self.understanding.works:
            return
        try:
            self._persistently((self.probe,), stop)
        except RowError:
            raise EmbedderRefused(
                f"{self.endpoint.model} at {self.endpoint.address} refuses every {self.endpoint.what}: {error.detail}; "
                "check embedder.model, embedder.dimensions and embedder.base_url"
            ) from None


def _rejected(part: tuple[Item, ...], error: RowError) -> Answer:
    return Answer(
        positions=np.empty(0, np.int64),
        vectors=np.empty((0, 0), np.float32),
        rejected={one.position: error for one in part},
    )
