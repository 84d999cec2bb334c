"""Rejected rows: a row that cannot be embedded is recorded with the reason, and the run goes on with the others."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

from psycopg import errors as pg
from psycopg import sql

from rowvec.errors import RowError
from rowvec.ledger.pipelines import PipelineId
from rowvec.ledger.runs import RunId
from rowvec.postgres.columns import PgColumn
from rowvec.postgres.connection import Connection
from rowvec.postgres.fragments import key_json
from rowvec.postgres.isolation import Refusal
from rowvec.postgres.queries import query

_LISTED = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Reject:
    """One rejected row."""

    key: list[str | None]
    reason: str
    detail: str
    sqlstate: str | None
    """What the database said, if it refused the row."""
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


Whose = tuple[sql.Composable, RunId, tuple[PgColumn, ...]]
"""The pipeline's number as SQL, the run, and the columns of the vector table's key."""

Rows = tuple[sql.Identifier, sql.Composable]
"""A table with the columns of the key, and a condition on its rows ``s``."""


def add_refused(connection: Connection, whose: Whose, rows: Rows, refusal: Refusal) -> None:
    """Record rows that the database refused; their table has ``fingerprint`` and ``metadata_hash``."""
    connection.execute(query("rejects", "add_refused", **_parts(whose, rows, refusal)))


def add_not_removed(connection: Connection, whose: Whose, rows: Rows, refusal: Refusal) -> None:
    """Record outdated rows of the vector table that the database refused to remove."""
    is_refused = query("rejects", "is_refused")
    connection.execute(query("rejects", "add_not_removed", is_refused=is_refused, **_parts(whose, rows, refusal)))


def add_refused_row(
    connection: Connection,
    whose: Whose,
    key: Sequence[str],
    hashes: tuple[bytes, bytes],
    refusal: Refusal,
) -> None:
    """Record a row that could not even be copied; ``hashes``: its fingerprint and metadata hash.

    A key with a character that the database's encoding does not have is recorded with escape sequences.
    """
    pipeline_id, run_id, _ = whose
    fingerprint, metadata_hash = hashes
    for named in (list(key), escaped_key(key)):
        with suppress(pg.UntranslatableCharacter), connection.transaction():
            connection.execute(
                query(
                    "rejects",
                    "add_refused_row",
                    pipeline_id=pipeline_id,
                    run_id=sql.Literal(run_id),
                    key=sql.Literal(named),
                    fingerprint=sql.Literal(fingerprint),
                    metadata_hash=sql.Literal(metadata_hash),
                    detail=sql.Literal(str(refusal)),
                    sqlstate=sql.Literal(refusal.sqlstate),
                )
            )
            return


def escaped_key(key: Sequence[str]) -> list[str]:
    """How a key is recorded that has characters which the database's encoding does not have."""
    return [text.encode("ascii", "backslashreplace").decode() for text in key]


def _parts(whose: Whose, rows: Rows, refusal: Refusal) -> dict[str, sql.Composable]:
    pipeline_id, run_id, key = whose
    table, which = rows
    return {
        "pipeline_id": pipeline_id,
        "run_id": sql.Literal(run_id),
        "key_json": key_json(key, "s"),
        "detail": sql.Literal(str(refusal)),
        "sqlstate": sql.Literal(refusal.sqlstate),
        "table": table,
        "which": which,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class NotRemoved:
    """Outdated rows of the vector table that the database refuses to remove."""

    count: int
    keys: tuple[str, ...]
    """Up to 100."""
    detail: str
    """Why the first one is not removed."""


def not_removed(connection: Connection, pipeline_id: PipelineId) -> NotRemoved | None:
    """The outdated rows that the last merge could not remove; None if there are none."""
    values = {"pipeline_id": pipeline_id, "limit": _LISTED}
    rows = connection.execute(query("rejects", "not_removed"), values).fetchall()
    if not rows:
        return None
    return NotRemoved(count=rows[0][0], keys=tuple(key for _, key, _ in rows), detail=rows[0][2])


def list_rejects(connection: Connection, pipeline_id: PipelineId, limit: int = 1000) -> list[Reject]:
    """The rejected rows of a pipeline, newest first."""
    rows = connection.execute(query("rejects", "list"), {"pipeline_id": pipeline_id, "limit": limit})
    return [
        Reject(
            key=key,
            reason=reason,
            detail=detail,
            sqlstate=sqlstate,
            attempts=attempts,
            first_seen=first,
            last_seen=last,
        )
        for key, reason, detail, sqlstate, attempts, first, last in rows
    ]


def count_rejects(connection: Connection, pipeline_id: PipelineId) -> int:
    """The number of rejected rows of the pipeline."""
    row = connection.execute(query("rejects", "count"), {"pipeline_id": pipeline_id}).fetchone()
    return row[0] if row else 0


def forget_rejects(connection: Connection, pipeline_id: PipelineId) -> int:
    """Delete the pipeline's rejects, so that the next sync tries these rows again; returns how many there were."""
    return connection.execute(query("rejects", "forget"), {"pipeline_id": pipeline_id}).rowcount
