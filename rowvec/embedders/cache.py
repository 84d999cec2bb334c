"""Cache of one embedder per configuration per process: a model is loaded once, and batches share a rate limit."""

from __future__ import annotations

import threading
from hashlib import sha256

from rowvec.embedders import open_embedder, open_image_embedder
from rowvec.embedders.protocol import Embedder, ImageEmbedder
from rowvec.pipeline.embedders import Embedder as EmbedderPart

_embedders: dict[bytes, Embedder] = {}
_image_embedders: dict[bytes, ImageEmbedder] = {}
_opening = threading.Lock()


def opened_embedder(part: EmbedderPart) -> Embedder:
    """The embedder of a pipeline whose references are resolved. Raises what ``open_embedder`` raises."""
    key = _digest(part)
    with _opening:
        if key not in _embedders:
            _embedders[key] = open_embedder(part)
        return _embedders[key]


def opened_image_embedder(part: EmbedderPart) -> ImageEmbedder:
    """Like ``opened_embedder``, for one that takes images. Raises what ``open_image_embedder`` raises."""
    key = _digest(part)
    with _opening:
        if key not in _image_embedders:
            _image_embedders[key] = open_image_embedder(part)
        return _image_embedders[key]


def _digest(part: EmbedderPart) -> bytes:
    """32 bytes. A digest and not the settings themselves, which hold the API key."""
    return sha256(part.model_dump_json().encode()).digest()
