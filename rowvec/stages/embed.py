"""The embed stage: a batch of rows becomes a file of rows with vectors.

Vectors that were paid for before are reused, and a row whose content cannot be embedded is rejected.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from psycopg import sql

from rowvec.embedders.budget import UNLIMITED, BudgetHold
from rowvec.embedders.cache import opened_embedder, opened_image_embedder
from rowvec.embedders.protocol import Answer, Embedder
from rowvec.embedders.rate_limit.shared import shared_pace
from rowvec.errors import ArtifactCorrupt, RowError
from rowvec.ledger import rejects, reuse
from rowvec.ledger.plans import KEY_JSON, VECTOR_TEXT, Plan, fetch, fetched_schema
from rowvec.ledger.reuse import Answers, longer_identities
from rowvec.ledger.spending import open_budget
from rowvec.ledger.workdir import database_name
from rowvec.pipeline import Pipeline
from rowvec.postgres.queries import query
from rowvec.runtime.progress import tell
from rowvec.runtime.telemetry import traced
from rowvec.sources.images.locations import open_places
from rowvec.stages.batch import Batch
from rowvec.stages.batch_api import jobs
from rowvec.stages.batch_api.submit import may_have_jobs
from rowvec.stages.images import upload
from rowvec.stages.vector_spool import VectorSpool, open_spool
from rowvec.stages.work import Work, open_stage
from rowvec.store.artifact import Artifact, read_vectors
from rowvec.vectors.fingerprint import fingerprint as fingerprint_of
from rowvec.vectors.layout import Embeddings, dense
from rowvec.vectors.matryoshka import cut

# Fingerprints looked up in one statement: an array of 10,000 is 0.4 MB.
_LOOKUP = 10_000

logger = logging.getLogger(__name__)

Ask = Callable[[Iterator[str]], Iterator[Answer]]
"""Gives an embedder's answers about a stream of contents, like ``Embedder.embed`` about texts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedded:
    """The outcome of embedding a batch."""

    rows: int
    """Rows that have a vector."""
    embedded: int
    """Distinct contents that the embedder was sent and answered."""
    rejected: int
    tokens: int


@dataclass(slots=True)
class _Distinct:
    """The distinct contents of a batch and their vectors."""

    fingerprints: list[bytes]
    of_row: npt.NDArray[np.int64]
    vectors: VectorSpool
    present: npt.NDArray[np.bool_]
    rejected: dict[int, RowError]


def embed_batch(work: Work, number: int, folder: Path, ask: Ask) -> Embedded:
    """Write ``folder/embedded.arrow``: the batch's rows with their vectors, in the layout of an artifact.

    No transaction is open while the embedder is asked. If an answer costs money, it is durable before the next one is
    awaited. ``ask`` asks the embedder about contents.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    plan, embedder = work.plan, opened_embedder(work.pipeline.embedder)
    distinct = _write_rows(work, number, folder)
    _reuse(work, distinct, folder)
    missing = np.flatnonzero(~distinct.present)
    column = VECTOR_TEXT if embedder.identity.from_source else "content"
    tokens = 0
    for answer in ask(_texts(folder / "rows.arrow", distinct, missing, column)):
        tokens += answer.billed
        ids = _take(distinct, missing, answer)
        if embedder.paid and len(ids):
            known = [distinct.fingerprints[i] for i in ids]
            # No provider that bills gives sparse vectors.
            answers = Answers(fingerprints=known, vectors=dense(answer.vectors), tokens=answer.billed)
            reuse.keep_answers(work.connection, plan.pipeline_id, plan.run_id, answers)
        done = int(distinct.present.sum()) + len(distinct.rejected)
        tell("embed", f"batch {number}", done, len(distinct.fingerprints))
    rows = _write_embedded(folder, plan, distinct)
    rejected = _keep_rejects(work, folder, distinct)
    return Embedded(rows=rows, embedded=int(distinct.present[missing].sum()), rejected=rejected, tokens=tokens)


def _write_rows(work: Work, batch: int, folder: Path) -> _Distinct:
    """Fetch the rows to disk, so that the transaction that reads them ends before the first request."""
    fingerprints: list[bytes] = []
    of_row: list[npt.NDArray[np.int64]] = []
    plan = work.plan
    with pa.OSFile(str(folder / "rows.arrow"), "wb") as sink, pa.ipc.new_file(sink, fetched_schema(plan.table)) as out:
        for rows in fetch(work.connection, plan, batch):
            out.write_batch(rows)
            ids = np.empty(rows.num_rows, np.int64)
            for i, fingerprint in enumerate(rows.column("fingerprint").to_pylist()):
                if not fingerprints or fingerprint != fingerprints[-1]:
                    fingerprints.append(fingerprint)
                ids[i] = len(fingerprints) - 1
            of_row.append(ids)
    return _Distinct(
        fingerprints=fingerprints,
        of_row=np.concatenate(of_row) if of_row else np.empty(0, np.int64),
        vectors=open_spool(folder, plan.table.layout, len(fingerprints)),
        present=np.zeros(len(fingerprints), np.bool_),
        rejected={},
    )


def _reuse(work: Work, distinct: _Distinct, folder: Path) -> None:
    """Fill in the vectors that were paid for before: by an unfinished run, or for a row with the same content."""
    connection, plan = work.connection, work.plan
    look_in_table = not plan.direct and reuse.relies_on_table(connection, plan.pipeline_id)
    for start in range(0, len(distinct.fingerprints), _LOOKUP):
        wanted = distinct.fingerprints[start : start + _LOOKUP]
        ids = {fingerprint: start + i for i, fingerprint in enumerate(wanted)}
        for fingerprint, vector in reuse.known_answers(connection, plan.pipeline_id, wanted).items():
            _fill(distinct, [ids[fingerprint]], vector[None])
        open_ids = [f for f in wanted if not distinct.present[ids[f]]]
        for artifact, held in reuse.known_in_artifacts(connection, plan.pipeline_id, open_ids).items():
            before = int(distinct.present.sum())
            found, vectors = _kept(work, artifact, held, folder)
            _fill(distinct, [ids[fingerprint] for fingerprint in found], vectors)
            # The artifact is lost; the table may still have its vectors.
            look_in_table |= not plan.direct and int(distinct.present.sum()) - before < len(held)
        _cut_from_longer(work, distinct, folder, range(start, start + len(wanted)))
        if look_in_table:
            still_open = [f for f in wanted if not distinct.present[ids[f]]]
            found, vectors = _in_table(work, still_open)
            _fill(distinct, [ids[fingerprint] for fingerprint in found], vectors)


def _cut_from_longer(work: Work, distinct: _Distinct, folder: Path, among: range) -> None:
    """Fill in vectors by shortening the longer ones that another generation has for the same contents."""
    connection, plan = work.connection, work.plan
    for identity in longer_identities(connection, plan.pipeline_id, plan.identity):
        missing = np.array([i for i in among if not distinct.present[i]], np.int64)
        digest = identity.digest()
        texts = _texts(folder / "rows.arrow", distinct, missing, "content")
        ids = {bytes(fingerprint_of(digest, text.encode())): int(i) for i, text in zip(missing, texts, strict=True)}
        for artifact, held in reuse.known_in_artifacts(connection, plan.pipeline_id, list(ids)).items():
            found, vectors = _kept(work, artifact, held, folder)
            if isinstance(vectors, np.ndarray):
                _fill(distinct, [ids[longer] for longer in found], cut(vectors, plan.table.dimensions))


def _kept(work: Work, artifact: Artifact, held: set[bytes], folder: Path) -> tuple[list[bytes], Embeddings]:
    """Fingerprints and vectors from an artifact; a lost one leaves the ledger, so that no later run relies on it."""
    connection, plan = work.connection, work.plan
    local = folder / "reused.parquet"
    try:
        work.store.get(artifact.name, local, artifact.sha256, at_most=artifact.bytes)
        return read_vectors(local, held)
    except ArtifactCorrupt as error:
        logger.warning("%s; what it held is taken from the vector table, or embedded again", error)
        with connection.transaction():
            reuse.set_artifacts_lost(connection, plan.pipeline_id, lost=True)
            reuse.forget_artifact(connection, plan.pipeline_id, artifact.name)
        return [], plan.table.layout.together([])
    finally:
        local.unlink(missing_ok=True)


def _in_table(work: Work, wanted: list[bytes]) -> tuple[list[bytes], Embeddings]:
    """Vectors that only the table has because the ledger is lost: a scan of the table, so this is the last resort."""
    table, layout = work.plan.table, work.plan.table.layout
    if not wanted:
        return [], layout.together([])
    parts = {"table": table.identifier, "fingerprints": sql.Literal(wanted), "send": layout.send}
    rows = work.connection.execute(query("embed", "known_in_table", **parts)).fetchall()
    return [fingerprint for fingerprint, _ in rows], layout.of_wires([sent for _, sent in rows])


def _fill(distinct: _Distinct, ids: list[int], vectors: Embeddings) -> None:
    rows = np.array(ids, np.int64)
    distinct.vectors.put(rows, vectors)
    distinct.present[rows] = True


def _texts(rows: Path, distinct: _Distinct, missing: npt.NDArray[np.int64], column: str) -> Iterator[str]:
    """The texts without a vector, each once, in the order of ``missing``; read from disk only as they are needed."""
    if not len(missing):
        return
    first_row = np.searchsorted(distinct.of_row, missing)
    start = position = 0
    with pa.memory_map(str(rows)) as source:
        reader = pa.ipc.open_file(source)
        for number in range(reader.num_record_batches):
            block = reader.get_batch(number)
            end = int(np.searchsorted(first_row, start + block.num_rows))
            if end > position:
                yield from block.column(column).take(pa.array(first_row[position:end] - start)).to_pylist()
                position = end
            start += block.num_rows


def _take(distinct: _Distinct, missing: npt.NDArray[np.int64], answer: Answer) -> npt.NDArray[np.int64]:
    ids = missing[answer.positions]
    distinct.vectors.put(ids, answer.vectors)
    distinct.present[ids] = True
    distinct.rejected.update({int(missing[position]): error for position, error in answer.rejected.items()})
    return ids


def _write_embedded(folder: Path, plan: Plan, distinct: _Distinct) -> int:
    schema = pa.schema([f for f in plan.table.artifact_schema if f.name != "embedding_bits"])
    start = written = 0
    with (
        pa.memory_map(str(folder / "rows.arrow")) as source,
        pa.OSFile(str(folder / "embedded.arrow"), "wb") as sink,
        pa.ipc.new_file(sink, schema) as out,
    ):
        reader = pa.ipc.open_file(source)
        for number in range(reader.num_record_batches):
            block = reader.get_batch(number)
            ids = distinct.of_row[start : start + block.num_rows]
            start += block.num_rows
            mask = distinct.present[ids]
            kept = block if mask.all() else block.filter(pa.array(mask))
            embedding = plan.table.layout.to_arrow(distinct.vectors.take(ids[mask]))
            columns = [embedding if f.name == "embedding" else kept.column(f.name) for f in schema]
            if kept.num_rows:
                out.write_batch(pa.record_batch(columns, schema=schema))
            written += kept.num_rows
    return written


def _keep_rejects(work: Work, folder: Path, distinct: _Distinct) -> int:
    """Record the rows whose content the embedder cannot take; returns how many."""
    if not distinct.rejected:
        return 0
    bad = np.isin(distinct.of_row, np.fromiter(distinct.rejected, np.int64))
    start = 0
    with pa.memory_map(str(folder / "rows.arrow")) as source:
        reader = pa.ipc.open_file(source)
        for number in range(reader.num_record_batches):
            block = reader.get_batch(number)
            mask = bad[start : start + block.num_rows]
            ids = distinct.of_row[start : start + block.num_rows][mask]
            start += block.num_rows
            if len(ids):
                keys = block.column(KEY_JSON).filter(pa.array(mask)).to_pylist()
                found = [
                    (k, distinct.fingerprints[i], distinct.rejected[int(i)]) for k, i in zip(keys, ids, strict=True)
                ]
                rejects.add_rejects(work.connection, work.plan.pipeline_id, work.plan.run_id, found)
    return int(bad.sum())


@traced("embed")
def run(pipeline: Pipeline, batch: Batch) -> Batch:
    """Fetch a batch's rows and give them vectors."""
    started = time.monotonic()
    with open_stage(pipeline, batch, f"embed {batch.number}") as work:
        embedder = opened_embedder(work.pipeline.embedder)
        with _budget(work, embedder) as budget, shared_pace(work.pipeline.target.url, embedder):
            batch = replace(batch, database=database_name(work.connection), bits=work.plan.table.bits)
            done = embed_batch(work, batch.number, batch.folder, _asking(work, batch.folder, budget))
    return batch.after(
        "embed", started, rows=done.rows, embedded=done.embedded, rejected=done.rejected, tokens=done.tokens
    )


def _budget(work: Work, embedder: Embedder) -> AbstractContextManager[BudgetHold]:
    """What requests are paid from, on a connection of its own; without one if nothing costs anything."""
    if not embedder.paid:
        return nullcontext(UNLIMITED)
    return open_budget(work.pipeline, work.plan.run_id, work.lease, embedder.cost)


def _asking(work: Work, folder: Path, budget: BudgetHold) -> Ask:
    """How the embedder is asked about contents: about the images that they name, or about the texts that they are."""
    pipeline = work.pipeline
    if pipeline.source.kind == "images" and pipeline.embedder.kind != "column":
        seeing = opened_image_embedder(pipeline.embedder)
        store, places = work.store, open_places(pipeline.source, listed=False)

        def ask(contents: Iterator[str]) -> Iterator[Answer]:
            opened = upload.opened_images(work.connection, store, places, pipeline.name, folder, contents)
            return seeing.embed_images(opened, budget)

        return ask
    embedder = opened_embedder(pipeline.embedder)
    if not may_have_jobs(pipeline):
        return lambda texts: embedder.embed(texts, budget)
    return lambda texts: jobs.embed_the_rest(work.connection, work.plan.pipeline_id, embedder, budget, texts)
