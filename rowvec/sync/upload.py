"""The upload stage: a batch becomes one Parquet object in the store."""

from __future__ import annotations

import time
from pathlib import Path

import pyarrow as pa

from rowvec.embedders.cache import opened_embedder
from rowvec.ledger import reuse
from rowvec.ledger.plans import open_plan
from rowvec.pipeline import Pipeline
from rowvec.pipeline.references import resolve
from rowvec.postgres.connection import open_target
from rowvec.runtime.telemetry import traced
from rowvec.store import artifact as artifacts
from rowvec.store.open import open_store
from rowvec.sync.batch import Batch

_MILLION = 1_000_000


@traced("upload")
def upload_rows(pipeline: Pipeline, batch: Batch) -> Batch:
    """Write the batch's artifact, put it into the store, and note in the ledger what it holds."""
    started = time.monotonic()
    if not batch.rows:
        return batch.after("upload", started)
    resolved, folder = resolve(pipeline), batch.folder
    with open_target(resolved, f"rowvec upload {batch.number}") as connection:
        plan = open_plan(connection, resolved, batch.run_id)
        bits = folder / "bits.arrow" if plan.table.bits else None
        parquet = folder / "artifact.parquet"
        artifact = artifacts.write_artifact(
            folder / "embedded.arrow", bits, parquet, plan.table, pipeline.name, plan.identity
        )
        artifacts.upload(open_store(resolved.artifacts), parquet, artifact)
        fingerprints = _fingerprints(folder / "embedded.arrow")
        usd_a_token = opened_embedder(resolved.embedder).cost(_MILLION) / _MILLION
        reuse.add_artifact(
            connection, plan.pipeline_id, batch.run_id, batch.number, artifact, fingerprints, usd_a_token
        )
    return batch.after("upload", started, artifact=artifact)


def _fingerprints(embedded: Path) -> list[bytes]:
    with pa.memory_map(str(embedded)) as source:
        reader = pa.ipc.open_file(source)
        # Block by block: a batch of a very large table has more than a million rows.
        blocks = (reader.get_batch(i).column("fingerprint").to_pylist() for i in range(reader.num_record_batches))
        return list(dict.fromkeys(fingerprint for block in blocks for fingerprint in block))
