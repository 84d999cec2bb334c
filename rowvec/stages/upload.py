"""The upload stage: a batch becomes one Parquet object in the store."""

from __future__ import annotations

import time
from pathlib import Path

import pyarrow as pa

from rowvec.embedders.cache import opened_embedder
from rowvec.ledger.reuse import NewArtifact, add_artifact
from rowvec.pipeline import Pipeline
from rowvec.runtime.telemetry import traced
from rowvec.stages.batch import Batch
from rowvec.stages.work import open_stage
from rowvec.store import artifact as artifacts

_MILLION = 1_000_000


@traced("upload")
def run(pipeline: Pipeline, batch: Batch) -> Batch:
    """Write the batch's artifact, put it into the store, and note in the ledger what it holds."""
    started = time.monotonic()
    if not batch.rows:
        return batch.after("upload", started)
    folder = batch.folder
    with open_stage(pipeline, batch, f"upload {batch.number}") as work:
        plan = work.plan
        bits = folder / "bits.arrow" if plan.table.bits else None
        parquet = folder / "artifact.parquet"
        artifact = artifacts.write_artifact(
            folder / "embedded.arrow", bits, parquet, plan.table, pipeline.name, plan.identity
        )
        artifacts.upload(work.store, parquet, artifact)
        new = NewArtifact(
            artifact=artifact,
            batch=batch.number,
            fingerprints=_fingerprints(folder / "embedded.arrow"),
            usd_per_token=opened_embedder(work.pipeline.embedder).cost(_MILLION) / _MILLION,
        )
        add_artifact(work.connection, plan.pipeline_id, batch.run_id, new)
    return batch.after("upload", started, artifact=artifact)


def _fingerprints(embedded: Path) -> list[bytes]:
    with pa.memory_map(str(embedded)) as source:
        reader = pa.ipc.open_file(source)
        # Block by block: a batch of a very large table has more than a million rows.
        blocks = (reader.get_batch(i).column("fingerprint").to_pylist() for i in range(reader.num_record_batches))
        return list(dict.fromkeys(fingerprint for block in blocks for fingerprint in block))
