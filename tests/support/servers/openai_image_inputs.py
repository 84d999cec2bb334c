"""What a request of OpenAI's embeddings protocol asks about where it holds images: vLLM's messages, Jina's objects.

Each input becomes a text, of which the stand-in makes a vector: an image is its checksum, or the text that it shows, so
that a text can be seen to find an image; what comes with it (an instruction, a system message) changes the vector.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from typing import Any

_SIGNATURES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"RIFF", b"II*\0", b"MM\0*", b"\0\0\1\0")
_DATA_URL = re.compile(r"data:[a-z]+/[a-z-]+;base64,(.+)", re.DOTALL)


class Unreadable(Exception):
    """What such a server answers with a 400."""


def meant(image: bytes) -> str:
    """What an image is as an input, unless it is known to show something."""
    return f"sha256:{hashlib.sha256(image).hexdigest()}"


def inputs_of(body: dict[str, Any], shows: dict[str, str]) -> list[str]:
    """The inputs of a request, as texts. Raises ``Unreadable``."""
    if "messages" in body:
        if "input" in body:
            raise Unreadable("Extra inputs are not permitted: input")
        return [" | ".join(_said(part, shows) for message in body["messages"] for part in _parts(message))]
    given = body.get("input")
    inputs: list[Any] = [given] if isinstance(given, str) else list(given or [])
    return [_object(one, shows) if isinstance(one, dict) else one for one in inputs]


def _parts(message: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [(message["role"], part) for part in message["content"]]


def _said(part: tuple[str, dict[str, Any]], shows: dict[str, str]) -> str:
    role, content = part
    if content["type"] == "text":
        return content["text"] if role == "user" else f"{role}: {content['text']}"
    if content["type"] != "image_url":
        raise Unreadable(f"Unknown part type: {content['type']}")
    found = _DATA_URL.fullmatch(content["image_url"]["url"])
    if found is None:
        raise Unreadable("The URL must be either a HTTP, data or file URL.")
    return _image(found[1], shows)


def _object(one: Any, shows: dict[str, str]) -> str:
    if "image" in one:
        return _image(one["image"], shows)
    return one["text"]


def _image(encoded: str, shows: dict[str, str]) -> str:
    try:
        image = base64.b64decode(encoded, validate=True)
    except binascii.Error:
        raise Unreadable("Invalid base64-encoded string") from None
    if not image.startswith(_SIGNATURES):
        raise Unreadable("cannot identify image file")
    return shows.get(hashlib.sha256(image).hexdigest(), meant(image))
