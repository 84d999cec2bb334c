"""Packs texts into requests: as many as the provider accepts, without reading far ahead."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

Input = TypeVar("Input")


@dataclass(frozen=True, slots=True)
class Sized:
    """A text to be sent, with its tokens."""

    position: int
    """Counted from 0 over the whole stream."""
    text: str
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestLimits:
    """The most inputs and tokens of one request."""

    inputs: int
    tokens: int


def limits_of(
    max_inputs: int, max_tokens: int, *, requests_per_minute: int | None, tokens_per_minute: int | None
) -> RequestLimits:
    """The provider's limits of a request, and at most a quarter of the tokens that the account allows per minute.

    A request of more tokens than the allowance of a minute is always refused; one of nearly as many waits until the
    whole minute is free. The part is larger than a quarter if the account allows fewer than four requests per minute:
    with a quarter, it could not use all its tokens.
    """
    if tokens_per_minute is None:
        return RequestLimits(inputs=max_inputs, tokens=max_tokens)
    share = tokens_per_minute // min(4, requests_per_minute or 4)
    return RequestLimits(inputs=max_inputs, tokens=max(1, min(max_tokens, share)))


def pack(texts: Iterable[Sized], limits: RequestLimits) -> Iterator[tuple[Sized, ...]]:
    """Requests in the order of the texts; reads at most one text beyond those it has yielded.

    A text that exceeds ``limits.tokens`` by itself gets a request of its own: the caller has decided that it may be
    sent.
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
    """A request cut in two, to find the text or image that the provider refuses. It must have at least two inputs."""
    middle = len(batch) // 2
    return batch[:middle], batch[middle:]
