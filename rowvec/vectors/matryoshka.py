"""A shorter vector from a longer one that was paid for: models trained so (Matryoshka) put what matters first."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from psycopg import sql

from rowvec.ledger.pipelines import PipelineId
from rowvec.postgres.connection import Connection
from rowvec.postgres.queries import query
from rowvec.vectors.fingerprint import Identity


def can_be_cut(identity: Identity) -> bool:
    """Whether the provider itself shortens this model's vectors by cutting them and making them one long.

    OpenAI says so of text-embedding-3 and its successors; an Azure deployment's name does not tell the model.
    """
    if identity.provider == "openai":
        return identity.model.startswith("text-embedding-3")
    return identity.provider == "local"


def longer_identities(connection: Connection, pipeline_id: PipelineId, identity: Identity) -> list[Identity]:
    """Of the pipeline's other generations, those whose vectors can be cut to this identity's length; longest first."""
    if not can_be_cut(identity):
        return []
    rows = connection.execute(query("generations", "identities"), {"pipeline_id": pipeline_id}).fetchall()
    known = [Identity(**row[0]) for row in rows]
    same = [
        other
        for other in dict.fromkeys(known)
        if (other.provider, other.model, other.preprocessing)
        == (identity.provider, identity.model, identity.preprocessing)
        and other.dimensions > identity.dimensions
    ]
    return sorted(same, key=lambda other: -other.dimensions)


def cut(vectors: npt.NDArray[np.float32], dimensions: int) -> npt.NDArray[np.float32]:
    """The first ``dimensions`` of ``(n, d)`` vectors, each made one long again; ``(n, dimensions)``."""
    heads = vectors[:, :dimensions].astype(np.float64)
    norms = np.linalg.norm(heads, axis=1, keepdims=True)
    return (heads / np.where(norms > 0, norms, 1)).astype(np.float32)


def paid_for(connection: Connection, pipeline_id: PipelineId, identity: Identity) -> sql.Composed:
    """As SQL over a row ``p`` with ``fingerprint`` and ``content``: whether embedding it would cost nothing."""
    digests = [other.digest() for other in longer_identities(connection, pipeline_id, identity)]
    return query("extract", "paid_for", pipeline_id=sql.Literal(pipeline_id), longer=sql.Literal(digests))
