"""What a plug-in of an index kind imports: its keys in the pipeline file, and how an index is built and searched."""

from __future__ import annotations

from rowvec.errors import UsageError
from rowvec.pipeline.index_kinds import IndexKind
from rowvec.pipeline.indexes import PluginIndex
from rowvec.postgres.vector_index import IndexChoice
from rowvec.searches.index_kinds.protocol import IndexMethod, Option, Sought

__all__ = [
    "IndexChoice",
    "IndexKind",
    "IndexMethod",
    "Option",
    "PluginIndex",
    "Sought",
    "UsageError",
]
