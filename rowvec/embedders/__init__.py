"""What makes vectors of texts and images: one module a kind, opened by what the pipeline says."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rowvec.embedders.protocol import Embedder, ImageEmbedder
from rowvec.embedders.query import embed_image_query, embed_query, image_in
from rowvec.errors import UsageError
from rowvec.pipeline import embedders

if TYPE_CHECKING:
    from rowvec.embedders.openai.batch_api import OpenAIBatches
    from rowvec.embedders.openai.texts import OpenAIApi

__all__ = ["embed_image_query", "embed_query", "image_in", "open_batch_api", "open_embedder", "open_image_embedder"]


def open_embedder(embedder: embedders.Embedder) -> Embedder:
    """The embedder a pipeline asks for; its references are resolved already.

    Nothing is sent yet. Raises ``UsageError`` where the settings cannot work whatever the provider answers.
    """
    # Imports are late: openai and wordllama take half a second each, and a run needs one of them at most.
    match embedder.kind:
        case "openai" | "azure_openai":
            from rowvec.embedders.openai.texts import OpenAIApi

            return OpenAIApi(embedder)
        case "local":
            from rowvec.embedders.wordllama import LocalModel

            return LocalModel(embedder)
        case "column":
            from rowvec.embedders.column import SourceColumn

            return SourceColumn(embedder)
        case "azure_vision":
            from rowvec.embedders.azure_vision.embedder import AzureVision

            return AzureVision(embedder)
        case "openai_images":
            from rowvec.embedders.openai.images import OpenAIImages

            return OpenAIImages(embedder)
        case "local_image":
            from rowvec.embedders.image_similarity import LocalImage

            return LocalImage(embedder)


@contextmanager
def open_batch_api(embedder: embedders.Embedder) -> Generator[tuple[OpenAIApi, OpenAIBatches]]:
    """The embedder with its provider's Batch API. Raises ``UsageError`` where it has none."""
    from rowvec.embedders.openai.texts import OpenAIApi

    if not isinstance(embedder, embedders.OpenAIEmbedder):
        raise UsageError(f"an embedder of kind {embedder.kind} takes no batch jobs; leave embedder.batch out")
    api = OpenAIApi(embedder)
    with api.batch_api() as batches:
        yield api, batches


def open_image_embedder(embedder: embedders.Embedder) -> ImageEmbedder:
    """As ``open_embedder``, of those that take images. Raises ``UsageError`` for the others."""
    match embedder.kind:
        case "azure_vision":
            from rowvec.embedders.azure_vision.embedder import AzureVision

            return AzureVision(embedder)
        case "openai_images":
            from rowvec.embedders.openai.images import OpenAIImages

            return OpenAIImages(embedder)
        case "local_image":
            from rowvec.embedders.image_similarity import LocalImage

            return LocalImage(embedder)
        case _:
            raise UsageError(
                f"an embedder of kind {embedder.kind} takes no images: search by a text; azure_vision, "
                "openai_images and local_image take images"
            )
