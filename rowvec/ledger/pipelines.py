"""The ledger in the schema ``rowvec``: which runs there were, who is at work now, and which artifact holds what."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import Literal, NewType

import numpy as np
import numpy.typing as npt
from psycopg import errors as pg
from psycopg import sql
from psycopg.types.json import Jsonb

from rowvec.embedders.protocol import Vectors
from rowvec.errors import PipelineBusy, UsageError
from rowvec.pipeline import Pipeline
from rowvec.pipeline.parts import table_identifier
from rowvec.postgres.connection import Connection, connect, lost_connections_are_retriable
from rowvec.postgres.queries import query
from rowvec.store.artifact import Artifact
from rowvec.vectors.fingerprint import Identity

PipelineId = NewType("PipelineId", int)
RunId = NewType("RunId", int)
State = Literal["planned", "running", "succeeded", "failed", "abandoned", "waiting"]

_LOCK_SPACE = 0x72760001
"""Advisory locks of runs: (this, pipeline_id). The merge has a space of its own."""
_PLAN_LOCK_SPACE = 0x72760003
"""Advisory locks of ``rowvec plan`` at work: (this, run_id)."""

# Fingerprints of one statement: written out they are 70 bytes each, in the client and in the server.
_ENTERED = 20_000


def is_readable(connection: Connection, table: str, column: str) -> bool:
    """Whether the ledger has this by now, and the role may read it: searching needs no grant on the ledger."""
    row = connection.execute(query("ledger", "readable"), {"table": table, "column": column}).fetchone()
    return bool(row and row[0])


def find(connection: Connection, pipeline: Pipeline) -> PipelineId:
    """The id of a pipeline that has run before. Raises ``UsageError`` where it has not."""
    row = connection.execute(query("ledger", "find"), {"name": pipeline.name}).fetchone()
    if row is None:
        raise UsageError(f"the pipeline {pipeline.name} has never run against this database; run rowvec sync first")
    return PipelineId(row[0])


def identity_of(connection: Connection, pipeline_id: PipelineId) -> Identity:
    """The embedder that the pipeline's last run went by."""
    row = connection.execute(query("ledger", "identity"), {"pipeline_id": pipeline_id}).fetchone()
    if row is None:
        raise LookupError(pipeline_id)  # an id comes from ``find``, which has seen the row
    return Identity(**row[0])


def register(connection: Connection, pipeline: Pipeline, identity: Identity, *, settled: bool = True) -> PipelineId:
    """The pipeline's id, with its table and embedder as they are now.

    ``settled``: the run goes by the file; what only reads or prunes leaves the settings that are remembered alone.

    Raises ``UsageError`` where the table there is has vectors of another embedder, or is another pipeline's.
    """
    check_identity(connection, pipeline, identity)
    schema, table = table_identifier(pipeline.target.table)
    named = {"name": pipeline.name, "schema": schema, "table": table}
    settings = Jsonb(pipeline.model_dump(mode="json", exclude_none=True)) if settled else None
    values = {**named, "identity": Jsonb(asdict(identity)), "settings": settings}
    try:
        return PipelineId(_one(connection, "register", **values))
    except pg.UniqueViolation:
        raise UsageError(
            f"the table {schema}.{table} belongs to another pipeline in this database; give {pipeline.name} its own"
        ) from None


def check_identity(connection: Connection, pipeline: Pipeline, identity: Identity) -> None:
    """Raise ``UsageError`` where the pipeline's table is there and has vectors of another embedder."""
    schema, table = table_identifier(pipeline.target.table)
    regclass = sql.Identifier(schema, table).as_string(connection)
    values = {"name": pipeline.name, "schema": schema, "table": table, "regclass": regclass}
    row = connection.execute(query("ledger", "registered"), values).fetchone()
    if row is not None and (before := Identity(**row[0])) != identity:
        asked = f"{identity}" if str(identity) != str(before) else "the same in another way"
        raise UsageError(
            f"{pipeline.target.table} holds vectors of {before}, and the pipeline asks for {asked}: rowvec rebuild "
            "builds them beside those that are read, and then switches; with --plan it tells what that costs"
        )


def keep_settings(connection: Connection, pipeline_id: PipelineId, pipeline: Pipeline) -> None:
    """Note the settings that the vector table is kept by; ``pipeline`` has its references unresolved.

    Not before the table is known to fit: a rebuild goes on keeping the table that is read by them.
    """
    settings = pipeline.model_dump(mode="json", exclude_none=True)
    connection.execute(query("ledger", "keep_settings"), {"pipeline_id": pipeline_id, "settings": Jsonb(settings)})


def number_above(connection: Connection, number: int) -> None:
    """Leave the numbers up to this one to runs that come back from a store; those given already stay given."""
    if number:
        connection.execute(query("ledger", "number_above"), {"number": number})


def start_run(connection: Connection, pipeline_id: PipelineId, cause: str, state: State = "running") -> RunId:
    """A new run."""
    return RunId(_one(connection, "start", pipeline_id=pipeline_id, cause=cause, state=state))


def start_plan(connection: Connection, pipeline_id: PipelineId) -> RunId:
    """A new plan, which nobody clears away while this connection is open."""
    return RunId(_one(connection, "start_plan", pipeline_id=pipeline_id, space=_PLAN_LOCK_SPACE))


def finish_run(
    connection: Connection,
    run_id: RunId,
    state: State,
    *,
    report: object = None,
    checks: object = None,
    error: str | None = None,
    manifest: str | None = None,
    manifest_sha256: str | None = None,
) -> None:
    """Close a run with its report, or with the sentence it failed with."""
    connection.execute(
        query("ledger", "finish"),
        {
            "run_id": run_id,
            "state": state,
            "report": None if report is None else Jsonb(report),
            "checks": None if checks is None else Jsonb(checks),
            "error": error,
            "manifest": manifest,
            "manifest_sha256": manifest_sha256,
        },
    )


@contextmanager
def exclusively(url: str, name: str, pipeline_id: PipelineId) -> Generator[None]:
    """Hold the pipeline for one run, on a connection of its own.

    The lock belongs to that session, so it goes with a killed process and nobody has to clean up after it. Raises
    ``PipelineBusy`` where another run holds it for longer than a session that has just ended needs to be gone.
    """
    values = {"space": _LOCK_SPACE, "pipeline_id": pipeline_id}
    with connect(url, application="rowvec lock") as holder:
        with lost_connections_are_retriable():
            try:
                holder.execute(query("ledger", "lock_patience"))
                holder.execute(query("ledger", "lock"), values)
            except pg.LockNotAvailable:
                raise PipelineBusy(
                    f"another run of the pipeline {name} is at work; wait for it, or stop it first"
                ) from None
        yield
        # Said, and not left to the closing of the connection: the next run may come before the server notices that.
        # A session that a restarted server has ended holds nothing any more.
        with suppress(pg.OperationalError):
            holder.execute(query("ledger", "unlock"), values)


def clear_leftovers(connection: Connection, pipeline_id: PipelineId, run_id: RunId) -> list[str]:
    """Mark what killed runs left as abandoned and drop their tables; returns the names of the tables dropped."""
    values = {"pipeline_id": pipeline_id, "run_id": run_id, "space": _PLAN_LOCK_SPACE}
    connection.execute(query("ledger", "abandoned"), values)
    return _drop_tables(connection, pipeline_id, run_id)


def supersede_plans(connection: Connection, pipeline_id: PipelineId, run_id: RunId) -> None:
    """Drop the plans that ``rowvec plan`` left before this one; runs at work are not touched."""
    values = {"pipeline_id": pipeline_id, "run_id": run_id, "space": _PLAN_LOCK_SPACE}
    connection.execute(query("ledger", "supersede"), values)
    _drop_tables(connection, pipeline_id, run_id)


def _drop_tables(connection: Connection, pipeline_id: PipelineId, run_id: RunId) -> list[str]:
    values = {"pipeline_id": pipeline_id, "run_id": run_id}
    tables = [row[0] for row in connection.execute(query("ledger", "leftovers"), values)]
    for table in tables:
        connection.execute(query("ledger", "drop", table=sql.Identifier("rowvec", table)))
    return tables


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
        artifact_id = _one(connection, "add_artifact", **values)
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


def _one(connection: Connection, block: str, **values: object) -> int:
    row = connection.execute(query("ledger", block), values).fetchone()
    if row is None:
        raise LookupError(block)  # each of these blocks returns a row: INSERT … RETURNING
    return row[0]
