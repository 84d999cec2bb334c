"""What was paid for before: artifacts and answers by fingerprint, so that no text is embedded twice."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace

import numpy as np
import numpy.typing as npt
import psycopg
from psycopg import sql
from psycopg.pq import TransactionStatus

from rowvec.ledger.lease import whoever_owns
from rowvec.ledger.pipelines import PipelineId, written_id
from rowvec.ledger.runs import RunId
from rowvec.postgres.connection import Connection
from rowvec.postgres.queries import query
from rowvec.store.artifact import Artifact
from rowvec.vectors.fingerprint import Identity
from rowvec.vectors.layout import Vectors
from rowvec.vectors.matryoshka import can_be_cut

# A server that is restarted, or a standby that takes over, answers again within a minute.
_RESTART_SECONDS, _TRY_AGAIN_SECONDS = 60.0, 0.2

# Fingerprints per statement: each takes 70 bytes as text, in the client and in the server.
_FINGERPRINTS_AT_ONCE = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class NewArtifact:
    """An artifact that is in the store and not in the ledger yet."""

    artifact: Artifact
    batch: int
    fingerprints: list[bytes]
    """Of its vectors, each once."""
    usd_per_token: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """Vectors that the embedder returned for a request."""

    fingerprints: list[bytes]
    """``n`` of them."""
    vectors: npt.NDArray[np.float32]
    """``(n, d)``"""
    tokens: int
    """What all of them cost."""
    price_share: float = 1.0
    """The part of a token's price that was charged; below 1 for the Batch API."""


def add_artifact(connection: Connection, pipeline_id: PipelineId, run_id: RunId, new: NewArtifact) -> None:
    """Record an artifact and delete the answers whose vectors it now holds, in one transaction."""
    with connection.transaction():
        values = {"pipeline_id": pipeline_id, "run_id": run_id, "batch": new.batch, **asdict(new.artifact)}
        artifact_id = written_id(connection, query("reuse", "add_artifact"), values)
        for start in range(0, len(new.fingerprints), _FINGERPRINTS_AT_ONCE):
            entries = {
                "pipeline_id": pipeline_id,
                "artifact_id": artifact_id,
                "fingerprints": new.fingerprints[start : start + _FINGERPRINTS_AT_ONCE],
                "run_id": run_id,
                "usd_per_token": new.usd_per_token,
            }
            connection.execute(query("reuse", "add_embeddings"), entries)
            connection.execute(query("reuse", "forget_answers"), entries)


def forget_artifact(connection: Connection, pipeline_id: PipelineId, name: str) -> None:
    """Remove a lost artifact from the ledger: its vectors are taken from elsewhere, or embedded again."""
    connection.execute(query("reuse", "forget_artifact"), {"pipeline_id": pipeline_id, "name": name})


def artifacts_of(connection: Connection, run_id: RunId) -> list[Artifact]:
    """The artifacts of a run, by batch."""
    rows = connection.execute(query("reuse", "artifacts_of_run"), {"run_id": run_id})
    return [Artifact(name=name, sha256=sha256, rows=n, bytes=size) for name, sha256, n, size in rows]


def has_artifacts(connection: Connection, pipeline_id: PipelineId) -> bool:
    """Whether the ledger has any artifact of the pipeline."""
    row = connection.execute(query("reuse", "has_artifacts"), {"pipeline_id": pipeline_id}).fetchone()
    return bool(row and row[0])


def relies_on_table(connection: Connection, pipeline_id: PipelineId) -> bool:
    """Whether the vector table may have vectors that are in no artifact of the ledger."""
    row = connection.execute(query("reuse", "relies_on_table"), {"pipeline_id": pipeline_id}).fetchone()
    return bool(row and row[0])


def set_artifacts_lost(connection: Connection, pipeline_id: PipelineId, *, lost: bool) -> None:
    """Note that an artifact was lost, or, with ``lost=False``, that a repair has written its vectors to another one."""
    connection.execute(query("reuse", "set_lost"), {"pipeline_id": pipeline_id, "lost": lost})


def known_answers(connection: Connection, pipeline_id: PipelineId, fingerprints: list[bytes]) -> dict[bytes, Vectors]:
    """Vectors that were paid for and are in no artifact yet, ``(d,)`` each."""
    rows = connection.execute(
        query("reuse", "known_answers"), {"pipeline_id": pipeline_id, "fingerprints": fingerprints}
    )
    return {fingerprint: np.frombuffer(embedding, "<f4") for fingerprint, embedding in rows}


def keep_answers(connection: Connection, pipeline_id: PipelineId, run_id: RunId, answers: Answers) -> None:
    """Make paid answers durable: after this returns, a killed run does not have to pay for them again.

    A database that is restarted is waited for, because answers that are not kept are paid for again. It does not matter
    whether the run still has its lease: equal fingerprints mean equal vectors.
    """
    values = {
        "pipeline_id": pipeline_id,
        "run_id": run_id,
        "fingerprints": answers.fingerprints,
        "embeddings": [vector.astype("<f4", copy=False).tobytes() for vector in answers.vectors],
        "tokens": answers.tokens / max(1, len(answers.fingerprints)),
        "price_share": answers.price_share,
    }
    # In a transaction of the caller's the caller has to begin again.
    alone = connection.info.transaction_status == TransactionStatus.IDLE
    end = time.monotonic() + _RESTART_SECONDS
    with whoever_owns(connection):
        while True:
            try:
                connection.execute(query("reuse", "keep_answers"), values, binary=True)
            except psycopg.OperationalError:
                if not (alone and connection.closed) or time.monotonic() > end:
                    raise
                time.sleep(_TRY_AGAIN_SECONDS)
            else:
                return


def known_in_artifacts(
    connection: Connection, pipeline_id: PipelineId, fingerprints: list[bytes]
) -> dict[Artifact, set[bytes]]:
    """Which of the fingerprints have a vector in an artifact, by artifact."""
    found: dict[Artifact, set[bytes]] = {}
    values = {"pipeline_id": pipeline_id, "fingerprints": fingerprints}
    for fingerprint, name, sha256, rows, size in connection.execute(query("reuse", "known_in_artifacts"), values):
        found.setdefault(Artifact(name=name, sha256=sha256, rows=rows, bytes=size), set()).add(fingerprint)
    return found


def longer_identities(connection: Connection, pipeline_id: PipelineId, identity: Identity) -> list[Identity]:
    """The pipeline's other generations whose vectors can be cut to this identity's dimensions, longest first."""
    if not can_be_cut(identity):
        return []
    rows = connection.execute(query("reuse", "identities"), {"pipeline_id": pipeline_id}).fetchall()
    known = [Identity(**row[0]) for row in rows]
    same = [
        other
        for other in dict.fromkeys(known)
        if replace(other, dimensions=identity.dimensions) == identity and other.dimensions > identity.dimensions
    ]
    return sorted(same, key=lambda other: -other.dimensions)


def paid_for(connection: Connection, pipeline_id: PipelineId, identity: Identity) -> sql.Composed:
    """SQL over a row ``p`` with ``fingerprint`` and ``content``: true if embedding that row would cost nothing."""
    digests = [other.digest() for other in longer_identities(connection, pipeline_id, identity)]
    return query("reuse", "paid_for", pipeline_id=sql.Literal(pipeline_id), longer=sql.Literal(digests))
