"""The vector of a search query: one text, and either a vector or a sentence on why there is none."""

from __future__ import annotations

from rowvec.embedders.protocol import Embedder
from rowvec.errors import UsageError
from rowvec.vector_layout import Embeddings


def embed_query(embedder: Embedder, text: str) -> Embeddings:
    """``(d,)``, or sparse: the vector of a query, by the embedder that made the table's vectors.

    Where the vectors come with the source, the query is a vector too, written ``[0.1, 0.2, ...]``
    or ``{1:0.1,7:0.2}/9``. Raises
    ``UsageError`` where the text has no vector, and what ``embed`` raises.
    """
    if not text.strip():
        raise UsageError("the query is empty; write what to search for")
    for answer in embedder.embed([text]):
        for refusal in answer.rejected.values():
            if embedder.identity.provider == "column":
                length = embedder.identity.dimensions
                raise UsageError(
                    "the vectors of this table came with the source, so a text cannot be searched for: give the query "
                    f"as a vector of {length} numbers, [0.1, 0.2, ...] or {{1:0.1,7:0.2}}/{length} ({refusal.detail})"
                )
            raise UsageError(f"the query has no vector ({refusal.detail}); search for something else")
        if len(answer.positions):
            return answer.vectors[0]
    raise UsageError("the embedder gave no vector for the query; search for something else")
