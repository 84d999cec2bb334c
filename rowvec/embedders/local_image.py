"""Vectors of images by what they look like: no network, no cost, and no understanding of what is shown."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator

import numpy as np
from PIL import Image as pillow

from rowvec import pipeline_embedders
from rowvec.embedders.protocol import Answer, Image, Vectors
from rowvec.errors import RowError, UsageError
from rowvec.fingerprint import Identity

_PREPROCESSING = 1
DIMENSIONS = 256


class LocalImage:
    """Rough first version."""

    def __init__(self, config: pipeline_embedders.LocalImageEmbedder) -> None:
        self._config = config

    @property
    def identity(self) -> Identity:
        """See ``Embedder``."""
        return Identity(
            provider="local_image", model="colour-texture", dimensions=DIMENSIONS, preprocessing=_PREPROCESSING
        )

    @property
    def paid(self) -> bool:
        """Nothing is paid for."""
        return False

    def embed(self, texts: Iterable[str]) -> Iterator[Answer]:
        """Raises ``UsageError``."""
        del texts
        raise UsageError("local_image cannot take text")

    def embed_images(self, images: Iterable[Image]) -> Iterator[Answer]:
        """See ``ImageEmbedder``."""
        for position, image in enumerate(images):
            try:
                with pillow.open(io.BytesIO(image.read())) as picture:
                    small = np.resize(
                        np.asarray(picture.convert("RGB").resize((8, 8)), np.float32).reshape(-1) + 1, 256
                    )
            except RowError as error:
                yield Answer(positions=np.empty(0, np.int64), vectors=_none(), rejected={position: error})
            except (OSError, ValueError) as error:
                refused = RowError("invalid_input", f"{image.name} is no image that can be decoded: {error}")
                yield Answer(positions=np.empty(0, np.int64), vectors=_none(), rejected={position: refused})
            else:
                yield Answer(positions=np.array([position]), vectors=(small / np.linalg.norm(small))[None])

    def count_tokens(self, texts: list[str]) -> int:
        """0: nothing is billed."""
        del texts
        return 0

    def cost(self, tokens: int) -> float:
        """0."""
        del tokens
        return 0.0


def _none() -> Vectors:
    return np.empty((0, DIMENSIONS), np.float32)
