"""Prune: deletes artifacts, images, journal entries and manifests that are not needed, and merges small artifacts."""

from __future__ import annotations

import shutil
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta

import pyarrow as pa
from psycopg import sql

from rowvec.errors import ArtifactCorrupt, UsageError
from rowvec.images.content import KnownImage
from rowvec.ledger import marked_store
from rowvec.ledger.behind import refuse_if_behind
from rowvec.ledger.generations import list_generations
from rowvec.ledger.held_lease import Ownership
from rowvec.ledger.journal import FACTS, Closing, copy_entry, record, replay
from rowvec.ledger.known_manifests import known_manifests
from rowvec.ledger.lease import owned
from rowvec.ledger.owned_store import OwnedStore
from rowvec.ledger.pipelines import PipelineId, find, identity_of
from rowvec.ledger.reuse import forget_artifact
from rowvec.ledger.runs import Ending, Run, finish_run, forget_runs, running
from rowvec.ledger.workdir import make_workdir
from rowvec.operations.prune_images import forget_images, unneeded_images
from rowvec.operations.prune_shared import Shared, shared_objects
from rowvec.operations.pruned import Pruned
from rowvec.pipeline import Pipeline
from rowvec.pipeline.references import resolve
from rowvec.postgres.columns import PgColumn
from rowvec.postgres.connection import Connection, open_target
from rowvec.postgres.migrations import install
from rowvec.postgres.queries import query
from rowvec.postgres.vector_table import VectorTable, stored_table
from rowvec.runtime.home import home, temporary_folder
from rowvec.stages.binarize import write_bits
from rowvec.stages.totals import totals
from rowvec.store.artifact import Artifact, read_artifact, upload, write_artifact
from rowvec.store.manifest import Link, read_link
from rowvec.store.open import open_store
from rowvec.store.protocol import Store
from rowvec.vectors.fingerprint import Identity

_NEEDED = frozenset({"target", "artifacts"})
_LISTED = 100
_SMALL_BYTES = 32 << 20
_LARGE_BYTES = 256 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneWork:
    """The pipeline that is pruned, with its ledger and its store."""

    connection: Connection
    store: Store
    pipeline_id: PipelineId
    table: VectorTable
    pipeline: str
    known: dict[str, str]
    """The checksums of manifests in the ledger, by name."""
    links: dict[str, Link] = field(default_factory=dict[str, Link])
    """The manifests that were read so far, by name: manifests never change, so each is read once."""

    def link(self, name: str) -> Link:
        """A manifest by its name. Raises ``ArtifactCorrupt`` if it is missing or corrupt."""
        if name not in self.links:
            self.links[name] = read_link(self.store, name, self.known)
        return self.links[name]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kept:
    """The manifests that stay: those of the restorable runs, and the ones before them that a restore needs."""

    oldest: str | None
    """The manifest of the oldest run that stays restorable; None if no run has a manifest."""
    links: dict[str, Link]
    """By name."""

    def chain_to_oldest(self) -> list[Link]:
        """The manifests that a restore to the oldest run reads, oldest first."""
        chain: list[Link] = []
        name = self.oldest
        while name is not None:
            chain.append(self.links[name])
            name = chain[-1].manifest.previous
        return chain[::-1]


def prune(pipeline: Pipeline, older_than: timedelta, *, apply: bool = False, compact: bool = False) -> Pruned:
    """Delete what is older than ``older_than`` and not needed; without ``apply`` only report what would be deleted.

    These are kept: what the vector table needs; what a restore needs, to the newest run or to any run younger than
    ``older_than``; and every artifact and image that is younger. With ``compact``, small artifacts are merged into
    large ones first. Objects that the ledger does not know are left alone, and everything that the manifests of another
    ledger name, and all images if there is another ledger: they may belong to another database.

    Raises ``UsageError`` if ``compact`` is given without ``apply``, or if the pipeline has never run;
    ``PipelineBusy`` if another run holds the pipeline; ``ArtifactCorrupt`` if a manifest or a journal entry that must
    be kept is missing or corrupt; ``LedgerBehind`` or ``StoreBehind`` if database or store was set back.
    """
    if compact and not apply:
        raise UsageError("--compact writes artifacts: give --apply with it, or leave it out")
    with opened(pipeline) as work:
        refuse_if_behind(work.connection, work.store, work.pipeline)
        identity = identity_of(work.connection, work.pipeline_id)
        if not apply:
            forgotten = _forgotten(work)
            kept, shared = _kept(work, older_than), _shared(work)
            found = _unneeded(work, kept, shared, older_than)
            images = _unneeded_images(work, shared, identity, older_than)
            old = _old_manifests(work, kept, shared, older_than)
            note = shared.standing.sentence() or forgotten.sentence()
            return _pruned(work, found, old, images, note, applied=False, compacted=0)
    with running(pipeline, "prune", needed=_NEEDED, identity=identity) as run, opened(pipeline, run) as work:
        refuse_if_behind(work.connection, work.store, work.pipeline)
        marked_store.take_in_folders(work.connection, work.store, work.pipeline_id, run.run_id, _forgotten(work))
        compacted = _compact(work, run, identity) if compact else 0
        shared = _shared(work)
        found = _unneeded(work, _kept(work, older_than), shared, older_than)
        for owner, name, _ in found:
            # The object goes first: after a kill in between, the next prune finds the ledger's entry again. The other
            # order would leave an object that no prune finds.
            work.store.delete(name)
            forget_artifact(work.connection, owner, name)
        images = _unneeded_images(work, shared, identity, older_than)
        forget_images(work.connection, work.store, pipeline.name, images)
        close_run(work, run, identity, whole=compacted > 0 or any(owner == work.pipeline_id for owner, _, _ in found))
        # It may name a manifest of a killed run, which goes now; a mark that the ledger does not know would stop all.
        marked_store.renew_mark(work.connection, work.store, work.pipeline)
        # Find the kept manifests again: the newest one may be the one that was written just now.
        old = _old_manifests(work, _kept(work, older_than), shared, older_than)
        for run_id, names in old:
            for name in names:
                work.store.delete(name)
            work.connection.execute(query("prune", "forget_manifest"), {"run_id": run_id})
        old += _delete_superseded(work, older_than, shared)
        note = shared.standing.sentence()
        return _pruned(work, found, old, images, note, applied=True, compacted=compacted)


def _shared(work: PruneWork) -> Shared:
    """What other ledgers need of the store."""
    standing = marked_store.standing(work.connection, work.store, work.pipeline)
    return shared_objects(standing, work.store, work.pipeline, work.link)


def _forgotten(work: PruneWork) -> marked_store.InFolders:
    """What generations have left that the ledger has forgotten, besides those that are being built."""
    family = marked_store.family_of(work.pipeline)
    if marked_store.standing(work.connection, work.store, work.pipeline).others:
        return marked_store.InFolders(family, (), ())
    building = {g.name for g in list_generations(work.connection, family) if g.state == "building"}
    folders = marked_store.generation_folders(work.store, family) - building
    return marked_store.forgotten_in(work.connection, work.store, sorted(folders))


def _unneeded_images(work: PruneWork, shared: Shared, identity: Identity, age: timedelta) -> list[KnownImage]:
    # Which images another database shows is known only to that database.
    return [] if shared.has_others else unneeded_images(work.connection, work.pipeline, identity, age)


def _delete_superseded(work: PruneWork, age: timedelta, shared: Shared) -> list[tuple[int, tuple[str, ...]]]:
    """Delete the old manifests of killed runs, and those that were given up, with their journal entries."""
    family = marked_store.family_of(work.pipeline)
    ((since,),) = work.connection.execute(query("prune", "since"), {"age": age}).fetchall()
    kept = _kept(work, age).links
    entries = {link.manifest.journal.name for link in kept.values()} | shared.entries
    done: list[tuple[int, tuple[str, ...]]] = []
    for link in _superseded(work, family):
        if link.name in shared.manifests | kept.keys() or link.manifest.created_at > since:
            continue
        entry = link.manifest.journal.name
        names = (link.name,) if entry in entries else (entry, link.name)
        for name in names:
            work.store.delete(name)
        marked_store.forget_superseded(work.connection, family, [link.name])
        done.append((link.manifest.run_id, names))
    return done


def _superseded(work: PruneWork, family: str) -> list[Link]:
    """The superseded manifests that are in the store, by run: the later ones follow the earlier ones."""
    found: list[Link] = []
    for name in marked_store.superseded(work.connection, family):
        try:
            found.append(work.link(name))
        except ArtifactCorrupt:
            # It was never written, or it cannot say what it names.
            work.store.delete(name)
            marked_store.forget_superseded(work.connection, family, [name])
    return sorted(found, key=lambda link: link.manifest.run_id)


@contextmanager
def opened(pipeline: Pipeline, run: Run | None = None) -> Generator[PruneWork]:
    """The pipeline with its ledger and its store. ``run``: without one, nothing is changed."""
    resolved = resolve(pipeline, _NEEDED)
    with open_target(resolved, "rowvec prune") as connection, ExitStack() as held:
        install(connection)
        store = open_store(resolved.artifacts)
        if run is not None:
            held.enter_context(owned(connection, run.lease))
            store = OwnedStore(store, Ownership(run.lease, resolved.target.url))
        yield PruneWork(
            connection=connection,
            store=store,
            pipeline_id=find(connection, pipeline),
            table=stored_table(connection, resolved),
            pipeline=pipeline.name,
            known=known_manifests(connection, pipeline.name).checksums,
        )


def _kept(work: PruneWork, age: timedelta) -> _Kept:
    values = {"pipeline_id": work.pipeline_id, "age": age}
    links: dict[str, Link] = {}
    oldest = None
    for (oldest,) in work.connection.execute(query("prune", "kept_manifests"), values).fetchall():
        name = oldest
        while name is not None and name not in links:
            links[name] = work.link(name)
            name = links[name].manifest.previous
    return _Kept(oldest=oldest, links=links)


def _unneeded(work: PruneWork, kept: _Kept, shared: Shared, age: timedelta) -> list[tuple[PipelineId, str, int]]:
    """Generation, name and bytes of the artifacts that nothing needs."""
    connection = work.connection
    connection.execute(query("prune", "needed", table=work.table.identifier))
    with temporary_folder(home()) as folder:
        # The table's rows after the oldest restorable run, and the rows that each later run wrote: together these are
        # all rows that the table has had since.
        before = kept.chain_to_oldest()
        if before:
            replay(connection, work.store, before, folder)
            connection.execute(query("prune", "need_state"))
        for name in kept.links.keys() - {link.name for link in before}:
            link = kept.links[name]
            layout = link.manifest.layout
            plain = [PgColumn(f"c{i}", "text") for i in range(len(layout.key) + len(layout.metadata))]
            columns = (sql.SQL("{} {}").format(sql.Identifier(c.name), c.type_sql) for c in (*plain, *FACTS))
            connection.execute(query("prune", "entry", columns=sql.SQL(", ").join(columns)))
            copy = query("prune", "copy_entry")
            copy_entry(connection, work.store, link.manifest.journal, copy, folder)
            connection.execute(query("prune", "need_entry"))
            connection.execute(query("prune", "drop_entry"))
    connection.execute(query("prune", "analyze_needed"))
    names = sorted({artifact.name for link in kept.links.values() for artifact in link.manifest.artifacts})
    parts = {"pipeline_id": sql.Literal(work.pipeline_id), "age": sql.Literal(age), "kept": sql.Literal(names)}
    unneeded = connection.execute(query("prune", "unneeded_artifacts", **parts)).fetchall()
    return [(owner, name, size) for owner, name, size in unneeded if name not in shared.artifacts]


def _old_manifests(work: PruneWork, kept: _Kept, shared: Shared, age: timedelta) -> list[tuple[int, tuple[str, ...]]]:
    """The runs whose manifest no restore needs, each with the names of the objects to delete.

    The objects are the manifest and its journal entry; the entry is left out if a kept manifest names the same one.
    """
    entries = {link.manifest.journal.name for link in kept.links.values()} | shared.entries
    values = {"pipeline_id": work.pipeline_id, "kept": list(kept.links), "age": age}
    old: list[tuple[int, tuple[str, ...]]] = []
    for run_id, name in work.connection.execute(query("prune", "old_manifests"), values).fetchall():
        if name in shared.manifests:
            continue
        try:
            entry = work.link(name).manifest.journal.name
        except ArtifactCorrupt:
            old.append((run_id, (name,)))  # the manifest is missing or corrupt, so the name of its entry is not known
            continue
        # The entry goes first: after a kill in between, the next prune finds it again through the manifest.
        old.append((run_id, (name,) if entry in entries else (entry, name)))
    return old


def _compact(work: PruneWork, run: Run, identity: Identity) -> int:
    """Merge small artifacts into large ones; returns how many small ones no entry of the ledger points to any more."""
    values = {"pipeline_id": work.pipeline_id, "smaller_than": _SMALL_BYTES}
    rows = work.connection.execute(query("prune", "small_artifacts"), values).fetchall()
    small = [(i, Artifact(name=name, sha256=sha256, rows=n, bytes=size)) for i, name, sha256, n, size in rows]
    done = 0
    for batch, group in enumerate(_groups(small)):
        if len(group) > 1:
            _merge(work, run, identity, batch, group)
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


def _merge(work: PruneWork, run: Run, identity: Identity, batch: int, group: list[tuple[int, Artifact]]) -> None:
    """Write one large artifact and point the ledger to it. It has no keys and no metadata: the journal has these."""
    table, folder = replace(work.table, key=(), metadata=()), make_workdir(work.connection, run.run_id)
    schema = pa.schema([f for f in table.artifact_schema if f.name != "embedding_bits"])
    embedded, bits, parquet = folder / "embedded.arrow", folder / "bits.arrow", folder / "artifact.parquet"
    with pa.OSFile(str(embedded), "wb") as sink, pa.ipc.new_file(sink, schema) as out:
        for artifact_id, artifact in group:
            local = folder / "small.parquet"
            work.store.get(artifact.name, local, artifact.sha256, at_most=artifact.bytes)
            values = {"artifact_id": artifact_id}
            wanted = {row[0] for row in work.connection.execute(query("prune", "held_by"), values)}
            for block in read_artifact(local, table.layout):
                kept = [f in wanted and not wanted.discard(f) for f in block.column("fingerprint").to_pylist()]
                if any(kept):
                    out.write_batch(block.filter(pa.array(kept)).select(schema.names).cast(schema))
    if table.bits:
        write_bits(embedded, bits, table.dimensions, table.bits, table.precision)
    written = write_artifact(embedded, bits if table.bits else None, parquet, table, work.pipeline, identity)
    upload(work.store, parquet, written)
    with work.connection.transaction():
        values = {"pipeline_id": work.pipeline_id, "run_id": run.run_id, "batch": batch, **asdict(written)}
        row = work.connection.execute(query("prune", "add_artifact"), values).fetchone()
        small = [artifact_id for artifact_id, _ in group]
        pointed = {"artifact_id": row and row[0], "pipeline_id": work.pipeline_id, "small": small}
        work.connection.execute(query("prune", "repoint"), pointed)
    shutil.rmtree(folder)


def close_run(work: PruneWork, run: Run, identity: Identity, *, whole: bool) -> None:
    """End the run. With ``whole``, because an artifact is gone or has moved, write a manifest that names every row."""
    recorded = None
    if whole:
        rows, checksum = totals(work.connection, work.table, work.table.identifier)
        closing = Closing(
            run_id=run.run_id,
            pipeline_id=work.pipeline_id,
            pipeline=work.pipeline,
            table=work.table,
            identity=identity,
            counts={"rows": rows},
            checksum=checksum,
            embedded=0,
            tokens=0,
            cost_usd=0.0,
        )
        recorded = record(work.connection, work.store, closing, make_workdir(work.connection, run.run_id), whole=True)
        shutil.rmtree(make_workdir(work.connection, run.run_id))
    with work.connection.transaction():
        if recorded:
            recorded.confirm(work.connection)
        ending = Ending(
            state="succeeded",
            manifest=recorded and recorded.name,
            manifest_sha256=recorded and recorded.sha256,
        )
        finish_run(work.connection, run.run_id, ending)


def _pruned(
    work: PruneWork,
    found: list[tuple[PipelineId, str, int]],
    old: list[tuple[int, tuple[str, ...]]],
    images: list[KnownImage],
    note: str,
    *,
    applied: bool,
    compacted: int,
) -> Pruned:
    values = {"pipeline_id": work.pipeline_id}
    (left,) = work.connection.execute(query("prune", "count_artifacts"), values).fetchone() or (0,)
    names = [*(name for _, name, _ in found), *(name for _, written in old for name in written)]
    names += [image.object_name(work.pipeline) for image in images]
    return Pruned(
        applied=applied,
        artifacts=len(found),
        journal_entries=sum(len(written) - 1 for _, written in old),
        manifests=len(old),
        bytes=sum(size for _, _, size in found),
        images=len(images),
        image_bytes=sum(image.bytes for image in images),
        kept_artifacts=left if applied else left - sum(owner == work.pipeline_id for owner, _, _ in found),
        runs=forget_runs(work.connection, work.pipeline_id, work.table.identifier, apply=applied),
        compacted=compacted,
        note=note,
        names=tuple(names[:_LISTED]),
    )
