"""Which texts share a request: as many as the provider takes, never more, without looking far ahead."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

Input = TypeVar("Input")


@dataclass(frozen=True, slots=True)
class Sized:
    """A text on its way to the provider."""

    position: int
    """Counted from 0 over the whole stream."""
    text: str
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one request may hold."""

    inputs: int
    tokens: int


def limits_of(
    max_inputs: int, max_tokens: int, *, requests_per_minute: int | None, tokens_per_minute: int | None
) -> Limits:
    """The provider's limits of a request, and no more tokens than the account's minute can pass smoothly.

    A request of more tokens than a minute's allowance is refused for ever; one of nearly as many waits for the whole
    minute to be free. So a quarter of the minute, or more where too few requests a minute would starve it.
    """
    if tokens_per_minute is None:
        return Limits(inputs=max_inputs, tokens=max_tokens)
    share = tokens_per_minute // min(4, requests_per_minute or 4)
    return Limits(inputs=max_inputs, tokens=max(1, min(max_tokens, share)))


def pack(texts: Iterable[Sized], limits: Limits) -> Iterator[tuple[Sized, ...]]:
    """Requests in the order of the texts; draws at most one text beyond those it has handed out.

    A text that alone is over ``limits.tokens`` gets a request of its own: whether it may be sent at all is decided
    before.
    """
    batch: list[Sized] = []
    tokens = 0
    for text in texts:
        if batch and tokens + text.tokens > limits.tokens:
            yield tuple(batch)
            batch, tokens = [], 0
        batch.append(text)
        tokens += text.tokens
        if len(batch) == limits.inputs:
            yield tuple(batch)
            batch, tokens = [], 0
    if batch:
        yield tuple(batch)


def halves(batch: tuple[Input, ...]) -> tuple[tuple[Input, ...], tuple[Input, ...]]:
    """A request cut in two, to find the text or image that the provider refuses. Two of them at least."""
    middle = len(batch) // 2
    return batch[:middle], batch[middle:]
