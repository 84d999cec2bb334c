"""Restore: rebuilds the vector table and its ledger from the store alone, without the source or an embedder."""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pyarrow as pa
from psycopg import sql
from psycopg.types.json import Jsonb

from rowvec.errors import ArtifactCorrupt, TargetError, UsageError
from rowvec.ledger.behind import give_up_lost
from rowvec.ledger.certificates import continue_from
from rowvec.ledger.journal import replay, unrecorded
from rowvec.ledger.lease import open_owned
from rowvec.ledger.pipelines import PipelineId, check_name
from rowvec.ledger.runs import Ending, Run, RunId, finish_run, running
from rowvec.operations.restore_chain import NEEDED, chain_of, check_root
from rowvec.pipeline import Pipeline
from rowvec.pipeline.references import resolve
from rowvec.postgres.columns import PgColumn
from rowvec.postgres.connection import Connection, open_target
from rowvec.postgres.fragments import key_json, names
from rowvec.postgres.names import ScratchTable
from rowvec.postgres.queries import query
from rowvec.postgres.type_names import known_columns
from rowvec.postgres.vector_table import VectorTable, find_table, make_schema, opened_table
from rowvec.runtime.figures import counted
from rowvec.runtime.home import home, temporary_folder
from rowvec.runtime.progress import tell
from rowvec.stages.images.lost import check_images, take_in_images
from rowvec.stages.index import serve
from rowvec.stages.load import copy_rows
from rowvec.stages.report import Check, RestoreReport
from rowvec.stages.staging import create_staging
from rowvec.stages.totals import totals
from rowvec.stages.validate import check_serving, check_table
from rowvec.stages.writes import publish
from rowvec.store.artifact import Artifact, read_artifact
from rowvec.store.manifest import Link, RunRecord
from rowvec.store.open import open_store
from rowvec.store.protocol import Store
from rowvec.vectors.layout import Layout

_READ = ["content", "embedding", "fingerprint"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Restore:
    """A restore that is under way: its run, and the manifests it restores from."""

    run: Run
    chain: tuple[Link, ...]
    """Oldest first. The first one names every row; each later one names what changed since the one before."""
    to_newest: bool
    """Whether the last manifest of ``chain`` is the newest one."""
    note: str
    """How the newest manifest was found, for the report."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """What was restored, and what the manifest says the table should have."""

    table: VectorTable
    manifest: str
    note: str
    rows: int
    checksum: str
    expected_rows: int
    expected_checksum: str
    artifacts: int
    lost: tuple[str, ...]
    """Artifacts that are missing or corrupt."""
    missing: int
    """Rows whose vector was in none of the other artifacts."""
    missing_keys: tuple[str, ...]
    same_root: bool | None
    seconds: float

    def checks(self) -> list[Check]:
        """The checks of the table that need only the store."""
        lost = f"; missing or corrupt: {', '.join(self.lost[:3])}" if self.lost else ""
        return [
            Check(name="manifest", ok=True, detail=f"{self.manifest}: {self.note}"),
            Check(
                name="nothing missing",
                ok=not self.missing,
                detail=f"all vectors were in {counted(self.artifacts, 'artifacts')}"
                if not self.missing
                else f"no artifact has the vectors of {counted(self.missing, 'rows')}{lost}; rowvec sync embeds "
                "them again",
                rows=self.missing_keys,
            ),
            Check(
                name="counts",
                ok=self.rows == self.expected_rows,
                detail=f"the manifest says {self.expected_rows:,} rows, the vector table has {self.rows:,}",
            ),
            Check(
                name="checksum",
                ok=self.checksum == self.expected_checksum,
                detail="keys and fingerprints are those of the manifest"
                if self.checksum == self.expected_checksum
                else "keys and fingerprints are not those of the manifest; rowvec sync corrects them",
            ),
            *check_root(self.same_root),
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    connection: Connection
    store: Store
    pipeline_id: PipelineId
    run_id: RunId
    table: VectorTable
    staging: sql.Identifier
    folder: Path


@contextmanager
def restoring(pipeline: Pipeline, manifest: str | None = None) -> Generator[Restore]:
    """Start a run that restores the table as of ``manifest``, or as of the newest one.

    The run has the identity of the vectors it restores, because no embedder is opened. Raises ``UsageError`` if the
    store has no manifest of the pipeline, or several that no other one follows, or if its manifests are of another
    embedder or key than the pipeline's; ``ArtifactCorrupt`` if a manifest is missing or corrupt; ``PipelineBusy`` if
    another run holds the pipeline. In a database where the name belongs to another table, that is a ``UsageError``.
    """
    with open_target(resolve(pipeline, NEEDED), "rowvec restore") as connection:
        check_name(connection, pipeline)
    chain, note = chain_of(pipeline, manifest)
    # The restored runs keep their numbers, as far as these are free.
    highest = max(run.run_id for link in chain for run in link.manifest.runs)
    identity = chain[-1].manifest.identity
    with running(pipeline, "restore", needed=NEEDED, identity=identity, above=highest) as run:
        yield Restore(run=run, chain=tuple(chain), to_newest=manifest is None, note=note)


def restore_rows(pipeline: Pipeline, restore: Restore) -> Restored:
    """Build the vector table and the ledger's entries. Readers see the whole table at once: one transaction makes it.

    Raises ``UsageError`` if the table already has rows, ``ArtifactCorrupt`` if a journal entry is missing or corrupt,
    and ``TargetError`` if the manifest names a type that this database does not have. Uses constant memory, apart from
    the lists of artifacts in the manifests.
    """
    started = time.monotonic()
    resolved = resolve(pipeline, NEEDED)
    run, chain, last = restore.run, restore.chain, restore.chain[-1].manifest
    with (
        open_owned(resolved, run.lease, "rowvec restore") as connection,
        temporary_folder(home()) as folder,
    ):
        key, metadata = (
            known_columns(connection, (PgColumn(*pair) for pair in pairs), chain[-1].name)
            for pairs in (last.layout.key, last.layout.metadata)
        )
        table, _ = opened_table(connection, pipeline, key, metadata)
        work = _Work(
            connection=connection,
            store=open_store(resolved.artifacts),
            pipeline_id=run.pipeline_id,
            run_id=run.run_id,
            table=table,
            staging=sql.Identifier("rowvec", f"staging_{run.run_id}"),
            folder=folder,
        )
        _refuse_rows(connection, table)
        replay(connection, work.store, chain, work.folder)
        connection.execute(query("restore", "drop_tables"))
        renumbered = _add_runs(work, chain)
        create_staging(connection, run.run_id, table, work.staging, direct=True)
        artifacts, lost = _load_artifacts(work, chain)
        make_schema(connection, table.schema)
        missing, keys = _left_over(work)
        with connection.transaction():
            if find_table(connection, table):
                connection.execute(query("restore", "lock", table=table.identifier))
                _refuse_rows(connection, table)
                connection.execute(query("restore", "drop_empty", table=table.identifier))
            publish(connection, table, work.staging)
            rows, checksum = totals(connection, table, table.identifier)
            same_root = continue_from(connection, table, run.pipeline_id, last.certificate)
            # If the table is what the newest manifest says, the next manifest continues from that one. Otherwise the
            # next manifest names every row again.
            whole = bool(missing or renumbered or not restore.to_newest)
            layout = Jsonb(asdict(last.layout))
            values = {"pipeline_id": run.pipeline_id, "whole": whole, "layout": layout}
            connection.execute(query("restore", "set_journal"), values)
            connection.execute(query("journal", "forget_table", unrecorded=unrecorded(run.pipeline_id)))
        connection.execute(query("journal", "drop_state"))
        if whole:
            give_up_lost(connection, work.store, pipeline.name)
        if pipeline.what == "images":
            take_in_images(connection, work.store, pipeline.name)
    return Restored(
        table=table,
        manifest=chain[-1].name,
        note=restore.note,
        rows=rows,
        checksum=checksum,
        expected_rows=last.counts["rows"],
        expected_checksum=last.checksum,
        artifacts=artifacts,
        lost=tuple(lost),
        missing=missing,
        missing_keys=keys,
        same_root=None if missing else same_root,
        seconds=time.monotonic() - started,
    )


def _refuse_rows(connection: Connection, table: VectorTable) -> None:
    if not find_table(connection, table):
        return
    row = connection.execute(query("restore", "rows_there", table=table.identifier)).fetchone()
    if row and row[0]:
        raise UsageError(
            f"the vector table {table.schema}.{table.name} has rows, and a restore only builds a new one; "
            "rowvec audit --repair fixes single rows, or drop the table first"
        )


def _add_runs(work: _Work, chain: tuple[Link, ...]) -> int:
    """Add the runs to the ledger again; returns how many had to take another number."""
    work.connection.execute(query("restore", "run_numbers"))
    links = {link.manifest.run_id: link for link in chain}
    renumbered = 0
    for record in {record.run_id: record for link in chain for record in link.manifest.runs}.values():
        number = _number(work, record)
        if number is None:
            continue
        renumbered += number != record.run_id
        if number != record.run_id:
            work.connection.execute(query("restore", "add_number"), {"old": record.run_id, "new": number})
        link = links.get(record.run_id)
        values = {
            "run_id": number,
            "pipeline_id": work.pipeline_id,
            "cause": record.cause,
            "state": record.state,
            "started_at": record.started_at,
            "finished_at": record.finished_at,
            "report": Jsonb({"embedded": record.embedded, "tokens": record.tokens, "cost_usd": record.cost_usd}),
            "manifest": link and link.name,
            "manifest_sha256": link and link.sha256,
        }
        work.connection.execute(query("restore", "add_run"), values)
    return renumbered


def _number(work: _Work, record: RunRecord) -> int | None:
    """The number of a run in this ledger; None if the ledger already has the run."""
    values: dict[str, Any] = {
        "run_id": record.run_id,
        "pipeline_id": work.pipeline_id,
        "started_at": record.started_at,
    }
    known = work.connection.execute(query("restore", "known_run"), values).fetchone()
    if known is None:
        return record.run_id
    if known[0]:
        return None
    row = work.connection.execute(query("restore", "next_run")).fetchone()
    return row[0] if row else None


def _load_artifacts(work: _Work, chain: tuple[Link, ...]) -> tuple[int, list[str]]:
    """Load the artifacts one by one; returns how many were read, and the names of those that could not be read."""
    held = {one.name: (one, link.manifest.run_id) for link in chain for one in link.manifest.artifacts}
    embedding = PgColumn("embedding", work.table.embedding_type)
    work.connection.execute(query("restore", "vectors_table", embedding_type=embedding.type_sql))
    lost: list[str] = []
    for number, (artifact, run_id) in enumerate(held.values()):
        tell("restore", "artifacts", number, len(held))
        local = work.folder / "artifact.parquet"
        try:
            work.store.get(artifact.name, local, artifact.sha256, at_most=artifact.bytes)
            _load_artifact(work, local, artifact, run_id)
        except ArtifactCorrupt as error:
            logger.warning("%s", error)
            lost.append(artifact.name)
        finally:
            local.unlink(missing_ok=True)
    tell("restore", "artifacts", len(held), len(held))
    return len(held) - len(lost), lost


def _load_artifact(work: _Work, local: Path, artifact: Artifact, run_id: int) -> None:
    table, connection = work.table, work.connection
    columns = (
        PgColumn("content", "text"),
        PgColumn("embedding", table.embedding_type),
        PgColumn("fingerprint", "bytea"),
    )
    with connection.transaction():
        connection.execute(query("restore", "empty_vectors"))
        _copy_vectors(connection, columns, local, artifact, table.layout)
        connection.execute(query("merge", "analyze_table", table=ScratchTable("restored_vectors")))
        row = connection.execute(
            query("restore", "add_artifact"),
            {"pipeline_id": work.pipeline_id, "run_id": work.run_id, **asdict(artifact)},
        ).fetchone()
        parts = {"pipeline_id": sql.Literal(work.pipeline_id), "run_id": sql.Literal(run_id)}
        connection.execute(query("restore", "add_embeddings", artifact_id=sql.Literal(row and row[0]), **parts))
        bits = sql.SQL("{}, ").format(table.bits_of(sql.SQL("v.embedding"))) if table.bits else sql.SQL("")
        facts = (sql.SQL("{}, ").format(sql.Identifier("s", c.name)) for c in (*table.key, *table.metadata))
        statement = query(
            "restore",
            "add_rows",
            staging=work.staging,
            columns=names(table.columns),
            facts=sql.SQL("").join(facts),
            bits=bits,
        )
        connection.execute(statement)
        connection.execute(query("restore", "forget_restored"))


def _copy_vectors(
    connection: Connection, columns: tuple[PgColumn, ...], local: Path, artifact: Artifact, layout: Layout
) -> None:
    try:
        copy_rows(connection, ScratchTable("restored_vectors"), columns, _distinct(local, layout, artifact.rows))
    except TargetError as error:
        # A vector or a text that no run can have written, such as one with a NUL.
        if isinstance(error.__cause__, psycopg.DataError):
            raise ArtifactCorrupt(f"{artifact.name} has a value that the database refuses: {error}") from error
        raise


def _distinct(artifact: Path, layout: Layout, rows: int) -> Iterator[pa.RecordBatch]:
    """The artifact's rows, one per fingerprint; rows with equal fingerprints are next to each other."""
    previous: bytes | None = None
    for batch in read_artifact(artifact, layout, _READ):
        rows -= batch.num_rows
        fingerprints = batch.column("fingerprint").to_pylist()
        kept = np.array([a != b for a, b in zip(fingerprints, [previous, *fingerprints], strict=False)], np.bool_)
        previous = fingerprints[-1] if fingerprints else previous
        yield batch.filter(pa.array(kept)).select(_READ)
    if rows:
        raise ArtifactCorrupt(f"{artifact} does not have the rows that its manifest says")


def _left_over(work: _Work) -> tuple[int, tuple[str, ...]]:
    row = work.connection.execute(query("restore", "left_over")).fetchone()
    keys = work.connection.execute(query("restore", "left_keys", key_json=key_json(work.table.key, "s"))).fetchall()
    return (row[0] if row else 0), tuple(key for (key,) in keys)


def finish_restore(pipeline: Pipeline, run: Run, restored: Restored) -> RestoreReport:
    """Build the index of the restored table, check the table, and record the verdict."""
    started = time.monotonic()
    resolved = resolve(pipeline, NEEDED)
    with open_owned(resolved, run.lease, "rowvec restore") as connection:
        indexed = serve(connection, restored.table, resolved)
        checks = [
            *restored.checks(),
            *check_table(connection, restored.table, None),
            *([check_images(connection, restored.table, pipeline)] if pipeline.what == "images" else []),
            *check_serving(connection, restored.table, indexed.choice, indexed.recall, indexed.notes),
        ]
        seconds = {"restore": restored.seconds, "index": indexed.seconds}
        seconds["validate"] = time.monotonic() - started - indexed.seconds
        seconds["total"] = time.monotonic() - run.started
        report = RestoreReport(
            run_id=run.run_id,
            pipeline=pipeline.name,
            manifest=restored.manifest,
            rows=restored.rows,
            missing=restored.missing,
            artifacts=restored.artifacts,
            lost=restored.lost,
            embedded=0,
            consistent=all(check.ok for check in checks),
            k=pipeline.validation.recall.k,
            recall_at_k=next((check.value for check in checks if check.name == "recall"), None),
            checksum=restored.checksum,
            checks=tuple(checks),
            seconds={stage: round(value, 3) for stage, value in seconds.items()},
        )
        ending = Ending(
            state="succeeded" if report.consistent else "failed",
            report=report.as_json(),
            checks=[asdict(check) for check in checks],
        )
        finish_run(connection, run.run_id, ending)
    return report
