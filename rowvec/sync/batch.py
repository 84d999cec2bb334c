"""The stages that each batch goes through, one after the other, on the machine that has its files."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa

from rowvec.embedders.cache import opened_embedder, opened_image_embedder
from rowvec.embedders.protocol import Answer, Embedder
from rowvec.embedders.provider.budget import FREE, Purse
from rowvec.embedders.rate_limit.shared import shared_pace
from rowvec.ledger import pipelines
from rowvec.ledger.pipelines import RunId
from rowvec.ledger.plans import open_plan
from rowvec.ledger.runs import open_target
from rowvec.ledger.spending import open_purse
from rowvec.ledger.workdir import database_name, made
from rowvec.pipeline import Pipeline
from rowvec.pipeline.references import resolve
from rowvec.postgres.connection import Connection
from rowvec.runtime.allocators import share_arenas
from rowvec.runtime.progress import tell
from rowvec.runtime.telemetry import traced
from rowvec.sources.images.locations import open_places
from rowvec.store import artifact as artifacts
from rowvec.store.artifact import Artifact
from rowvec.store.open import file_checksum, open_store
from rowvec.sync import load
from rowvec.sync.batch_api import jobs
from rowvec.sync.batch_api.ask import asks_ahead
from rowvec.sync.embed import Ask, embed_batch
from rowvec.sync.images import upload

share_arenas()

_MILLION = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A batch on its way through the stages: a reference and figures, never the rows themselves."""

    run_id: RunId
    number: int
    database: str = ""
    """The one that numbers the run, as ``rowvec.spool`` calls it; known once there are files."""
    images: int = 0
    """Those that were put into the store."""
    rows: int = 0
    embedded: int = 0
    rejected: int = 0
    tokens: int = 0
    artifact: Artifact | None = None
    seconds: tuple[tuple[str, float], ...] = ()

    @property
    def folder(self) -> Path:
        """Where its files are while it is on this machine."""
        return made(self.database, self.run_id) / f"batch-{self.number}"

    def after(self, stage: str, started: float, **changes: object) -> Batch:
        """The batch with a stage behind it."""
        seconds = (*self.seconds, (stage, time.monotonic() - started))
        return replace(self, seconds=seconds, **changes)  # pyright: ignore[reportArgumentType] # checked by replace


@traced("images")
def upload_image_files(pipeline: Pipeline, run_id: RunId, number: int) -> Batch:
    """Put a batch's images into the store, before anything is paid for them or a row shows them."""
    started, batch = time.monotonic(), Batch(run_id=run_id, number=number)
    resolved = resolve(pipeline)
    if resolved.source.kind != "images":
        return batch
    with open_target(resolved, f"rowvec images {number}") as connection:
        uploaded = upload.upload_images(
            connection,
            open_store(resolved.artifacts),
            open_places(resolved.source, listed=False),
            open_plan(connection, resolved, run_id),
            pipeline.name,
            number,
            lambda done, total: tell("images", f"batch {number}", done, total),
        )
    return batch.after("images", started, images=uploaded.images)


def embedded_at_once(pipeline: Pipeline) -> int:
    """Batches that one process embeds at once.

    Two where texts go to a provider, which would have nothing to do while the last answers of a batch are awaited and
    the next one's rows are fetched: the embedder's concurrency and pace are for both together, and no text is in two
    batches. A model of this machine is kept busy by one, and images are large.
    """
    return 2 if pipeline.embedder.kind in ("openai", "azure_openai") else 1


@traced("embed")
def embed_rows(pipeline: Pipeline, run_id: RunId, number: int, before: Batch | None = None) -> Batch:
    """Fetch a batch and give its rows vectors; ``before`` is the batch as its images were uploaded."""
    started, batch = time.monotonic(), before or Batch(run_id=run_id, number=number)
    resolved = resolve(pipeline)
    embedder = opened_embedder(resolved.embedder)
    with (
        open_target(resolved, f"rowvec embed {number}") as connection,
        _purse(resolved, run_id, embedder) as purse,
        shared_pace(resolved.target.url, embedder),
    ):
        batch = replace(batch, database=database_name(connection))
        done = embed_batch(
            connection,
            open_store(resolved.artifacts),
            embedder,
            open_plan(connection, resolved, run_id),
            number,
            batch.folder,
            lambda done, total: tell("embed", f"batch {number}", done, total),
            _asking(resolved, connection, run_id, batch.folder, purse),
        )
    return batch.after(
        "embed", started, rows=done.rows, embedded=done.embedded, rejected=done.rejected, tokens=done.tokens
    )


def _purse(pipeline: Pipeline, run_id: RunId, embedder: Embedder) -> AbstractContextManager[Purse]:
    """What requests are paid from, on a connection of its own; without one where nothing costs anything."""
    return open_purse(pipeline, run_id, embedder.cost) if embedder.paid else nullcontext(FREE)


def _asking(pipeline: Pipeline, connection: Connection, run_id: RunId, folder: Path, purse: Purse) -> Ask:
    """How an embedder is asked about contents: about the images they name, or about the texts they are."""
    if pipeline.source.kind == "images" and pipeline.embedder.kind != "column":
        seeing = opened_image_embedder(pipeline.embedder)
        store, places = open_store(pipeline.artifacts), open_places(pipeline.source, listed=False)

        def ask(contents: Iterator[str]) -> Iterator[Answer]:
            opened = upload.opened_images(connection, store, places, pipeline.name, folder, contents)
            return seeing.embed_images(opened, purse)

        return ask
    embedder = opened_embedder(pipeline.embedder)
    if not asks_ahead(pipeline):
        return lambda texts: embedder.embed(texts, purse)
    pipeline_id = open_plan(connection, pipeline, run_id).pipeline_id
    return lambda texts: jobs.embed_the_rest(connection, pipeline_id, embedder, purse, texts)


@traced("binarize")
def binarize_rows(pipeline: Pipeline, batch: Batch) -> Batch:
    """One bit a dimension, beside the vectors."""
    started = time.monotonic()
    if batch.rows and pipeline.target.bits:
        artifacts.write_bits(
            batch.folder / "embedded.arrow",
            batch.folder / "bits.arrow",
            pipeline.embedder.dimensions,
            pipeline.target.precision,
        )
    return batch.after("binarize", started)


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
        pipelines.add_artifact(
            connection, plan.pipeline_id, batch.run_id, batch.number, artifact, fingerprints, usd_a_token
        )
    return batch.after("upload", started, artifact=artifact)


@traced("load")
def load_rows(pipeline: Pipeline, batch: Batch) -> Batch:
    """COPY the artifact into staging: from this machine's copy if it is still there, else from the store."""
    started = time.monotonic()
    if batch.artifact is not None:
        resolved, parquet = resolve(pipeline), batch.folder / "artifact.parquet"
        if not parquet.exists() or file_checksum(parquet) != batch.artifact.sha256:
            batch.folder.mkdir(parents=True, exist_ok=True)
            open_store(resolved.artifacts).get(batch.artifact.name, parquet, batch.artifact.sha256)
        with open_target(resolved, f"rowvec load {batch.number}") as connection:
            plan = open_plan(connection, resolved, batch.run_id)
            load.load_batch(
                connection, batch.run_id, batch.number, parquet, plan.table, plan.staging, direct=plan.direct
            )
    shutil.rmtree(batch.folder, ignore_errors=True)
    return batch.after("load", started)


def _fingerprints(embedded: Path) -> list[bytes]:
    with pa.memory_map(str(embedded)) as source:
        reader = pa.ipc.open_file(source)
        # Block by block: a batch of a very large table has more than a million rows.
        blocks = (reader.get_batch(i).column("fingerprint").to_pylist() for i in range(reader.num_record_batches))
        return list(dict.fromkeys(fingerprint for block in blocks for fingerprint in block))
