"""Repair: what an audit found is mended from where it is still right; a sync pays for what is right nowhere."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator

import pyarrow as pa
from psycopg import sql

from rowvec.embedders import open_embedder
from rowvec.ledger import reuse, runs
from rowvec.ledger.generations import effective
from rowvec.ledger.journal import begin_anew, unrecorded
from rowvec.ledger.runs import Run, running
from rowvec.ledger.workdir import spool
from rowvec.operations.audit import Audit, Audited, audited
from rowvec.pipeline import Pipeline
from rowvec.postgres.fragments import names
from rowvec.postgres.queries import query
from rowvec.store import artifact as artifacts
from rowvec.sync import binarize

_FETCH_ROWS = 2048
# 50,000 rows: an artifact of 3,072 dimensions then has 600 MB.
_ARTIFACT_BLOCKS = 24


def prepare_repair(pipeline: Pipeline) -> Audit:
    """Audit, and make right whatever a sync cannot; the sync that must follow does the rest. Returns what was found.

    Rows that are there and not right lose their fingerprint, so that the sync replaces them, from artifacts. Sound
    vectors whose artifact is lost are written to a new one, from the table. Artifacts that cannot be read are
    forgotten, and what they held is looked for in the others.
    """
    pipeline = effective(pipeline)
    with running(pipeline, "repair") as run, audited(pipeline) as found:
        report = found.report()
        if found.lost_artifacts:
            reuse.set_artifacts_lost(found.connection, found.pipeline_id, lost=True)
        for name in found.lost_artifacts:
            # Its place must be free: the same rows may give the same bytes again, and an object is never overwritten.
            found.store.delete(name)
            reuse.forget_artifact(found.connection, found.pipeline_id, name)
        with found.connection.transaction():
            found.connection.execute(query("audit", "point_elsewhere", pipeline_id=sql.Literal(found.pipeline_id)))
        _salvage(found, pipeline, run)
        reuse.set_artifacts_lost(found.connection, found.pipeline_id, lost=False)
        _retell(found)
        found.connection.execute(query("audit", "void", table=found.table.identifier, key_json=found.key_json))
        runs.finish_run(found.connection, run.run_id, "succeeded", report=report.as_json())
    return report


def _salvage(found: Audited, pipeline: Pipeline, run: Run) -> None:
    """Write the vectors that only the table has to new artifacts; a float16 table gives them as it has them."""
    identity, folder = open_embedder(found.resolved.embedder).identity, spool(found.connection, run.run_id)
    spooled, bits, parquet = folder / "embedded.arrow", folder / "bits.arrow", folder / "artifact.parquet"
    rows = _sound_rows(found)
    for batch in itertools.count():
        taken = list(itertools.islice(rows, _ARTIFACT_BLOCKS))
        if not taken:
            break
        with pa.OSFile(str(spooled), "wb") as sink, pa.ipc.new_file(sink, taken[0].schema) as out:
            for block in taken:
                out.write_batch(block)
        if found.table.bits:
            binarize.write_bits(spooled, bits, found.table.dimensions, found.table.precision)
        artifact = artifacts.write_artifact(
            spooled, bits if found.table.bits else None, parquet, found.table, pipeline.name, identity
        )
        artifacts.upload(found.store, parquet, artifact)
        fingerprints = [fingerprint for block in taken for fingerprint in block.column("fingerprint").to_pylist()]
        reuse.add_artifact(found.connection, found.pipeline_id, run.run_id, batch, artifact, fingerprints, 0.0)
    shutil.rmtree(folder)


def _sound_rows(found: Audited) -> Iterator[pa.RecordBatch]:
    """Rows with nothing wrong but that no artifact holds their vector, as an artifact has them, less the bits."""
    table = found.table
    schema = pa.schema([f for f in table.artifact_schema if f.name != "embedding_bits"])
    columns = sql.SQL(", ").join(
        sql.SQL("{}::{}").format(sql.Identifier("t", c.name), sql.SQL(c.travels_as))
        for c in (*table.key, *table.metadata)
    )
    statement = query(
        "audit", "salvage", columns=columns, send=table.layout.send, table=table.identifier, key_json=found.key_json
    )
    # The cursor outlives its transaction: none is open while the store is written to.
    with found.connection.cursor(name="salvage", binary=True, withhold=True) as cursor:
        cursor.execute(statement)
        while rows := cursor.fetchmany(_FETCH_ROWS):
            *plain, sent = zip(*rows, strict=True)
            arrays = [pa.array(values, f.type) for values, f in zip(plain, schema, strict=False)]
            arrays.append(table.layout.to_arrow(table.layout.of_wires(sent)))
            yield pa.record_batch(arrays, schema)


def _retell(found: Audited) -> None:
    """Have the next manifest say how the rows that were found wrong are then: the journal may be what is wrong."""
    if not found.journal_is_sound:
        begin_anew(found.connection, found.pipeline_id)
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
