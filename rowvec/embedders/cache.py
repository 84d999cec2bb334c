"""One embedder a process for each that pipelines ask for: a model is loaded once, and all batches share its pace."""

from __future__ import annotations

import threading

from rowvec.embedders import open_embedder, open_image_embedder
from rowvec.embedders.protocol import Embedder, ImageEmbedder
from rowvec.pipeline.embedders import Embedder as EmbedderPart

_embedders: dict[str, Embedder] = {}
_image_embedders: dict[str, ImageEmbedder] = {}
_opening = threading.Lock()


def opened_embedder(part: EmbedderPart) -> Embedder:
    """The embedder of a pipeline, whose references are resolved. Raises what ``open_embedder`` raises."""
    written = part.model_dump_json()
    with _opening:
        if written not in _embedders:
            _embedders[written] = open_embedder(part)
        return _embedders[written]


def opened_image_embedder(part: EmbedderPart) -> ImageEmbedder:
    """As ``opened_embedder``, of one that takes images."""
    written = part.model_dump_json()
    with _opening:
        if written not in _image_embedders:
            _image_embedders[written] = open_image_embedder(part)
        return _image_embedders[written]
