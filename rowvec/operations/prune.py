"""Retention: which artifacts, images, journal entries and manifests nobody needs, and how small ones become large."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
from psycopg import sql

from rowvec.errors import ArtifactCorrupt, UsageError
from rowvec.images.content import KnownImage
from rowvec.ledger import pipelines, reuse, runs
from rowvec.ledger.journal import FACTS, Closing, copy_entry, record, replay
from rowvec.ledger.pipelines import PipelineId
from rowvec.ledger.runs import Run, running
from rowvec.ledger.workdir import spool
from rowvec.operations.prune_images import forget_images, unneeded_images
from rowvec.pipeline import Pipeline
from rowvec.pipeline.references import resolve
from rowvec.postgres.columns import PgColumn
from rowvec.postgres.connection import Connection, open_target
from rowvec.postgres.migrations import install
from rowvec.postgres.queries import query
from rowvec.postgres.vector_table import VectorTable, stored_table
from rowvec.runtime.home import home
from rowvec.store import artifact as artifacts
from rowvec.store.artifact import Artifact, read_artifact
from rowvec.store.manifest import Link, read_chain, read_link
from rowvec.store.open import open_store
from rowvec.store.protocol import Store
from rowvec.sync import binarize
from rowvec.sync.merge import totals
from rowvec.vectors.fingerprint import Identity

_NEEDED = frozenset({"target", "artifacts"})
_LISTED = 100
_SMALL_BYTES = 32 << 20
_LARGE_BYTES = 256 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """What was let go of, or would be."""

    applied: bool
    artifacts: int
    journal_entries: int
    manifests: int
    bytes: int
    """Of the artifacts."""
    images: int
    """That no row shows any more."""
    image_bytes: int
    kept_artifacts: int
    compacted: int
    """Small artifacts that were written into fewer large ones; they can go once the runs that name them are old."""
    names: tuple[str, ...]
    """Up to 100 of the objects."""

    def as_json(self) -> dict[str, Any]:
        """As one JSON object."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ledger:
    """Where a pipeline's things are recorded and kept."""

    connection: Connection
    store: Store
    pipeline_id: PipelineId
    table: VectorTable
    pipeline: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Unneeded:
    artifacts: list[tuple[int, str, int]]
    """Id, name and bytes."""
    manifests: list[tuple[int, str, str]]
    """Run, name, and the journal entry; an entry that a kept manifest names too is ''."""


def prune(pipeline: Pipeline, older_than: timedelta, *, apply: bool = False, compact: bool = False) -> Pruned:
    """Let go of what is older and not needed; without ``apply`` only tell.

    Kept is whatever the vector table needs, whatever a restore to a run of that age or to the newest one needs, and
    every artifact and image younger than that. With ``compact``, small artifacts are written into large ones first.
    Objects that the ledger does not know are left alone: they may be another database's.
    """
    if compact and not apply:
        raise UsageError("--compact writes artifacts: give --apply with it, or leave it out")
    with _opened(pipeline) as held:
        identity = pipelines.identity_of(held.connection, held.pipeline_id)
        if not apply:
            found = _unneeded(held, older_than)
            images = unneeded_images(held.connection, pipeline.name, identity, older_than)
            return _told(held, found, _old_manifests(held, older_than), images, applied=False, compacted=0)
    with running(pipeline, "prune", needed=_NEEDED, identity=identity) as run, _opened(pipeline) as held:
        compacted = _compact(held, run, identity) if compact else 0
        found = _unneeded(held, older_than)
        for owner, name, _ in found:
            # First the object: a kill in between leaves an entry that the next prune finds again, not a lost object.
            held.store.delete(name)
            reuse.forget_artifact(held.connection, owner, name)
        images = unneeded_images(held.connection, pipeline.name, identity, older_than)
        forget_images(held.connection, held.store, pipeline.name, images)
        _close(held, run, identity, anew=compacted > 0 or any(owner == held.pipeline_id for owner, _, _ in found))
        old = _old_manifests(held, older_than)
        for run_id, names in old:
            for name in names:
                held.store.delete(name)
            held.connection.execute(query("retention", "forget_manifest"), {"run_id": run_id})
        return _told(held, found, old, images, applied=True, compacted=compacted)


@contextmanager
def _opened(pipeline: Pipeline) -> Generator[_Ledger]:
    resolved = resolve(pipeline, _NEEDED)
    with open_target(resolved, "rowvec prune") as connection:
        install(connection)
        yield _Ledger(
            connection=connection,
            store=open_store(resolved.artifacts),
            pipeline_id=pipelines.find(connection, pipeline),
            table=stored_table(connection, resolved),
            pipeline=pipeline.name,
        )


def _kept(held: _Ledger, age: timedelta) -> tuple[str | None, dict[str, Link]]:
    """The oldest run that is to stay restorable, and the manifests of all of them with those that they go on from."""
    values = {"pipeline_id": held.pipeline_id, "age": age}
    links: dict[str, Link] = {}
    oldest = None
    for (oldest,) in held.connection.execute(query("retention", "kept_manifests"), values).fetchall():
        name = oldest
        while name is not None and name not in links:
            links[name] = read_link(held.store, name)
            name = links[name].manifest.previous
    return oldest, links


def _unneeded(held: _Ledger, age: timedelta) -> list[tuple[PipelineId, str, int]]:
    """Generation, name and bytes of the artifacts that nothing needs."""
    (oldest, links), connection = _kept(held, age), held.connection
    connection.execute(query("retention", "needed", table=held.table.identifier))
    with tempfile.TemporaryDirectory(dir=home()) as folder:
        # What the table held after the oldest run, and what each later one put into it: more it has not had since.
        before = read_chain(held.store, held.pipeline, oldest) if oldest else []
        if before:
            replay(connection, held.store, before, Path(folder))
            connection.execute(query("retention", "need_state"))
        for name in links.keys() - {link.name for link in before}:
            link = links[name]
            layout = link.manifest.layout
            plain = [PgColumn(f"c{i}", "text") for i in range(len(layout.key) + len(layout.metadata))]
            columns = (sql.SQL("{} {}").format(sql.Identifier(c.name), c.type_sql) for c in (*plain, *FACTS))
            connection.execute(query("retention", "entry", columns=sql.SQL(", ").join(columns)))
            copy = query("retention", "copy_entry")
            copy_entry(connection, held.store, link.manifest.journal, copy, Path(folder))
            connection.execute(query("retention", "need_entry"))
            connection.execute(query("retention", "drop_entry"))
    connection.execute(query("retention", "analyze_needed"))
    kept = sorted({artifact.name for link in links.values() for artifact in link.manifest.artifacts})
    parts = {"pipeline_id": sql.Literal(held.pipeline_id), "age": sql.Literal(age), "kept": sql.Literal(kept)}
    return connection.execute(query("retention", "unneeded_artifacts", **parts)).fetchall()


def _old_manifests(held: _Ledger, age: timedelta) -> list[tuple[int, tuple[str, ...]]]:
    """Runs whose manifest no kept run goes back to: its name, and that of its entry where no kept one has the same."""
    _, links = _kept(held, age)
    entries = {link.manifest.journal.name for link in links.values()}
    values = {"pipeline_id": held.pipeline_id, "kept": list(links), "age": age}
    old: list[tuple[int, tuple[str, ...]]] = []
    for run_id, name in held.connection.execute(query("retention", "old_manifests"), values).fetchall():
        try:
            entry = read_link(held.store, name).manifest.journal.name
        except ArtifactCorrupt:
            old.append((run_id, (name,)))  # it is gone, or of no use: its entry cannot be known
            continue
        # The entry first: a manifest that is still there finds it again.
        old.append((run_id, (name,) if entry in entries else (entry, name)))
    return old


def _compact(held: _Ledger, run: Run, identity: Identity) -> int:
    """Write what small artifacts hold into large ones; returns how many small ones have nothing left to hold."""
    values = {"pipeline_id": held.pipeline_id, "smaller_than": _SMALL_BYTES}
    rows = held.connection.execute(query("retention", "small_artifacts"), values).fetchall()
    small = [(i, Artifact(name=name, sha256=sha256, rows=n, bytes=size)) for i, name, sha256, n, size in rows]
    done = 0
    for batch, group in enumerate(_groups(small)):
        if len(group) > 1:
            _write_together(held, run, identity, batch, group)
            done += len(group)
    return done


def _groups(small: list[tuple[int, Artifact]]) -> Iterator[list[tuple[int, Artifact]]]:
    group: list[tuple[int, Artifact]] = []
    for one in small:
        if group and sum(artifact.bytes for _, artifact in group) + one[1].bytes > _LARGE_BYTES:
            yield group
            group = []
        group.append(one)
    yield group


def _write_together(held: _Ledger, run: Run, identity: Identity, batch: int, group: list[tuple[int, Artifact]]) -> None:
    """One large artifact, without keys and metadata, which the journal has; then the ledger looks there."""
    table, folder = replace(held.table, key=(), metadata=()), spool(held.connection, run.run_id)
    schema = pa.schema([f for f in table.artifact_schema if f.name != "embedding_bits"])
    spooled, bits, parquet = folder / "embedded.arrow", folder / "bits.arrow", folder / "artifact.parquet"
    with pa.OSFile(str(spooled), "wb") as sink, pa.ipc.new_file(sink, schema) as out:
        for artifact_id, artifact in group:
            local = folder / "small.parquet"
            held.store.get(artifact.name, local, artifact.sha256)
            values = {"artifact_id": artifact_id}
            wanted = {row[0] for row in held.connection.execute(query("retention", "held_by"), values)}
            for block in read_artifact(local, table.layout):
                kept = [f in wanted and not wanted.discard(f) for f in block.column("fingerprint").to_pylist()]
                if any(kept):
                    out.write_batch(block.filter(pa.array(kept)).select(schema.names).cast(schema))
    if table.bits:
        binarize.write_bits(spooled, bits, table.dimensions, table.precision)
    written = artifacts.write_artifact(spooled, bits if table.bits else None, parquet, table, held.pipeline, identity)
    artifacts.upload(held.store, parquet, written)
    with held.connection.transaction():
        values = {"pipeline_id": held.pipeline_id, "run_id": run.run_id, "batch": batch, **asdict(written)}
        row = held.connection.execute(query("retention", "add_artifact"), values).fetchone()
        small = [artifact_id for artifact_id, _ in group]
        pointed = {"artifact_id": row and row[0], "pipeline_id": held.pipeline_id, "small": small}
        held.connection.execute(query("retention", "repoint"), pointed)
    shutil.rmtree(folder)


def _close(held: _Ledger, run: Run, identity: Identity, *, anew: bool) -> None:
    """End the run: with a manifest of every row and of what is left, where something is gone or has moved."""
    recorded = None
    if anew:
        rows, checksum = totals(held.connection, held.table, held.table.identifier)
        closing = Closing(
            run_id=run.run_id,
            pipeline_id=held.pipeline_id,
            pipeline=held.pipeline,
            table=held.table,
            identity=identity,
            counts={"rows": rows},
            checksum=checksum,
            embedded=0,
            tokens=0,
            cost_usd=0.0,
        )
        recorded = record(held.connection, held.store, closing, spool(held.connection, run.run_id), whole=True)
        shutil.rmtree(spool(held.connection, run.run_id))
    with held.connection.transaction():
        if recorded:
            recorded.tell(held.connection)
        runs.finish_run(
            held.connection,
            run.run_id,
            "succeeded",
            manifest=recorded and recorded.name,
            manifest_sha256=recorded and recorded.sha256,
        )


def _told(
    held: _Ledger,
    found: list[tuple[PipelineId, str, int]],
    old: list[tuple[int, tuple[str, ...]]],
    images: list[KnownImage],
    *,
    applied: bool,
    compacted: int,
) -> Pruned:
    values = {"pipeline_id": held.pipeline_id}
    (left,) = held.connection.execute(query("retention", "count_artifacts"), values).fetchone() or (0,)
    names = [*(name for _, name, _ in found), *(name for _, written in old for name in written)]
    names += [image.object_name(held.pipeline) for image in images]
    return Pruned(
        applied=applied,
        artifacts=len(found),
        journal_entries=sum(len(written) - 1 for _, written in old),
        manifests=len(old),
        bytes=sum(size for _, _, size in found),
        images=len(images),
        image_bytes=sum(image.bytes for image in images),
        kept_artifacts=left if applied else left - sum(owner == held.pipeline_id for owner, _, _ in found),
        compacted=compacted,
        names=tuple(names[:_LISTED]),
    )
