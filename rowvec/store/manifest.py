"""A run's manifest: what the run wrote, and the manifest before it, so that a table can be restored from the store."""

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

# To the microsecond and in UTC, so that names are in the order of time even if a database and its numbers were lost.
_TIME = "%Y%m%dT%H%M%S.%fZ"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NOTED = re.compile(r"-([0-9a-f]{12})\.json$")


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalEntry:
    """A reference to the rows of the vector table that a manifest describes; see ``rowvec.ledger.journal``."""

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
    """The manifest before this one; None if this one holds every row of the table."""
    journal: JournalEntry
    """The rows that changed since the manifest before, or all rows."""
    artifacts: tuple[Artifact, ...]
    """The artifacts written since the manifest before, or all that are kept."""
    runs: tuple[RunRecord, ...]
    """The runs that ended since the manifest before, or all runs of the table's vectors; its own run is included."""
    counts: dict[str, int]
    """Counts by name, such as ``new`` and ``deleted``; ``rows`` is the number of rows in the table."""
    checksum: str
    """The checksum of all keys and fingerprints in the table after the merge."""
    created_at: AwareDatetime


_MANIFEST = TypeAdapter(Manifest)


def manifests_of(pipeline_name: str) -> str:
    """The prefix of a pipeline's manifests; their names are in the order of time."""
    return f"manifests/{pipeline_name}/"


def write_manifest(store: Store, manifest: Manifest, folder: Path) -> tuple[str, str]:
    """Put a manifest into the store; returns its name and its sha256. ``folder`` is for a temporary file.

    Writing the same manifest twice is not an error: its name holds part of its checksum.
    """
    # Equal manifests must give equal bytes: the fields have a fixed order, and the counts get one here.
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

    Raises ``ArtifactCorrupt`` if it is missing, does not agree with ``sha256``, or is not a manifest.
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
        raise ArtifactCorrupt(f"{store.location(name)} is not a manifest of rowvec: {where}: {first['msg']}") from None
    for held in (manifest.journal, *manifest.artifacts):
        # A name outside the store, or an impossible checksum, is found here and not in the middle of a restore.
        if not (_SHA256.fullmatch(held.sha256) and checked_name(held.name)):
            raise ArtifactCorrupt(
                f"{store.location(name)} is not a manifest of rowvec: {held.sha256!r} is not a sha256"
            )
    return manifest


@dataclass(frozen=True, slots=True)
class Link:
    """A manifest in the store."""

    name: str
    sha256: str
    manifest: Manifest


def read_chain(store: Store, pipeline_name: str, newest: str | None = None) -> list[Link]:
    """The manifests that together describe every row: from one that holds all rows to ``newest``, or to the last.

    Empty if the store has no manifest of the pipeline. Raises ``ArtifactCorrupt`` if one is missing or corrupt.
    """
    name = newest or max(store.names(manifests_of(pipeline_name)), default=None)
    chain: list[Link] = []
    while name is not None:
        chain.append(read_link(store, name))
        name = chain[-1].manifest.previous
    return chain[::-1]


def read_link(store: Store, name: str) -> Link:
    """One manifest by its name. Raises ``ArtifactCorrupt`` if it is missing or corrupt."""
    # The name holds part of the checksum of the content that it was given for.
    noted, found = _NOTED.search(name), store.checksum(name)
    if noted is None or found is None or not found.startswith(noted[1]):
        raise ArtifactCorrupt(f"{store.location(name)} is missing, or is not the manifest that its name states")
    return Link(name, found, read_manifest(store, name, found))
