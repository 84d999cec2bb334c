"""What was paid for before: artifacts and answers by fingerprint, so that no text is embedded twice."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import numpy.typing as npt
from psycopg import sql

from rowvec.ledger.pipelines import PipelineId, one
from rowvec.ledger.runs import RunId
from rowvec.postgres.connection import Connection
from rowvec.postgres.queries import query
from rowvec.store.artifact import Artifact
from rowvec.vectors.fingerprint import Identity
from rowvec.vectors.layout import Vectors
from rowvec.vectors.matryoshka import can_be_cut

# Fingerprints of one statement: written out they are 70 bytes each, in the client and in the server.
_ENTERED = 20_000


def add_artifact(
    connection: Connection,
    pipeline_id: PipelineId,
    run_id: RunId,
    batch: int,
    artifact: Artifact,
    fingerprints: list[bytes],
    usd_a_token: float,
) -> None:
    """Record an artifact that is in the store, and let go of the answers it now holds: one transaction."""
    with connection.transaction():
        values = {"pipeline_id": pipeline_id, "run_id": run_id, "batch": batch, **asdict(artifact)}
        artifact_id = one(connection, "add_artifact", **values)
        for start in range(0, len(fingerprints), _ENTERED):
            entries = {
                "pipeline_id": pipeline_id,
                "artifact_id": artifact_id,
                "fingerprints": fingerprints[start : start + _ENTERED],
                "run_id": run_id,
                "usd_a_token": usd_a_token,
            }
            connection.execute(query("ledger", "add_embeddings"), entries)
            connection.execute(query("ledger", "forget_answers"), entries)


def forget_artifact(connection: Connection, pipeline_id: PipelineId, name: str) -> None:
    """An artifact that is lost holds nothing: what it held is taken from elsewhere, or embedded anew."""
    connection.execute(query("ledger", "forget_artifact"), {"pipeline_id": pipeline_id, "name": name})


def artifacts_of(connection: Connection, run_id: RunId) -> list[Artifact]:
    """The artifacts of a run, by batch."""
    rows = connection.execute(query("ledger", "artifacts_of_run"), {"run_id": run_id})
    return [Artifact(name=name, sha256=sha256, rows=n, bytes=size) for name, sha256, n, size in rows]


def has_artifacts(connection: Connection, pipeline_id: PipelineId) -> bool:
    """Whether the ledger knows any artifact of the pipeline."""
    row = connection.execute(query("ledger", "has_artifacts"), {"pipeline_id": pipeline_id}).fetchone()
    return bool(row and row[0])


def relies_on_table(connection: Connection, pipeline_id: PipelineId) -> bool:
    """Whether the vector table may have vectors that the ledger knows no artifact of."""
    row = connection.execute(query("ledger", "relies_on_table"), {"pipeline_id": pipeline_id}).fetchone()
    return bool(row and row[0])


def set_artifacts_lost(connection: Connection, pipeline_id: PipelineId, *, lost: bool) -> None:
    """Note that an artifact was lost, until a repair has written what it held to another one."""
    connection.execute(query("ledger", "set_lost"), {"pipeline_id": pipeline_id, "lost": lost})


def known_answers(connection: Connection, pipeline_id: PipelineId, fingerprints: list[bytes]) -> dict[bytes, Vectors]:
    """Vectors that were paid for and are in no artifact yet, ``(d,)`` each."""
    rows = connection.execute(
        query("ledger", "known_answers"), {"pipeline_id": pipeline_id, "fingerprints": fingerprints}
    )
    return {fingerprint: np.frombuffer(embedding, "<f4") for fingerprint, embedding in rows}


def keep_answers(
    connection: Connection,
    pipeline_id: PipelineId,
    run_id: RunId,
    fingerprints: list[bytes],
    vectors: npt.NDArray[np.float32],
    tokens: int,
    price_share: float = 1.0,
) -> None:
    """Make a paid answer, which cost so many tokens, durable: when this returns, a kill no longer costs it.

    ``price_share``: of a token's price, where a cheaper way was used.
    """
    values = {
        "pipeline_id": pipeline_id,
        "run_id": run_id,
        "fingerprints": fingerprints,
        "embeddings": [vector.astype("<f4", copy=False).tobytes() for vector in vectors],
        "tokens": tokens / max(1, len(fingerprints)),
        "price_share": price_share,
    }
    connection.execute(query("ledger", "keep_answers"), values, binary=True)


def known_in_artifacts(
    connection: Connection, pipeline_id: PipelineId, fingerprints: list[bytes]
) -> dict[tuple[str, str], set[bytes]]:
    """Which of the fingerprints have a vector in an artifact: (name, sha256) to fingerprints."""
    found: dict[tuple[str, str], set[bytes]] = {}
    values = {"pipeline_id": pipeline_id, "fingerprints": fingerprints}
    for fingerprint, name, sha256 in connection.execute(query("ledger", "known_in_artifacts"), values):
        found.setdefault((name, sha256), set()).add(fingerprint)
    return found


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


def paid_for(connection: Connection, pipeline_id: PipelineId, identity: Identity) -> sql.Composed:
    """As SQL over a row ``p`` with ``fingerprint`` and ``content``: whether embedding it would cost nothing."""
    digests = [other.digest() for other in longer_identities(connection, pipeline_id, identity)]
    return query("extract", "paid_for", pipeline_id=sql.Literal(pipeline_id), longer=sql.Literal(digests))
