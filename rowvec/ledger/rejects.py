"""Rows that cannot be embedded: set aside with their reason, so that the others can go on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from rowvec.errors import RowError
from rowvec.ledger.pipelines import PipelineId
from rowvec.ledger.runs import RunId
from rowvec.postgres.connection import Connection
from rowvec.postgres.queries import query


@dataclass(frozen=True, slots=True, kw_only=True)
class Reject:
    """One row that was set aside."""

    key: list[str | None]
    reason: str
    detail: str
    attempts: int
    first_seen: datetime
    last_seen: datetime


def set_aside(
    connection: Connection,
    pipeline_id: PipelineId,
    run_id: RunId,
    rows: Sequence[tuple[str, bytes | None, RowError]],
) -> None:
    """Record rows: (key as JSON array of texts, fingerprint, why)."""
    values = {
        "pipeline_id": pipeline_id,
        "run_id": run_id,
        "keys": [key for key, _, _ in rows],
        "fingerprints": [fingerprint for _, fingerprint, _ in rows],
        "reasons": [error.reason for _, _, error in rows],
        "details": [error.detail for _, _, error in rows],
    }
    connection.execute(query("rejects", "set_aside"), values)


def listed(connection: Connection, pipeline_id: PipelineId, limit: int = 1000) -> list[Reject]:
    """The rejects of a pipeline, the newest first."""
    rows = connection.execute(query("rejects", "listed"), {"pipeline_id": pipeline_id, "limit": limit})
    return [
        Reject(key=key, reason=reason, detail=detail, attempts=attempts, first_seen=first, last_seen=last)
        for key, reason, detail, attempts, first, last in rows
    ]


def count(connection: Connection, pipeline_id: PipelineId) -> int:
    """How many rows of the pipeline are set aside."""
    row = connection.execute(query("rejects", "count"), {"pipeline_id": pipeline_id}).fetchone()
    return row[0] if row else 0


def forget(connection: Connection, pipeline_id: PipelineId) -> int:
    """Let the next sync try all of them again; returns how many there were."""
    return connection.execute(query("rejects", "forget"), {"pipeline_id": pipeline_id}).rowcount
