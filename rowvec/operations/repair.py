"""Repair: fixes what an audit found from the copies that are sound; the next sync embeds what has no sound copy."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from dataclasses import replace

import pyarrow as pa
from psycopg import sql

from rowvec.embedders import open_embedder
from rowvec.ledger.behind import give_up_lost
from rowvec.ledger.generations import effective
from rowvec.ledger.held_lease import Ownership
from rowvec.ledger.journal import restart_journal, unrecorded
from rowvec.ledger.lease import owned
from rowvec.ledger.owned_store import OwnedStore
from rowvec.ledger.reuse import NewArtifact, add_artifact, forget_artifact, set_artifacts_lost
from rowvec.ledger.runs import Ending, Run, finish_run, running
from rowvec.ledger.workdir import make_workdir
from rowvec.operations.audit import Audit, Audited, audited
from rowvec.pipeline import Pipeline
from rowvec.postgres.fragments import as_sent, names
from rowvec.postgres.queries import query
from rowvec.stages.binarize import write_bits
from rowvec.store.artifact import upload, write_artifact

_FETCH_ROWS = 2048
# Fetches per artifact: about 50,000 rows, which are 600 MB with 3,072 dimensions.
_ARTIFACT_BLOCKS = 24


def prepare_repair(pipeline: Pipeline) -> Audit:
    """Audit, and repair what a sync cannot; the caller must sync next, which repairs the rest. Returns what was found.

    A wrong row loses its fingerprint, so that the sync replaces it from an artifact. A sound vector whose artifact is
    lost is written from the table to a new artifact. An artifact that cannot be read is removed from the ledger, and
    its vectors are looked up in the other artifacts.

    Raises ``PipelineBusy`` if another run holds the pipeline, and ``LedgerBehind`` if the database was set back.
    """
    pipeline = effective(pipeline)
    with running(pipeline, "repair") as run, audited(pipeline) as read, owned(read.connection, run.lease):
        found = replace(read, store=OwnedStore(read.store, Ownership(run.lease, read.resolved.target.url)))
        report = found.report()
        if found.lost_artifacts:
            set_artifacts_lost(found.connection, found.pipeline_id, lost=True)
        for name in found.lost_artifacts:
            # Its name must be free: the same rows may give the same bytes again, and an object is never overwritten.
            found.store.delete(name)
            forget_artifact(found.connection, found.pipeline_id, name)
        with found.connection.transaction():
            found.connection.execute(query("audit", "point_elsewhere", pipeline_id=sql.Literal(found.pipeline_id)))
        _salvage(found, pipeline, run)
        set_artifacts_lost(found.connection, found.pipeline_id, lost=False)
        _record_again(found)
        found.connection.execute(query("audit", "void", table=found.table.identifier, key_json=found.key_json))
        finish_run(found.connection, run.run_id, Ending(state="succeeded", report=report.as_json()))
    return report


def _salvage(found: Audited, pipeline: Pipeline, run: Run) -> None:
    """Write the vectors that only the table has to new artifacts. Those of a float16 table stay float16."""
    identity, folder = open_embedder(found.resolved.embedder).identity, make_workdir(found.connection, run.run_id)
    embedded, bits, parquet = folder / "embedded.arrow", folder / "bits.arrow", folder / "artifact.parquet"
    rows = _sound_rows(found)
    for batch in itertools.count():
        taken = list(itertools.islice(rows, _ARTIFACT_BLOCKS))
        if not taken:
            break
        with pa.OSFile(str(embedded), "wb") as sink, pa.ipc.new_file(sink, taken[0].schema) as out:
            for block in taken:
                out.write_batch(block)
        if found.table.bits:
            write_bits(embedded, bits, found.table.dimensions, found.table.bits, found.table.precision)
        artifact = write_artifact(
            embedded, bits if found.table.bits else None, parquet, found.table, pipeline.name, identity
        )
        upload(found.store, parquet, artifact)
        fingerprints = [fingerprint for block in taken for fingerprint in block.column("fingerprint").to_pylist()]
        new = NewArtifact(artifact=artifact, batch=batch, fingerprints=fingerprints, usd_per_token=0.0)
        add_artifact(found.connection, found.pipeline_id, run.run_id, new)
    shutil.rmtree(folder)


def _sound_rows(found: Audited) -> Iterator[pa.RecordBatch]:
    """The rows whose only fault is that no artifact has their vector, in the schema of an artifact without the bits."""
    table = found.table
    schema = pa.schema([f for f in table.artifact_schema if f.name != "embedding_bits"])
    columns = as_sent((*table.key, *table.metadata), "t")
    statement = query(
        "audit", "salvage", columns=columns, send=table.layout.send, table=table.identifier, key_json=found.key_json
    )
    # Kept first: no transaction is open while the store is written to.
    found.connection.keep_rows("salvaged", statement)
    for rows in found.connection.kept_rows("salvaged", _FETCH_ROWS):
        *plain, sent = zip(*rows, strict=True)
        arrays = [pa.array(values, f.type) for values, f in zip(plain, schema, strict=False)]
        arrays.append(table.layout.to_arrow(table.layout.of_wires(sent)))
        yield pa.record_batch(arrays, schema)


def _record_again(found: Audited) -> None:
    """Let the next manifest name the rows that were found wrong, because the journal itself may be wrong about them."""
    if not found.journal_is_sound:
        give_up_lost(found.connection, found.store, found.resolved.name)
        restart_journal(found.connection, found.pipeline_id)
        return
    parts = {
        "unrecorded": unrecorded(found.pipeline_id),
        "table": found.table.identifier,
        "key": names(found.table.key),
        "key_json": found.key_json,
    }
    with found.connection.transaction():
        found.connection.execute(query("audit", "unrecorded_table", **parts))
        found.connection.execute(query("audit", "retell", **parts))
        if found.journal:
            found.connection.execute(query("audit", "retell_gone", **parts))
