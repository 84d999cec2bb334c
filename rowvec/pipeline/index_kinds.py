"""The kinds of indexes: one table of those that pgvector has, and an entry point for those of other extensions."""

from __future__ import annotations

from dataclasses import dataclass

from rowvec.pipeline.indexes import Index, PluginIndex
from rowvec.pipeline.kinds import Kind, Kinds


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexKind(Kind):
    """One kind of index.

    ``config`` of a plug-in is a subclass of ``PluginIndex``. ``opens`` names a ``rowvec.index.plugin.IndexMethod``.
    """


INDEXES = Kinds(
    part="index",
    noun="kind of index",
    group="rowvec.indexes",
    page="docs/how-to/bring-your-own-index.md",
    built_in={
        "hnsw": IndexKind(config=Index, opens="rowvec.searches.index_kinds.hnsw:Hnsw"),
        "ivfflat": IndexKind(config=Index, opens="rowvec.searches.index_kinds.ivfflat:IvfFlat"),
    },
    words=("auto", "none"),
    registered=IndexKind,
    plugin=PluginIndex,
)
