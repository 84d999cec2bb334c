"""Opens the embedder that a pipeline names: one module per kind, imported only when it is opened."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, cast

from rowvec.embedders.plugin import TextModel
from rowvec.embedders.protocol import Embedder, ImageEmbedder
from rowvec.embedders.query import embed_image_query, embed_query, image_in
from rowvec.embedders.text_requests import PaidTextRequests, TextRequests
from rowvec.errors import UsageError
from rowvec.pipeline import embedders
from rowvec.pipeline.embedder_kinds import EMBEDDERS

if TYPE_CHECKING:
    from rowvec.embedders.openai.batch_api import OpenAIBatches
    from rowvec.embedders.openai.texts import OpenAIApi

__all__ = [
    "embed_image_query",
    "embed_query",
    "image_in",
    "open_batch_api",
    "open_embedder",
    "open_image_embedder",
]


def open_embedder(embedder: embedders.Embedder) -> Embedder:
    """The embedder that a pipeline names; the references in ``embedder`` must be resolved.

    Nothing is sent yet. Raises ``UsageError`` if the settings cannot work, whatever the provider answers.
    """
    opened = _opened(embedder)
    if not isinstance(opened, TextModel):
        return cast("Embedder", opened)
    if isinstance(embedder, embedders.PaidEmbedder):
        return PaidTextRequests(embedder, opened)
    return TextRequests(cast("embedders.TextEmbedder", embedder), opened)


def _opened(embedder: embedders.Embedder) -> object:
    """What the entry of the kind names, made with the part of the pipeline."""
    kind = EMBEDDERS.find(embedder.kind)
    module, _, name = kind.opens.partition(":")
    try:
        opens = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UsageError(
            f"the embedder {embedder.kind} of {EMBEDDERS.plugin_of(embedder.kind)} cannot be opened ({error}); install "
            "what it needs, or a version of it that fits"
        ) from error
    return opens(embedder)


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
    if not EMBEDDERS.find(embedder.kind).takes_images:
        raise UsageError(
            f"an embedder of kind {embedder.kind} takes no images: search by a text; azure_vision, "
            "openai_images and local_image take images"
        )
    return cast("ImageEmbedder", open_embedder(embedder))
