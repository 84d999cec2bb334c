"""Checks that a provider's response is what was asked for: every vector passes here before it reaches a table."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from pydantic import BaseModel, ValidationError

from rowvec.errors import EmbedderUnavailable
from rowvec.vectors.layout import Vectors


class WrongDimensions(EmbedderUnavailable):
    """The provider answered with vectors of another length than the pipeline's."""

    def __init__(self, found: int) -> None:
        super().__init__(f"the embedder answered with a vector of {found:,} dimensions")
        self.found = found


class _Item(BaseModel):
    index: int
    embedding: str | list[Any]
    """Base64 of little-endian float32, or numbers; a server whose JSON cannot write NaN writes null."""


class _Usage(BaseModel):
    prompt_tokens: int


class _Body(BaseModel):
    data: list[_Item]
    model: str | None = None
    usage: _Usage | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """A provider's answer to one request, in the order of its texts."""

    vectors: Vectors
    """``(n, d)``; a row may still hold NaN, infinity or only zeros, see ``usable``."""
    tokens: int | None
    """Tokens that the provider billed; None if the response does not say."""
    model: str | None = None
    """The model that answered, by the provider's own word; None if the response does not say."""


def read(content: bytes, *, expected: int, dimensions: int) -> Reply:
    """The vectors in the body of a response, ordered by ``index``.

    Raises ``EmbedderUnavailable`` if the body cannot be read, or if it does not hold one vector for each of the
    ``expected`` texts; ``WrongDimensions`` if a vector is not ``dimensions`` long.
    """
    try:
        body = _Body.model_validate_json(content)
    except ValidationError:
        raise EmbedderUnavailable(
            f"the embedder answered {len(content):,} bytes that are no embeddings in JSON; is base_url right?"
        ) from None
    return _reply(body, expected, dimensions)


def read_value(body: object, *, expected: int, dimensions: int) -> Reply:
    """Like ``read``, for a body whose JSON is parsed already. Raises the same errors."""
    try:
        return _reply(_Body.model_validate(body), expected, dimensions)
    except ValidationError:
        raise EmbedderUnavailable("the embedder answered a body that holds no embeddings") from None


def checked(reply: Reply, *, expected: int, dimensions: int) -> Reply:
    """A reply whose vectors somebody else has read, as float32 ``(n, d)``. Raises the same errors as ``read``."""
    try:
        with np.errstate(over="ignore"):
            vectors = np.asarray(reply.vectors, dtype=np.float32)
    except (ValueError, TypeError):
        raise EmbedderUnavailable("the embedder answered vectors that are not numbers, or of several lengths") from None
    if len(vectors) != expected:
        raise EmbedderUnavailable(f"the embedder answered {len(vectors):,} vectors for {expected:,} texts")
    if vectors.ndim != 2 or vectors.shape[1] != dimensions:
        raise WrongDimensions(vectors.shape[1] if vectors.ndim == 2 else vectors[0].size)
    return replace(reply, vectors=vectors)


def _reply(body: _Body, expected: int, dimensions: int) -> Reply:
    if len(body.data) != expected:
        raise EmbedderUnavailable(f"the embedder answered {len(body.data):,} vectors for {expected:,} texts")
    indexes = np.array([item.index for item in body.data], dtype=np.int64)
    order = np.argsort(indexes, kind="stable")
    if not np.array_equal(indexes[order], np.arange(expected)):
        raise EmbedderUnavailable("the embedder answered vectors that do not name each text once by its index")
    rows = [_numbers(item.embedding) for item in body.data]
    for row in rows:
        if row.shape != (dimensions,):
            raise WrongDimensions(row.size)
    vectors = np.stack(rows)[order] if rows else np.empty((0, dimensions), np.float32)
    return Reply(vectors, body.usage.prompt_tokens if body.usage else None, body.model)


def _numbers(embedding: str | list[Any]) -> Vectors:
    try:
        if isinstance(embedding, str):
            return np.frombuffer(base64.b64decode(embedding, validate=True), dtype="<f4").astype(np.float32)
        with np.errstate(over="ignore"):
            return np.array(embedding, dtype=np.float32)
    except (ValueError, TypeError, binascii.Error):
        raise EmbedderUnavailable("the embedder answered a vector that is neither base64 nor numbers") from None
