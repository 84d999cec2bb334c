"""Vectors of images by what they look like: no network, no cost, and no understanding of what is shown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from rowvec.embedders.checks import defect, usable
from rowvec.embedders.image_descriptor import DIMENSIONS, SIDE, describe
from rowvec.embedders.protocol import Answer, Image
from rowvec.embedders.provider.budget import FREE, Purse
from rowvec.errors import RowError, UsageError
from rowvec.images.decode import decoded
from rowvec.pipeline import embedders
from rowvec.vectors.fingerprint import Identity
from rowvec.vectors.layout import Vectors

# 1: decoded on white, the right way up, and described as in descriptor.py.
_PREPROCESSING = 1

_ANSWER_IMAGES = 256


class LocalImage:
    """Finds look-alikes: images with the same colours in the same places, and edges that run the same way."""

    def __init__(self, config: embedders.LocalImageEmbedder) -> None:
        self._config = config

    @property
    def identity(self) -> Identity:
        """See ``Embedder``."""
        return Identity(
            provider="local_image",
            model=self._config.model,
            dimensions=self._config.dimensions,
            preprocessing=_PREPROCESSING,
        )

    @property
    def paid(self) -> bool:
        """Nothing is paid for."""
        return False

    def embed(self, texts: Iterable[str], purse: Purse = FREE) -> Iterator[Answer]:
        """Raises ``UsageError``: there is no vector of a text here."""
        del texts
        raise UsageError(
            "the embedder local_image knows how images look and nothing of words: search by an image with --image "
            "PATH, or use an embedder that takes both, such as azure_vision or "
            "openai_images"
        )

    def embed_images(self, images: Iterable[Image], purse: Purse = FREE) -> Iterator[Answer]:
        """See ``ImageEmbedder``. Vectors have length 1."""
        vectors = np.empty((_ANSWER_IMAGES, DIMENSIONS), np.float32)
        positions, rejected = list[int](), dict[int, RowError]()
        for position, image in enumerate(images):
            try:
                picture = decoded(image.read(), image.name, at_least=SIDE)
                vectors[len(positions)] = describe(picture)
            except RowError as error:
                rejected[position] = error
            else:
                positions.append(position)
            if len(positions) + len(rejected) == _ANSWER_IMAGES:
                yield _answer(positions, vectors, rejected)
                positions, rejected = [], {}
        if positions or rejected:
            yield _answer(positions, vectors, rejected)

    def count_tokens(self, texts: list[str]) -> int:
        """0: nothing is billed."""
        del texts
        return 0

    def cost(self, tokens: int) -> float:
        """0."""
        del tokens
        return 0.0


def _answer(positions: list[int], vectors: Vectors, rejected: dict[int, RowError]) -> Answer:
    found, of = vectors[: len(positions)].copy(), np.array(positions, np.int64)
    good = usable(found)
    for i in np.flatnonzero(~good):
        rejected[int(of[i])] = RowError("invalid_vector", defect(found[i]))
    return Answer(positions=of[good], vectors=found[good], rejected=rejected)
