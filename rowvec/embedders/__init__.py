"""What makes vectors of texts: one module a kind, opened by what the pipeline says."""

from __future__ import annotations

from rowvec import pipeline_embedders
from rowvec.embedders.protocol import Embedder
from rowvec.embedders.question import embed_query

__all__ = ["embed_query", "open_embedder"]


def open_embedder(embedder: pipeline_embedders.Embedder) -> Embedder:
    """The embedder a pipeline asks for; its references are resolved already.

    Nothing is sent yet. Raises ``UsageError`` where the settings cannot work whatever the provider answers.
    """
    # Imports are late: openai and wordllama take half a second each, and a run needs one of them at most.
    match embedder.kind:
        case "openai" | "azure_openai":
            from rowvec.embedders.openai_api import OpenAIApi

            return OpenAIApi(embedder)
        case "local":
            from rowvec.embedders.local import LocalModel

            return LocalModel(embedder)
        case "column":
            from rowvec.embedders.column import SourceColumn

            return SourceColumn(embedder)
