"""Batch API files: one request per input line, one response per output line, and how input is split into files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

ENDPOINT = "/v1/embeddings"

# https://platform.openai.com/docs/api-reference/batch/create: the limits of one job of embeddings. A megabyte
# is taken as 1,000,000 bytes, the smaller of its two meanings.
MOST_INPUTS = 50_000
MOST_BYTES = 200_000_000

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A text to be sent in a job."""

    fingerprint: bytes
    line: bytes
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class JobLimits:
    """The most that one job may hold."""

    inputs: int = MOST_INPUTS
    bytes: int = MOST_BYTES
    tokens: int | None = None
    """None: no limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerLine:
    """The outcome of one request of a job."""

    fingerprint: bytes
    status: int | None
    """None: the provider never ran the request, for example because the job expired."""
    body: Mapping[str, Any]
    """The body of the response: embeddings, or ``error``."""
    error: Mapping[str, Any]
    """Why there is no response; empty if there is one."""


class _Response(BaseModel):
    status_code: int
    body: dict[str, Any] | None = None


class _Line(BaseModel):
    custom_id: str
    response: _Response | None = None
    error: dict[str, Any] | None = None


def request_line(fingerprint: bytes, text: str, model: str, dimensions: int | None) -> bytes:
    """One request with one text, identified by the text's fingerprint; ends with a newline."""
    body: dict[str, Any] = {"model": model, "input": [text], "encoding_format": "base64"}
    if dimensions is not None:
        body["dimensions"] = dimensions
    request = {"custom_id": fingerprint.hex(), "method": "POST", "url": ENDPOINT, "body": body}
    return json.dumps(request, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def read_line(line: bytes) -> AnswerLine | None:
    """A line of an output or error file; None if it cannot be the answer to a request of ours."""
    try:
        read = _Line.model_validate_json(line)
        fingerprint = bytes.fromhex(read.custom_id)
    except (ValidationError, ValueError):
        return None
    status, body = (read.response.status_code, read.response.body or {}) if read.response else (None, {})
    return AnswerLine(fingerprint=fingerprint, status=status, body=body, error=read.error or {})


def within(entries: Iterable[Entry], tokens: int | None) -> Iterator[Entry]:
    """The first entries that together have at most this many tokens; reads at most one entry more."""
    total = 0
    for entry in entries:
        total += entry.tokens
        if tokens is not None and total > tokens:
            return
        yield entry


def numbered(entries: Iterable[Entry], limits: JobLimits) -> Iterator[tuple[int, Entry]]:
    """Each entry with the number of its job, from 0; jobs are filled in order, each as full as the limits allow.

    An entry that exceeds a limit by itself gets a job of its own, which the provider then refuses.
    """
    job = inputs = size = tokens = 0
    for entry in entries:
        full = inputs + 1 > limits.inputs or size + len(entry.line) > limits.bytes
        full = full or (limits.tokens is not None and tokens + entry.tokens > limits.tokens)
        if inputs and full:
            job, inputs, size, tokens = job + 1, 0, 0, 0
        inputs, size, tokens = inputs + 1, size + len(entry.line), tokens + entry.tokens
        yield job, entry
