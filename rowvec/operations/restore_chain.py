"""Which manifests a restore reads: the ledger says it, if it knows; else the store, which then is believed."""

from __future__ import annotations

from dataclasses import replace

from rowvec.errors import ArtifactCorrupt, StoreBehind, UsageError
from rowvec.ledger.known_manifests import KnownManifests, known_manifests
from rowvec.ledger.marked_store import family_of
from rowvec.pipeline import Pipeline
from rowvec.pipeline.embedders import TextEmbedder
from rowvec.pipeline.references import resolve
from rowvec.postgres.connection import open_target
from rowvec.runtime.figures import counted
from rowvec.stages.report import Check
from rowvec.store.heads import manifest_names, newest_manifest
from rowvec.store.manifest import Link, manifests_of, read_chain
from rowvec.store.marks import marked_ledgers, read_mark
from rowvec.store.open import open_store
from rowvec.store.protocol import Store

# The only parts whose references must resolve: after a disaster, a machine may lack the other variables and secrets.
NEEDED = frozenset({"target", "artifacts"})


def check_root(same: bool | None) -> list[Check]:
    """Say whether the restored rows have the root that the manifest certifies; nothing if there is none to compare."""
    if same is None:
        return []
    detail = "every key, fingerprint and vector is as the run of the manifest has certified it"
    if not same:
        detail = "keys, fingerprints and vectors do not have the root that the run of the manifest has certified; "
        detail += "the vector table was changed by hand before that run, or its artifacts since: run rowvec audit"
    return [Check(name="root", ok=same, detail=detail)]


def chain_of(pipeline: Pipeline, manifest: str | None) -> tuple[list[Link], str]:
    """The manifests to restore from, oldest first, up to ``manifest`` or to the newest; and how that one was found.

    The newest is the one that the ledger says, if it has one: the store may have later ones, of a time that was given
    up when the database was set back.
    """
    resolved = resolve(pipeline, NEEDED)
    store = open_store(resolved.artifacts)
    with open_target(resolved, "rowvec restore") as connection:
        known = known_manifests(connection, pipeline.name)
    stored = list(manifest_names(store, pipeline.name))
    if manifest is None and known.newest is None:
        _check_marks(store, pipeline.name, stored)
    if manifest is None and stored and known.newest is not None and store.checksum(known.newest) is None:
        raise _lost(store.location(known.newest), stored, known)
    newest = manifest or (known.newest if stored else None) or newest_manifest(store, pipeline.name)
    if newest is None:
        where = store.location(manifests_of(pipeline.name).removesuffix("/"))
        raise UsageError(f"there is no manifest of the pipeline {pipeline.name} in {where}; is artifacts.url right?")
    chain = read_chain(store, newest, known.checksums)
    last = chain[-1].manifest
    embedder = pipeline.embedder
    wanted = replace(
        last.identity,
        provider=embedder.kind,
        model=embedder.model,
        dimensions=embedder.dimensions,
        document_prefix=embedder.document_prefix if isinstance(embedder, TextEmbedder) else "",
    )
    wrote = chain[-1].name
    if last.identity != wanted:
        raise UsageError(
            f"the artifacts of {wrote} are of {last.identity}, and the pipeline {pipeline.name} asks for {wanted}; "
            "restore with the pipeline file they were made by"
        )
    if (key := tuple(name for name, _ in last.layout.key)) != pipeline.source.vector_key:
        raise UsageError(
            f"the rows of {wrote} have the key ({', '.join(key)}), and the pipeline asks for "
            f"({', '.join(pipeline.source.vector_key)}); restore with the pipeline file they were made by"
        )
    return chain, _found_by(stored, known, manifest)


def _lost(newest: str, stored: list[str], known: KnownManifests) -> StoreBehind:
    older = next((name for name in known.checksums if name in stored), None)
    way_out = f"the latest that the store has of this ledger is {older}" if older else "none of this ledger is there"
    return StoreBehind(
        f"{newest}, the last manifest that the ledger knows, is not in the store: it was restored to an earlier state, "
        f"or artifacts.url names another one; nothing was changed; name an older manifest with --manifest: {way_out}"
    )


def _check_marks(store: Store, pipeline_name: str, stored: list[str]) -> None:
    """Raise ``ArtifactCorrupt`` if a manifest is gone that a ledger has noted as its newest one."""
    family = family_of(pipeline_name)
    for ledger in sorted(marked_ledgers(store, family)):
        mark = read_mark(store, family, ledger)
        if mark and mark.manifest and mark.manifest not in stored and _is_of(mark.manifest, pipeline_name):
            raise ArtifactCorrupt(
                f"the newest manifest of the database {mark.database} is not in the store any more: {mark.manifest}; "
                "name an older one with --manifest"
            )


def _is_of(manifest: str, pipeline_name: str) -> bool:
    return manifest.startswith(manifests_of(pipeline_name))


def _found_by(stored: list[str], known: KnownManifests, manifest: str | None) -> str:
    if manifest is not None:
        return "it was named"
    if known.newest is None:
        return "no other manifest in the store follows it; the ledger has none, so the store alone was believed"
    later = known.unknown(stored)
    if not later:
        return "it is the ledger's last one"
    return (
        f"it is the ledger's last one; the store also has {counted(len(later), 'manifests')} that the ledger does not "
        "know, of another database or of a time before this one was set back, such as "
        f"{later[-1]}: restore with --manifest if you want that one"
    )
