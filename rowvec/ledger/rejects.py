"""Rejected rows: a row that cannot be embedded is recorded with the reason, and the run goes on with the others."""

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
    """One rejected row."""

    key: list[str | None]
    reason: str
    detail: str
    attempts: int
    first_seen: datetime
    last_seen: datetime


def add_rejects(
    connection: Connection,
    pipeline_id: PipelineId,
    run_id: RunId,
    rows: Sequence[tuple[str, bytes | None, RowError]],
) -> None:
    """Record rejected rows, each as (key as a JSON array of texts, fingerprint, reason)."""
    values = {
        "pipeline_id": pipeline_id,
        "run_id": run_id,
        "keys": [key for key, _, _ in rows],
        "fingerprints": [fingerprint for _, fingerprint, _ in rows],
        "reasons": [error.reason for _, _, error in rows],
        "details": [error.detail for _, _, error in rows],
    }
    connection.execute(query("rejects", "add"), values)


def list_rejects(connection: Connection, pipeline_id: PipelineId, limit: int = 1000) -> list[Reject]:
    """The rejected rows of a pipeline, newest first."""
    rows = connection.execute(query("rejects", "list"), {"pipeline_id": pipeline_id, "limit": limit})
    return [
        Reject(key=key, reason=reason, detail=detail, attempts=attempts, first_seen=first, last_seen=last)
        for key, reason, detail, attempts, first, last in rows
    ]


def count_rejects(connection: Connection, pipeline_id: PipelineId) -> int:
    """The number of rejected rows of the pipeline."""
    row = connection.execute(query("rejects", "count"), {"pipeline_id": pipeline_id}).fetchone()
    return row[0] if row else 0


def forget_rejects(connection: Connection, pipeline_id: PipelineId) -> int:
    """Delete the pipeline's rejects, so that the next sync tries these rows again; returns how many there were."""
    return connection.execute(query("rejects", "forget"), {"pipeline_id": pipeline_id}).rowcount
