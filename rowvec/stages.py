"""The stages of a run, each a function of pipeline, run and batch: what an orchestrator calls, one by one."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeVar

import pyarrow as pa

from rowvec import artifacts, images, jobs, journal, ledger, load, rejects, validate
from rowvec.artifacts import Artifact
from rowvec.ask_ahead import asks_ahead
from rowvec.chunks import is_joined
from rowvec.database import Connection
from rowvec.embed import Ask, embed_batch
from rowvec.embedders import open_embedder, open_image_embedder
from rowvec.embedders.protocol import Answer, Embedder, ImageEmbedder
from rowvec.embedders.purse import FREE, Purse
from rowvec.errors import Inconsistent
from rowvec.extract import Request, extract
from rowvec.home import spool
from rowvec.jobs import Collected
from rowvec.journal import Closing
from rowvec.ledger import RunId
from rowvec.lost_images import check_images, forget_lost_images, wanting_images
from rowvec.memory import share_arenas
from rowvec.merge import Merged, compare, merge
from rowvec.pipeline import Pipeline
from rowvec.pipeline_embedders import Embedder as EmbedderPart
from rowvec.pipeline_part import table_identifier
from rowvec.plan import Plan, open_plan
from rowvec.progress import tell
from rowvec.references import resolve
from rowvec.report import Check, RestoreReport, SyncReport, what_of
from rowvec.run import Run, open_target
from rowvec.serving import Indexed, serve
from rowvec.sources.image_memory import forget_run, run_name
from rowvec.sources.image_places import open_places
from rowvec.sparsity import make_room
from rowvec.spending import open_purse
from rowvec.stores import Store, file_checksum, open_store
from rowvec.telemetry import record, traced
from rowvec.vector_table import make_schema

share_arenas()

logger = logging.getLogger(__name__)

R = TypeVar("R", SyncReport, RestoreReport)

_MILLION = 1_000_000
# Reading every vector of a large table back would cost more than the run did: beyond this many rows a run checks what
# it wrote itself, and the daily audit the rest.
_ALL_ROWS = 200_000

_embedders: dict[str, Embedder] = {}
_image_embedders: dict[str, ImageEmbedder] = {}
_opening = threading.Lock()


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A batch on its way through the stages: a reference and figures, never the rows themselves."""

    run_id: RunId
    number: int
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
        return spool(self.run_id) / f"batch-{self.number}"

    def after(self, stage: str, started: float, **changes: object) -> Batch:
        """The batch with a stage behind it."""
        seconds = (*self.seconds, (stage, time.monotonic() - started))
        return replace(self, seconds=seconds, **changes)  # pyright: ignore[reportArgumentType] # checked by replace


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One plan, its batches, and the merge that ended it."""

    plan: Plan
    batches: tuple[Batch, ...]
    merged: Merged
    images_again: int = 0
    """Those that were put into the store a second time, for it had lost them."""

    @property
    def seconds(self) -> tuple[tuple[str, float], ...]:
        """Time spent in the stages that are not a batch's."""
        return (("extract", self.plan.seconds), ("merge", self.merged.seconds))


@traced("extract")
def extract_rows(pipeline: Pipeline, run: Run, weight: int = 1) -> Plan:
    """Compare source and vector table; the plan is stored and waits for its batches to be worked on.

    ``weight``: how many times its usual least size a batch is to have.
    """
    started = time.monotonic()
    resolved = resolve(pipeline)
    identity = _embedder(resolved.embedder).identity
    with open_target(resolved, "rowvec extract") as connection:
        shows_images = resolved.source.kind == "images"
        if shows_images:
            forget_lost_images(connection, _store(resolved), pipeline.name)
        request = Request(
            pipeline=resolved,
            identity=identity,
            pipeline_id=run.pipeline_id,
            run_id=run.run_id,
            note_all_images=shows_images and any(wanting_images(connection, pipeline)),
            batch_weight=weight,
        )
        # Not in the extract's transaction, nor in the merge's: others may be making the same schema.
        make_schema(connection, table_identifier(pipeline.target.table)[0])
        plan = extract(connection, request)
        ledger.keep_settings(connection, run.pipeline_id, pipeline)
        # Without a single row to embed, a first load still makes the (empty) vector table.
        if plan.batches or plan.direct:
            load.create_staging(connection, run.run_id, plan.table, plan.staging, direct=plan.direct)
        lost = wanting_images(connection, pipeline)[0] if shows_images else 0
    return replace(plan, lost_images=lost, seconds=time.monotonic() - started)


def upload_lost_images(pipeline: Pipeline, run_id: RunId) -> int:
    """Put images into the store again that has lost them; returns how many. Those of the plan are its batches'."""
    resolved = resolve(pipeline)
    if resolved.source.kind != "images":
        return 0
    with open_target(resolved, "rowvec images") as connection:
        plan = open_plan(connection, resolved, run_id)
        uploaded = images.upload_lost_images(
            connection,
            _store(resolved),
            open_places(resolved.source, listed=False),
            plan.table,
            pipeline.name,
            lambda done, total: tell("images", "lost", done, total),
        )
        return uploaded.images


@traced("images")
def upload_image_files(pipeline: Pipeline, run_id: RunId, number: int) -> Batch:
    """Put a batch's images into the store, before anything is paid for them or a row shows them."""
    started, batch = time.monotonic(), Batch(run_id=run_id, number=number)
    resolved = resolve(pipeline)
    if resolved.source.kind != "images":
        return batch
    with open_target(resolved, f"rowvec images {number}") as connection:
        uploaded = images.upload_images(
            connection,
            _store(resolved),
            open_places(resolved.source, listed=False),
            open_plan(connection, resolved, run_id),
            pipeline.name,
            number,
            lambda done, total: tell("images", f"batch {number}", done, total),
        )
    return batch.after("images", started, images=uploaded.images)


@traced("embed")
def embed_rows(pipeline: Pipeline, run_id: RunId, number: int, before: Batch | None = None) -> Batch:
    """Fetch a batch and give its rows vectors; ``before`` is the batch as its images were uploaded."""
    started, batch = time.monotonic(), before or Batch(run_id=run_id, number=number)
    resolved = resolve(pipeline)
    embedder = _embedder(resolved.embedder)
    with open_target(resolved, f"rowvec embed {number}") as connection, _purse(resolved, run_id, embedder) as purse:
        done = embed_batch(
            connection,
            _store(resolved),
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
        seeing = _image_embedder(pipeline.embedder)
        store, places = _store(pipeline), open_places(pipeline.source, listed=False)

        def ask(contents: Iterator[str]) -> Iterator[Answer]:
            opened = images.opened_images(connection, store, places, pipeline.name, folder, contents)
            return seeing.embed_images(opened, purse)

        return ask
    embedder = _embedder(pipeline.embedder)
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
        artifacts.upload(_store(resolved), parquet, artifact)
        fingerprints = _fingerprints(folder / "embedded.arrow")
        usd_a_token = _embedder(resolved.embedder).cost(_MILLION) / _MILLION
        ledger.add_artifact(
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
            _store(resolved).get(batch.artifact.name, parquet, batch.artifact.sha256)
        with open_target(resolved, f"rowvec load {batch.number}") as connection:
            plan = open_plan(connection, resolved, batch.run_id)
            load.load_batch(
                connection, batch.run_id, batch.number, parquet, plan.table, plan.staging, direct=plan.direct
            )
    shutil.rmtree(batch.folder, ignore_errors=True)
    return batch.after("load", started)


@traced("merge")
def merge_rows(pipeline: Pipeline, run_id: RunId) -> Merged:
    """One transaction, after which the vector table agrees with the source."""
    started = time.monotonic()
    resolved = resolve(pipeline)
    with open_target(resolved, "rowvec merge") as connection:
        plan = open_plan(connection, resolved, run_id)
        if said := make_room(connection, plan, resolved.index):
            logger.warning("%s.%s: %s", plan.table.schema, plan.table.name, said)
        merged = merge(connection, resolved, plan)
        if not is_joined(resolved):
            merged = compare(connection, resolved, plan, merged)
    return replace(merged, seconds=time.monotonic() - started)


@traced("index")
def index_rows(pipeline: Pipeline, run_id: RunId) -> Indexed:
    """See to it that the vector table has the index it is to have, and the search function that uses it."""
    resolved = resolve(pipeline)
    with open_target(resolved, "rowvec index") as connection:
        return serve(connection, open_plan(connection, resolved, run_id).table, resolved)


@traced("validate")
def validate_rows(pipeline: Pipeline, run: Run, rounds: list[Round], indexed: Indexed) -> SyncReport:
    """Check what must hold, write the manifest, and record the verdict in the ledger."""
    started = time.monotonic()
    resolved = resolve(pipeline)
    store = _store(resolved)
    with open_target(resolved, "rowvec validate") as connection:
        plan = open_plan(connection, resolved, run.run_id)
        merged = rounds[-1].merged
        checks = [
            *validate.check_merge(merged, of_files=resolved.source.kind != "postgres"),
            *validate.check_table(connection, plan.table, None if indexed.rows <= _ALL_ROWS else plan.run_id),
            validate.check_artifacts(connection, store, plan),
            *([check_images(connection, plan.table, pipeline)] if resolved.source.kind == "images" else []),
            *validate.check_serving(connection, plan.table, indexed.choice, indexed.recall, indexed.said),
        ]
        report = _report(pipeline, run, rounds, indexed, checks, _embedder(resolved.embedder))
        report = _with_jobs(report, jobs.unreported(connection, run.pipeline_id))
        report = replace(report, rejected=rejects.count(connection, run.pipeline_id))
        recorded = journal.record(connection, store, _closing(plan, report), spool(plan.run_id))
        seconds = {**report.seconds, "validate": round(time.monotonic() - started, 3)}
        seconds["total"] = round(time.monotonic() - run.started, 3)
        report = replace(report, manifest=recorded and recorded.name, seconds=seconds)
        with connection.transaction():
            if recorded:
                recorded.tell(connection)
            jobs.report(connection, run.pipeline_id, run.run_id)
            ledger.finish_run(
                connection,
                run.run_id,
                "succeeded" if report.consistent else "failed",
                report=report.as_json(),
                checks=[asdict(check) for check in checks],
                manifest=recorded and recorded.name,
                manifest_sha256=recorded and recorded.sha256,
            )
    shutil.rmtree(spool(run.run_id), ignore_errors=True)
    forget_run(run_name(run.run_id))
    record(report)
    return report


def conclude(report: R) -> R:
    """The report of a run that succeeded. Raises ``Inconsistent`` with it otherwise."""
    if report.consistent:
        return report
    first = report.failed_checks[0]
    rows = f" (rows {', '.join(first.rows[:5])})" if first.rows else ""
    raise Inconsistent(
        f"run {report.run_id} of {report.pipeline} is inconsistent: {first.name}: {first.detail}{rows}", report
    )


def _report(
    pipeline: Pipeline, run: Run, rounds: list[Round], indexed: Indexed, checks: list[Check], embedder: Embedder
) -> SyncReport:
    first, last = rounds[0].plan.counts, rounds[-1]
    batches = [batch for one in rounds for batch in one.batches]
    embedded, tokens = sum(b.embedded for b in batches), sum(b.tokens for b in batches)
    seconds: dict[str, float] = {}
    spent = [pair for one in rounds for pair in one.seconds] + [pair for batch in batches for pair in batch.seconds]
    for stage, value in [*spent, ("index", indexed.seconds)]:
        seconds[stage] = seconds.get(stage, 0.0) + value
    recall = next((check.value for check in checks if check.name == "recall"), None)
    return SyncReport(
        run_id=run.run_id,
        pipeline=pipeline.name,
        new=sum(one.plan.counts.new for one in rounds),
        changed=sum(one.plan.counts.changed for one in rounds),
        metadata_only=sum(one.plan.counts.metadata_only for one in rounds),
        deleted=sum(one.plan.counts.deleted for one in rounds),
        unchanged=first.unchanged,
        rejected=0,
        embedded=embedded,
        reused=sum(b.rows for b in batches) - embedded,
        what=what_of(pipeline),
        images=sum(b.images for b in batches) + sum(one.images_again for one in rounds),
        tokens=tokens,
        cost_usd=embedder.cost(tokens),
        pending=last.merged.pending,
        rows=last.merged.table_rows,
        consistent=all(check.ok for check in checks),
        k=pipeline.validation.recall.k,
        recall_at_k=recall,
        checksum=last.merged.table_checksum,
        artifacts=sum(b.artifact is not None for b in batches),
        manifest=None,
        checks=tuple(checks),
        seconds={stage: round(value, 3) for stage, value in seconds.items()},
    )


def _with_jobs(report: SyncReport, brought: Collected) -> SyncReport:
    """The report with what jobs have answered since the last one, which its batches found among the answers."""
    return replace(
        report,
        embedded=report.embedded + brought.texts,
        reused=max(0, report.reused - brought.texts),
        tokens=report.tokens + brought.tokens,
        cost_usd=report.cost_usd + brought.usd,
    )


def _closing(plan: Plan, report: SyncReport) -> Closing:
    """What the run's manifest is to say."""
    names = ("new", "changed", "metadata_only", "deleted", "unchanged", "rows", "rejected")
    return Closing(
        run_id=plan.run_id,
        pipeline_id=plan.pipeline_id,
        pipeline=report.pipeline,
        table=plan.table,
        identity=plan.identity,
        counts={name: getattr(report, name) for name in names},
        checksum=report.checksum,
        embedded=report.embedded,
        tokens=report.tokens,
        cost_usd=report.cost_usd,
    )


def _embedder(part: EmbedderPart) -> Embedder:
    """One embedder a process, so that all batches share its pace, and a model is loaded once."""
    written = part.model_dump_json()
    with _opening:
        if written not in _embedders:
            _embedders[written] = open_embedder(part)
        return _embedders[written]


def _image_embedder(part: EmbedderPart) -> ImageEmbedder:
    """As ``_embedder``, of one that takes images."""
    written = part.model_dump_json()
    with _opening:
        if written not in _image_embedders:
            _image_embedders[written] = open_image_embedder(part)
        return _image_embedders[written]


def _store(resolved: Pipeline) -> Store:
    return open_store(resolved.artifacts)


def _fingerprints(embedded: Path) -> list[bytes]:
    with pa.memory_map(str(embedded)) as source:
        reader = pa.ipc.open_file(source)
        # Block by block: a batch of a very large table has more than a million rows.
        blocks = (reader.get_batch(i).column("fingerprint").to_pylist() for i in range(reader.num_record_batches))
        return list(dict.fromkeys(fingerprint for block in blocks for fingerprint in block))
