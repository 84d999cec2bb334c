"""The kinds of embedders: one table of those that rowvec has, and an entry point for those that others bring."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rowvec.pipeline import embedders
from rowvec.pipeline.kinds import Kind, Kinds


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedderKind(Kind):
    """One kind of embedder.

    ``config`` of a plug-in is a subclass of ``PluginEmbedder``. ``opens`` names a class whose constructor takes a
    ``config``; that of a plug-in is a ``rowvec.embedders.plugin.TextModel``.
    """

    takes_images: bool = False
    """Whether the class is an ``ImageEmbedder``."""


# Modules are named, not imported: openai and wordllama take half a second each, and a run needs at most one of them.
BUILT_IN: Mapping[str, EmbedderKind] = {
    "local": EmbedderKind(config=embedders.LocalEmbedder, opens="rowvec.embedders.wordllama:LocalModel"),
    "local_image": EmbedderKind(
        config=embedders.LocalImageEmbedder, opens="rowvec.embedders.image_similarity:LocalImage", takes_images=True
    ),
    "column": EmbedderKind(config=embedders.ColumnEmbedder, opens="rowvec.embedders.column:SourceColumn"),
    "azure_vision": EmbedderKind(
        config=embedders.AzureVisionEmbedder,
        opens="rowvec.embedders.azure_vision.embedder:AzureVision",
        takes_images=True,
    ),
    "openai_images": EmbedderKind(
        config=embedders.OpenAIImagesEmbedder, opens="rowvec.embedders.openai.images:OpenAIImages", takes_images=True
    ),
    "openai": EmbedderKind(config=embedders.OpenAIEmbedder, opens="rowvec.embedders.openai.texts:OpenAIApi"),
    "azure_openai": EmbedderKind(config=embedders.AzureOpenAIEmbedder, opens="rowvec.embedders.openai.texts:OpenAIApi"),
    "litellm": EmbedderKind(config=embedders.LitellmEmbedder, opens="rowvec.embedders.litellm_model:LitellmModel"),
}


EMBEDDERS = Kinds(
    part="embedder",
    noun="kind of embedder",
    group="rowvec.embedders",
    page="docs/how-to/bring-your-own-embedder.md",
    built_in=BUILT_IN,
    registered=EmbedderKind,
    plugin=embedders.PluginEmbedder,
)
