"""Vectors of images by colour, shape and texture: no network, no cost, no understanding of what they show."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from rowvec.embedders.budget import UNLIMITED, BudgetHold
from rowvec.embedders.checks import defect, usable
from rowvec.embedders.image_descriptor import DIMENSIONS, SIDE, describe
from rowvec.embedders.protocol import Answer, Image, QueriesLikeDocuments, Unbilled, identity_of
from rowvec.errors import RowError, UsageError
from rowvec.images.decode import decoded
from rowvec.pipeline import embedders
from rowvec.vectors.layout import Vectors

# 1: decoded on white, the right way up, and described as in image_descriptor.py.
_PREPROCESSING = 1

_ANSWER_IMAGES = 256


class LocalImage(QueriesLikeDocuments, Unbilled):
    """Finds look-alikes: images with the same colours in the same places, and edges in the same directions."""

    def __init__(self, config: embedders.LocalImageEmbedder) -> None:
        super().__init__(identity_of(config, _PREPROCESSING))

    def embed(self, texts: Iterable[str], budget: BudgetHold = UNLIMITED) -> Iterator[Answer]:
        """Raises ``UsageError``: this embedder has no vectors of texts."""
        del texts
        raise UsageError(
            "the embedder local_image knows how images look and nothing of words: search by an image with --image "
            "PATH, or use an embedder that takes both, such as azure_vision or openai_images"
        )

    def embed_images(self, images: Iterable[Image], budget: BudgetHold = UNLIMITED) -> Iterator[Answer]:
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


def _answer(positions: list[int], vectors: Vectors, rejected: dict[int, RowError]) -> Answer:
    found, at = vectors[: len(positions)].copy(), np.array(positions, np.int64)
    good = usable(found)
    for i in np.flatnonzero(~good):
        rejected[int(at[i])] = RowError("invalid_vector", defect(found[i]))
    return Answer(positions=at[good], vectors=found[good], rejected=rejected)
