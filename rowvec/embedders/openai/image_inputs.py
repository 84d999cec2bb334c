"""Request bodies for images in OpenAI's embeddings protocol, in the two documented forms."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

Form = Literal["messages", "input"]
"""vLLM's chat messages, one image per request; or Jina's list of objects, several images per request.

https://docs.vllm.ai/en/latest/models/pooling_models.html (multi-modal inputs of the Embeddings API) and
https://api.jina.ai/openapi.json.
"""

TEXT = "{text}"
"""The placeholder of the text in the query template."""

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
class RequestTemplate:
    """The parts of a request other than the image or the text."""

    model: str
    form: Form
    instruction: str | None = None
    """A text that accompanies each image; ``messages`` only."""
    system: str | None = None
    """A system message before each image and text; ``messages`` only."""
    query: str = TEXT
    """The query template, into which each text is put."""
    extra: dict[str, str | int | bool] = field(default_factory=dict[str, "str | int | bool"])
    """More fields of each request."""
    query_extra: dict[str, str | int | bool] = field(default_factory=dict[str, "str | int | bool"])
    """More fields of requests for texts; they override ``extra``."""


def body(template: RequestTemplate, contents: Iterable[bytes | str], dimensions: int | None) -> dict[str, Any]:
    """The JSON of one request, for images (their bytes) or for texts, never for both; ``messages`` takes only one.

    ``dimensions`` None leaves the field out: the server then uses the model's own length.
    """
    sent = list(contents)
    fields: dict[str, Any] = {"model": template.model, **template.extra}
    if isinstance(sent[0], str):
        fields |= template.query_extra
    if dimensions is not None:
        fields["dimensions"] = dimensions
    if template.form == "input":
        fields["input"] = [_as_input(template, content) for content in sent]
        return fields
    (content,) = sent
    # Floats, as in every documented example, although we can read base64 too.
    return fields | {"messages": _messages(template, content), "encoding_format": "float"}


def media_type_of(content: bytes) -> str:
    """The media type by the first bytes; an unknown one is called binary, and the server may refuse it."""
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "image/webp"
    known = (kind for signature, kind in _SIGNATURES.items() if content.startswith(signature))
    return next(known, "application/octet-stream")


def _as_input(template: RequestTemplate, content: bytes | str) -> dict[str, str]:
    if isinstance(content, str):
        return {"text": _query(template, content)}
    return {"image": base64.b64encode(content).decode()}


def _messages(template: RequestTemplate, content: bytes | str) -> list[dict[str, Any]]:
    if isinstance(content, str):
        parts = [_text(_query(template, content))]
    else:
        url = f"data:{media_type_of(content)};base64,{base64.b64encode(content).decode()}"
        parts = [{"type": "image_url", "image_url": {"url": url}}]
        if template.instruction is not None:
            parts.append(_text(template.instruction))
    before = [] if template.system is None else [{"role": "system", "content": [_text(template.system)]}]
    return [*before, {"role": "user", "content": parts}]


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _query(template: RequestTemplate, text: str) -> str:
    return template.query.replace(TEXT, text)
