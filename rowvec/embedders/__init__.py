"""Opens the embedder that a pipeline names: one module per kind, imported only when it is opened."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, cast

from rowvec.embedders.protocol import Embedder, ImageEmbedder
from rowvec.embedders.query import embed_image_query, embed_query, image_in
from rowvec.errors import UsageError
from rowvec.pipeline import embedders

if TYPE_CHECKING:
    from rowvec.embedders.openai.batch_api import OpenAIBatches
    from rowvec.embedders.openai.texts import OpenAIApi

__all__ = [
    "KINDS",
    "embed_image_query",
    "embed_query",
    "image_in",
    "open_batch_api",
    "open_embedder",
    "open_image_embedder",
]


@dataclass(frozen=True, slots=True)
class EmbedderKind:
    """Where the class of one kind of embedder is; its constructor takes the pipeline's ``embedder`` part."""

    module: str
    class_name: str
    takes_images: bool = False
    """Whether the class is an ``ImageEmbedder``."""


# Modules are named, not imported: openai and wordllama take half a second each, and a run needs at most one of them.
KINDS = {
    "openai": EmbedderKind("rowvec.embedders.openai.texts", "OpenAIApi"),
    "azure_openai": EmbedderKind("rowvec.embedders.openai.texts", "OpenAIApi"),
    "local": EmbedderKind("rowvec.embedders.wordllama", "LocalModel"),
    "column": EmbedderKind("rowvec.embedders.column", "SourceColumn"),
    "azure_vision": EmbedderKind("rowvec.embedders.azure_vision.embedder", "AzureVision", takes_images=True),
    "openai_images": EmbedderKind("rowvec.embedders.openai.images", "OpenAIImages", takes_images=True),
    "local_image": EmbedderKind("rowvec.embedders.image_similarity", "LocalImage", takes_images=True),
}


def open_embedder(embedder: embedders.Embedder) -> Embedder:
    """The embedder that a pipeline names; the references in ``embedder`` must be resolved.

    Nothing is sent yet. Raises ``UsageError`` if the settings cannot work, whatever the provider answers.
    """
    kind = KINDS[embedder.kind]
    opened = cast("Callable[[embedders.Embedder], Embedder]", getattr(import_module(kind.module), kind.class_name))
    return opened(embedder)


@contextmanager
def open_batch_api(embedder: embedders.Embedder) -> Generator[tuple[OpenAIApi, OpenAIBatches]]:
    """The embedder with its provider's Batch API. Raises ``UsageError`` if it has none."""
    from rowvec.embedders.openai.texts import OpenAIApi

    if not isinstance(embedder, embedders.OpenAIEmbedder):
        raise UsageError(f"an embedder of kind {embedder.kind} takes no batch jobs; leave embedder.batch out")
    api = OpenAIApi(embedder)
    with api.batch_api() as batches:
        yield api, batches


def open_image_embedder(embedder: embedders.Embedder) -> ImageEmbedder:
    """Like ``open_embedder``, for kinds that take images. Raises ``UsageError`` for the others too."""
    if not KINDS[embedder.kind].takes_images:
        raise UsageError(
            f"an embedder of kind {embedder.kind} takes no images: search by a text; azure_vision, "
            "openai_images and local_image take images"
        )
    return cast("ImageEmbedder", open_embedder(embedder))
