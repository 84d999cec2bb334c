"""A run's manifest: what it wrote and what was there before, so that a table can be restored from the store alone."""

from __future__ import annotations

import hashlib
import re
import tempfile
from dataclasses import dataclass, replace
from datetime import UTC
from pathlib import Path
from typing import Annotated, Literal
from uuid import uuid4

from pydantic import AwareDatetime, Field, NonNegativeInt, TypeAdapter, ValidationError

from rowvec.errors import ArtifactCorrupt
from rowvec.store.artifact import Artifact
from rowvec.store.protocol import Store, checked_name
from rowvec.vectors.fingerprint import Identity

# To the microsecond and in UTC, so that names are in the order of time even where a database and its numbers were lost.
_TIME = "%Y%m%dT%H%M%S.%fZ"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NOTED = re.compile(r"-([0-9a-f]{12})\.json$")


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalEntry:
    """A reference to the rows of the vector table that a manifest tells of; see ``rowvec.journal``."""

    name: str
    """Its name in the store, ``journal/<pipeline>/<2 hex digits>/<sha256>.csv.zst``."""
    sha256: str
    """64 hex digits."""
    rows: NonNegativeInt
    bytes: NonNegativeInt


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """A run as the ledger knows it, for the ledger of a database that is restored."""

    run_id: NonNegativeInt
    cause: str
    state: str
    started_at: AwareDatetime
    finished_at: AwareDatetime | None
    embedded: int
    tokens: int
    cost_usd: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The columns that a journal entry's rows begin with: (name, Postgres type) each."""

    key: tuple[tuple[str, str], ...]
    metadata: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What one run wrote, and what the table held after it."""

    format: Literal["rowvec.manifest/2"] = "rowvec.manifest/2"
    run_id: NonNegativeInt
    pipeline: Annotated[str, Field(min_length=1)]
    table: str
    """``schema.table``."""
    identity: Identity
    layout: Layout
    previous: str | None
    """The manifest that this one goes on from; None where it holds every row of the table."""
    journal: JournalEntry
    """The rows that changed since then, or all of them."""
    artifacts: tuple[Artifact, ...]
    """Those that were written since then, or all that are kept."""
    runs: tuple[RunRecord, ...]
    """Those that ended since then, or all that the table's vectors come from; the manifest's own run is one."""
    counts: dict[str, int]
    """By name, such as ``new`` and ``deleted``; ``rows`` is what the table held."""
    checksum: str
    """Of all keys and fingerprints in the table after the merge."""
    created_at: AwareDatetime


_MANIFEST = TypeAdapter(Manifest)


def manifests_of(pipeline_name: str) -> str:
    """The prefix of a pipeline's manifests; by name they are in the order of time."""
    return f"manifests/{pipeline_name}/"


def write_manifest(store: Store, manifest: Manifest, folder: Path) -> tuple[str, str]:
    """Put a manifest into the store; returns its name and its sha256. ``folder`` holds it on its way.

    The same manifest again is no error: its name holds part of its checksum.
    """
    # Equal manifests, equal bytes: the fields have their order, and so must the counts.
    manifest = replace(manifest, counts=dict(sorted(manifest.counts.items())))
    content = _MANIFEST.dump_json(manifest, indent=1) + b"\n"
    sha256 = hashlib.sha256(content).hexdigest()
    at = manifest.created_at.astimezone(UTC).strftime(_TIME)
    name = f"{manifests_of(manifest.pipeline)}{at}-{manifest.run_id}-{sha256[:12]}.json"
    local = folder / f"{uuid4().hex}.json"
    try:
        local.write_bytes(content)
        store.put(name, local, sha256)
    finally:
        local.unlink(missing_ok=True)
    return name, sha256


def read_manifest(store: Store, name: str, sha256: str) -> Manifest:
    """A manifest from the store.

    Raises ``ArtifactCorrupt`` where it is missing, does not agree with ``sha256``, or is no manifest.
    """
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder) / "manifest.json"
        store.get(name, local, sha256)
        content = local.read_bytes()
    try:
        manifest = _MANIFEST.validate_json(content)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "its JSON"
        raise ArtifactCorrupt(f"{store.location(name)} is no manifest of rowvec: {where}: {first['msg']}") from None
    for held in (manifest.journal, *manifest.artifacts):
        # A name that leaves the store, or a checksum nothing can agree with, is found now and not half-way through.
        if not (_SHA256.fullmatch(held.sha256) and checked_name(held.name)):
            raise ArtifactCorrupt(f"{store.location(name)} is no manifest of rowvec: {held.sha256!r} is no sha256")
    return manifest


@dataclass(frozen=True, slots=True)
class Link:
    """A manifest in the store."""

    name: str
    sha256: str
    manifest: Manifest


def read_chain(store: Store, pipeline_name: str, newest: str | None = None) -> list[Link]:
    """The manifests that together tell of every row: from one that holds them all to ``newest``, or to the last.

    Empty where the store has no manifest of the pipeline. Raises ``ArtifactCorrupt`` where one is missing or spoilt.
    """
    name = newest or max(store.names(manifests_of(pipeline_name)), default=None)
    chain: list[Link] = []
    while name is not None:
        chain.append(read_link(store, name))
        name = chain[-1].manifest.previous
    return chain[::-1]


def read_link(store: Store, name: str) -> Link:
    """One manifest by its name. Raises ``ArtifactCorrupt`` where it is missing or spoilt."""
    # What a name says of its content was true when it was given.
    noted, found = _NOTED.search(name), store.checksum(name)
    if noted is None or found is None or not found.startswith(noted[1]):
        raise ArtifactCorrupt(f"{store.location(name)} is missing, or not the manifest that its name says")
    return Link(name, found, read_manifest(store, name, found))
