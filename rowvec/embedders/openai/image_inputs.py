"""The two documented ways to ask a server that speaks OpenAI's embeddings protocol for the vector of an image."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

Form = Literal["messages", "input"]
"""vLLM's chat messages, one image a request; or Jina's list of objects, several.

https://docs.vllm.ai/en/latest/models/pooling_models.html (multi-modal inputs of the Embeddings API) and
https://api.jina.ai/openapi.json.
"""

TEXT = "{text}"
"""Where a query's text stands in the template of queries."""

_SIGNATURES = {
    b"\x89PNG": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF8": "image/gif",
    b"BM": "image/bmp",
    b"II*\0": "image/tiff",
    b"MM\0*": "image/tiff",
    b"\0\0\1\0": "image/x-icon",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wording:
    """What a request says besides the image or the text."""

    model: str
    form: Form
    instruction: str | None = None
    """A text beside each image; ``messages`` only."""
    system: str | None = None
    """A system message before each image and text; ``messages`` only."""
    query: str = TEXT
    """What a text is put into."""
    extra: dict[str, str | int | bool] = field(default_factory=dict[str, "str | int | bool"])
    """More fields of each request."""
    query_extra: dict[str, str | int | bool] = field(default_factory=dict[str, "str | int | bool"])
    """More of those that ask for texts; they win over ``extra``."""


def body(wording: Wording, contents: Iterable[bytes | str], dimensions: int | None) -> dict[str, Any]:
    """The JSON of one request: for the bytes of images or for texts, never for both; of ``messages``, for one of them.

    ``dimensions`` None leaves the field out: the server gives what the model has.
    """
    sent = list(contents)
    said: dict[str, Any] = {"model": wording.model, **wording.extra}
    if isinstance(sent[0], str):
        said |= wording.query_extra
    if dimensions is not None:
        said["dimensions"] = dimensions
    if wording.form == "input":
        said["input"] = [_as_input(wording, content) for content in sent]
        return said
    (content,) = sent
    # Floats, as in every documented example; numbers and base64 are both read.
    return said | {"messages": _messages(wording, content), "encoding_format": "float"}


def media_type_of(content: bytes) -> str:
    """By the first bytes; what is not known is called binary, and the server may refuse it."""
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "image/webp"
    known = (kind for signature, kind in _SIGNATURES.items() if content.startswith(signature))
    return next(known, "application/octet-stream")


def _as_input(wording: Wording, content: bytes | str) -> dict[str, str]:
    if isinstance(content, str):
        return {"text": _asked(wording, content)}
    return {"image": base64.b64encode(content).decode()}


def _messages(wording: Wording, content: bytes | str) -> list[dict[str, Any]]:
    if isinstance(content, str):
        parts = [_text(_asked(wording, content))]
    else:
        url = f"data:{media_type_of(content)};base64,{base64.b64encode(content).decode()}"
        parts = [{"type": "image_url", "image_url": {"url": url}}]
        if wording.instruction is not None:
            parts.append(_text(wording.instruction))
    before = [] if wording.system is None else [{"role": "system", "content": [_text(wording.system)]}]
    return [*before, {"role": "user", "content": parts}]


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _asked(wording: Wording, text: str) -> str:
    return wording.query.replace(TEXT, text)
