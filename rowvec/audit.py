"""Audit: source, artifacts and vector table compared both ways, every row and every vector of them."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from psycopg import sql

from rowvec import artifacts, ledger
from rowvec.artifacts import Artifact
from rowvec.database import Connection
from rowvec.embedders import open_embedder
from rowvec.errors import ArtifactCorrupt
from rowvec.extract import compare
from rowvec.home import home
from rowvec.ledger import PipelineId
from rowvec.pipeline import Pipeline
from rowvec.plan import key_json
from rowvec.queries import query
from rowvec.references import resolve
from rowvec.run import open_target
from rowvec.schema import install
from rowvec.sources.postgres import describe, is_beside
from rowvec.stores import Store, open_store
from rowvec.vector_checks import check_vectors
from rowvec.vector_table import VectorTable, stored_table

Kind = Literal["missing", "stale", "orphaned", "corrupt"]
KINDS: tuple[Kind, ...] = ("missing", "stale", "orphaned", "corrupt")

_LISTED = 100


@dataclass(frozen=True, slots=True)
class Finding:
    """One row that is not right, and why."""

    kind: Kind
    key: tuple[str | None, ...]
    reason: str


def summary(findings: list[Finding], repaired: int = 0) -> dict[str, Any]:
    """Counts by kind, and up to 100 offending keys with the reason."""
    counts = Counter(finding.kind for finding in findings)
    return {
        "consistent": not findings,
        **{kind: counts[kind] for kind in KINDS},
        "repaired": repaired,
        "rows": [{"key": list(f.key), "kind": f.kind, "reason": f.reason} for f in findings[:_LISTED]],
    }


def run_audit(pipeline: Pipeline) -> list[Finding]:
    """All that is not right, each row once, with the first reason found; changes nothing.

    Every row is compared with the source, and every vector with its bits and its artifact.
    """
    resolved = resolve(pipeline)
    with open_target(resolved, "rowvec audit") as connection:
        install(connection)
        pipeline_id = ledger.find(connection, pipeline)
        table = stored_table(connection, resolved)
        found: dict[tuple[str | None, ...], Finding] = {}
        for finding in (
            *_against_source(connection, resolved, pipeline_id, table),
            *_vectors(connection, table),
            *_provenance(connection, pipeline_id, table),
            *_against_artifacts(connection, open_store(resolved.artifacts), pipeline_id, table),
        ):
            found.setdefault(finding.key, finding)
    return list(found.values())


def void(pipeline: Pipeline, findings: list[Finding]) -> None:
    """Take the trust from rows that are there and not right, so that the next sync replaces them.

    The sync takes the vectors from artifacts; an artifact that is itself not right is forgotten first.
    """
    resolved = resolve(pipeline)
    keys = [json.dumps(list(f.key)) for f in findings if f.kind == "corrupt"]
    with open_target(resolved, "rowvec audit") as connection:
        pipeline_id = ledger.find(connection, pipeline)
        table = stored_table(connection, resolved)
        store = open_store(resolved.artifacts)
        for name in list(_unreadable(connection, store, pipeline_id)):
            # Its place must be free: the same rows may give the same bytes again, and an object is never overwritten.
            store.delete(name)
            ledger.forget_artifact(connection, pipeline_id, name)
        connection.execute(
            query("audit", "void", table=table.identifier, key_json=key_json(table.key, "t"), keys=sql.Literal(keys))
        )


def _against_source(
    connection: Connection, resolved: Pipeline, pipeline_id: PipelineId, table: VectorTable
) -> Iterator[Finding]:
    source, identity = resolved.source, open_embedder(resolved.embedder).identity
    if source.kind != "postgres" or not is_beside(resolved):
        from rowvec.extract_apart import differences  # late: pyarrow's file readers are needed only here

        for kind, key, reason in differences(connection, resolved, identity, pipeline_id, table):
            yield Finding(cast("Kind", kind), key, reason)
        return
    with connection.transaction():
        connection.execute(query("extract", "begin"))
        rows = describe(connection, resolved, source, identity.digest())
        compare(connection, pipeline_id, rows, table, exists=True)
        found = connection.execute(query("audit", "differences", key_json=key_json(table.key, "d"))).fetchall()
    for kind, reason, key in found:
        yield Finding(kind, tuple(key), reason)


def _vectors(connection: Connection, table: VectorTable) -> Iterator[Finding]:
    for check in check_vectors(connection, table):
        for key in check.rows:
            yield Finding("corrupt", key, f"{check.name}: {check.detail}")


def _provenance(connection: Connection, pipeline_id: PipelineId, table: VectorTable) -> Iterator[Finding]:
    statement = query(
        "audit",
        "unknown_run",
        table=table.identifier,
        key_json=key_json(table.key, "t"),
        pipeline_id=sql.Literal(pipeline_id),
    )
    for (key,) in connection.execute(statement).fetchall():
        yield Finding("corrupt", tuple(key), "its run_id is of no run of this pipeline")


def _against_artifacts(
    connection: Connection, store: Store, pipeline_id: PipelineId, table: VectorTable
) -> Iterator[Finding]:
    """Compare each vector with the one that was kept, by sha256 of its wire format: what travels is 64 bytes a row."""
    with connection.transaction(), tempfile.TemporaryDirectory(dir=home()) as folder:
        connection.execute(query("audit", "hold_vectors"))
        for artifact in _artifacts(connection, pipeline_id):
            local = Path(folder) / "artifact.parquet"
            try:
                store.get(artifact.name, local, artifact.sha256)
                _hold(connection, local, table)
            except ArtifactCorrupt:
                continue  # its rows are found below: no artifact holds them
        connection.execute(query("audit", "analyze_held"))
        parts = {"table": table.identifier, "key_json": key_json(table.key, "t")}
        send = sql.SQL("vector_send" if table.precision == "float32" else "halfvec_send")
        for (key,) in connection.execute(query("audit", "other_vector", send=send, **parts)).fetchall():
            yield Finding("corrupt", tuple(key), "its vector is not the one that was paid for and kept")
        for (key,) in connection.execute(query("audit", "not_held", **parts)).fetchall():
            yield Finding("corrupt", tuple(key), "no artifact that can be read holds its vector")


def _hold(connection: Connection, artifact: Path, table: VectorTable) -> None:
    wire = ">f4" if table.precision == "float32" else ">f2"
    head = table.dimensions.to_bytes(2, "big") + bytes(2)
    with connection.cursor() as cursor, cursor.copy(query("audit", "copy_held")) as copy:
        copy.set_types(["bytea", "bytea"])
        for batch in artifacts.read_artifact(artifact):
            vectors = batch.column("embedding").flatten().to_numpy().reshape(-1, table.dimensions).astype(wire)
            for fingerprint, vector in zip(batch.column("fingerprint").to_pylist(), vectors, strict=True):
                copy.write_row((fingerprint, hashlib.sha256(head + vector.tobytes()).digest()))


def _unreadable(connection: Connection, store: Store, pipeline_id: PipelineId) -> Iterator[str]:
    """Artifacts that are gone, or whose bytes are not what was put: each is read, for a store only knows its notes."""
    with tempfile.TemporaryDirectory(dir=home()) as folder:
        for artifact in _artifacts(connection, pipeline_id):
            try:
                store.get(artifact.name, Path(folder) / "artifact.parquet", artifact.sha256)
            except ArtifactCorrupt:
                yield artifact.name


def _artifacts(connection: Connection, pipeline_id: PipelineId) -> list[Artifact]:
    rows = connection.execute(query("audit", "artifacts", pipeline_id=sql.Literal(pipeline_id))).fetchall()
    return [Artifact(name=name, sha256=sha256, rows=n, bytes=size) for name, sha256, n, size in rows]
