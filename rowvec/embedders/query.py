"""The vector of a search query, which is one text or one image; an error says why there is none."""

from __future__ import annotations

import mimetypes
from pathlib import Path

from rowvec.embedders.protocol import Embedder, Image, ImageEmbedder
from rowvec.errors import UsageError
from rowvec.vectors.layout import Embeddings


def embed_query(embedder: Embedder, text: str) -> Embeddings:
    """``(d,)``, or sparse: the vector of a query, by the embedder that made the table's vectors.

    If the source brings the vectors, the query must be a vector too, written ``[0.1, 0.2, ...]`` or
    ``{1:0.1,7:0.2}/9``. Raises ``UsageError`` if the text has no vector, and what ``embed`` raises.
    """
    if not text.strip():
        raise UsageError("the query is empty; write what to search for")
    for answer in embedder.embed_queries([text]):
        for refusal in answer.rejected.values():
            if embedder.identity.from_source:
                length = embedder.identity.dimensions
                raise UsageError(
                    "the vectors of this table came with the source, so a text cannot be searched for: give the query "
                    f"as a vector of {length} numbers, [0.1, 0.2, ...] or {{1:0.1,7:0.2}}/{length} ({refusal.detail})"
                )
            raise UsageError(f"the query has no vector ({refusal.detail}); search for something else")
        if len(answer.positions):
            return answer.vectors[0]
    raise UsageError("the embedder gave no vector for the query; search for something else")


def embed_image_query(embedder: ImageEmbedder, image: Image) -> Embeddings:
    """``(d,)``: the vector of an image to search by.

    Raises ``UsageError`` if the image has no vector, and what ``embed_images`` raises.
    """
    for answer in embedder.embed_images([image]):
        for refusal in answer.rejected.values():
            if refusal.detail.startswith(f"{image.name} "):
                raise UsageError(f"{refusal.detail}; search by another image")
            why = refusal.detail.removeprefix(f"{image.name}: ")
            raise UsageError(f"{image.name} has no vector ({why}); search by another image")
        if len(answer.positions):
            return answer.vectors[0]
    raise UsageError(f"the embedder gave no vector for {image.name}; search by another image")


def image_in(path: Path) -> Image:
    """The image in a file, to search by. Raises ``UsageError`` if there is no such file; its ``read`` does too."""

    def read() -> bytes:
        try:
            return path.read_bytes()
        except OSError as error:
            raise UsageError(f"the image {path} cannot be read ({error.strerror}); name another one") from None

    if not path.is_file():
        raise UsageError(f"there is no image {path}; name a file to search by")
    media_type, _ = mimetypes.guess_type(path)
    return Image(name=path.name, media_type=media_type or "application/octet-stream", read=read)
