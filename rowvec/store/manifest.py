"""A run's manifest: what the run wrote, and the manifest before it, so that a table can be restored from the store.

A process that can write to the store can write a manifest. So one is read into values of known form before anything is
done with it, and it is known by its whole checksum: by the one in its own name, which the next manifest repeats, and by
the one in the ledger, if the ledger has it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC
from pathlib import Path
from typing import Annotated, Literal
from uuid import uuid4

from pydantic import AwareDatetime, Field, TypeAdapter, ValidationError

from rowvec.errors import ArtifactCorrupt, StoreRefused
from rowvec.runtime.home import home, temporary_folder
from rowvec.store.artifact import Artifact
from rowvec.store.protocol import Store
from rowvec.vectors import sparse
from rowvec.vectors.fingerprint import Identity
from rowvec.vectors.hash_tree import Sha256, VectorType, chained

MOST_BYTES = 64 << 20
"""Of a manifest: about 200,000 artifacts."""

# Values in a manifest of that size; JSON that consists of brackets and commas would take gigabytes in memory.
_MOST_VALUES = 4_000_000
# To the microsecond and in UTC, for people who look at a listing; the chain decides which manifest is the newest.
_TIME = "%Y%m%dT%H%M%S.%fZ"
_NOTED = re.compile(
    r"manifests/[a-z][a-z0-9_-]{0,39}(?:\.[0-9]{1,9})?/[0-9]{8}T[0-9]{6}\.[0-9]{6}Z-[0-9]{1,10}-([0-9a-f]{12}|[0-9a-f]{64})\.json"
)
# The first manifests had no journal. None of them is read any more, but the first manifest after one names it.
_WITHOUT_JOURNAL = re.compile(r"manifests/[a-z][a-z0-9_-]{0,39}/[0-9]{12}-[0-9a-f]{12}\.json")
_REFERENCE = re.compile(
    r"(artifacts|journal)/[a-z][a-z0-9_-]{0,39}(?:\.[0-9]{1,9})?/([0-9a-f]{2})/([0-9a-f]{64})\.(.+)"
)
_WHOLE = 64
_MOST_NUMBER = 2**53
# Some embedders put 48 bits of a digest of their settings there.
_MOST_PREPROCESSING = (1 << 48) - 1
# See ``rowvec.pipeline.embedders.MOST_PREFIX``; a later version may allow longer ones.
_MOST_PREFIX = 10_000
_ENDINGS = {"artifacts": "parquet", "journal": "csv.zst"}
_LONGEST_COLUMN = 63

# The ledger holds counts and runs as numbers of these sizes.
_Count = Annotated[int, Field(ge=0, le=2**53)]
_RunNumber = Annotated[int, Field(ge=0, le=2_000_000_000)]
_Short = Annotated[str, Field(max_length=300, pattern=r"^[^\x00-\x1f\x7f]*$")]
_Name = Annotated[str, Field(max_length=300)]


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalEntry:
    """A reference to the rows of the vector table that a manifest describes; see ``rowvec.ledger.journal``."""

    name: _Name
    """Its name in the store, ``journal/<pipeline>/<2 hex digits>/<sha256>.csv.zst``."""
    sha256: str
    """64 hex digits."""
    rows: _Count
    bytes: _Count


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """A run as the ledger knows it, for the ledger of a database that is restored."""

    run_id: _RunNumber
    cause: _Short
    state: Literal["succeeded", "failed", "abandoned", "waiting", "lost"]
    started_at: AwareDatetime
    finished_at: AwareDatetime | None
    embedded: Annotated[int, Field(ge=0, le=2**31 - 1)]
    tokens: _Count
    cost_usd: Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The columns that a journal entry's rows begin with: (name, Postgres type) each."""

    key: Annotated[tuple[tuple[_Name, _Name], ...], Field(min_length=1, max_length=32)]
    metadata: Annotated[tuple[tuple[_Name, _Name], ...], Field(max_length=1600)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """The root of the hash tree over all rows that a run has left; see ``rowvec.vectors.hash_tree``."""

    run_id: _RunNumber
    rows: _Count
    vector: VectorType
    """The type of the vectors, whose form on the wire is hashed."""
    root: Sha256
    before: Sha256 | None
    """``chain`` of the certificate before; None if it is the table's first."""
    chain: Sha256
    """Over ``before``, the run, the rows and the root."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What one run wrote, and what the table held after it."""

    format: Literal["rowvec.manifest/2"] = "rowvec.manifest/2"
    run_id: _RunNumber
    pipeline: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,39}(?:\.[0-9]{1,9})?$")]
    table: Annotated[str, Field(max_length=300)]
    """``schema.table``."""
    identity: Identity
    layout: Layout
    previous: _Name | None
    """The manifest before this one; None if this one holds every row of the table."""
    follows: Annotated[tuple[_Name, ...], Field(max_length=1000)] | None = None
    """The manifests that this one replaces as the newest, besides ``previous``: those before it, if it holds every row,
    those of killed runs, and those that a person gave up. None: it was written before manifests recorded this."""
    ledger: Annotated[str, Field(pattern=r"^[0-9a-f-]{36}$")] | None = None
    """The id of the ledger that wrote it; see ``rowvec.store.marks``."""
    journal: JournalEntry
    """The rows that changed since the manifest before, or all rows."""
    artifacts: tuple[Artifact, ...]
    """The artifacts written since the manifest before, or all that are kept."""
    runs: tuple[RunRecord, ...]
    """The runs that ended since the manifest before, or all runs of the table's vectors; its own run is included."""
    counts: Annotated[dict[_Short, _Count], Field(max_length=50)]
    """Counts by name, such as ``new`` and ``deleted``; ``rows`` is the number of rows in the table."""
    checksum: Annotated[str, Field(pattern=r"^[0-9]{1,60}$")]
    """The checksum of all keys and fingerprints in the table after the merge."""
    certificate: Certificate | None = None
    """None: the run had no tree that fitted the table, or it is of a version that certified nothing."""
    created_at: AwareDatetime


_MANIFEST = TypeAdapter(Manifest)


def manifests_of(pipeline_name: str) -> str:
    """The prefix of a pipeline's manifests."""
    return f"manifests/{pipeline_name}/"


def write_manifest(store: Store, manifest: Manifest, folder: Path) -> tuple[str, str]:
    """Put a manifest into the store; returns its name and its sha256. ``folder`` is for a temporary file.

    Writing the same manifest twice is not an error: its name holds its checksum. Raises ``StoreRefused`` if it is
    larger than a reader accepts.
    """
    name, sha256, content = as_object(manifest)
    if len(content) > MOST_BYTES:
        raise StoreRefused(
            f"the manifest of run {manifest.run_id} names {len(manifest.artifacts):,} artifacts, more than one can; "
            "rowvec prune --apply --compact merges them"
        )
    local = folder / f"{uuid4().hex}.json"
    try:
        local.write_bytes(content)
        store.put(name, local, sha256)
    finally:
        local.unlink(missing_ok=True)
    return name, sha256


def as_object(manifest: Manifest) -> tuple[str, str, bytes]:
    """A manifest as an object of the store: its name, its sha256 and its bytes."""
    # Equal manifests must give equal bytes: the fields have a fixed order, and the counts get one here.
    manifest = replace(manifest, counts=dict(sorted(manifest.counts.items())))
    content = _MANIFEST.dump_json(manifest, indent=1) + b"\n"
    sha256 = hashlib.sha256(content).hexdigest()
    at = manifest.created_at.astimezone(UTC).strftime(_TIME)
    return f"{manifests_of(manifest.pipeline)}{at}-{manifest.run_id}-{sha256}.json", sha256, content


def read_manifest(store: Store, name: str, sha256: str) -> Manifest:
    """A manifest from the store.

    Raises ``ArtifactCorrupt`` if it is missing, too large, does not agree with ``sha256``, or is not a manifest.
    """
    with temporary_folder(home()) as folder:
        local = folder / "manifest.json"
        store.get(name, local, sha256, at_most=MOST_BYTES)
        content = local.read_bytes()
    if sum(content.count(mark) for mark in (b",", b"[", b"{")) > _MOST_VALUES:
        raise ArtifactCorrupt(f"{store.location(name)} is not a manifest of rowvec: it has too many values")
    try:
        manifest = _MANIFEST.validate_json(content, strict=True)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part)[:60] for part in first["loc"][:8]) or "its JSON"
        raise ArtifactCorrupt(
            f"{store.location(name)} is not a manifest of rowvec: {where!r}: {first['msg'][:200]}"
        ) from None
    if wrong := next(_wrong(manifest), None):
        raise ArtifactCorrupt(f"{store.location(name)} is not a manifest of rowvec: {wrong}")
    return manifest


def _wrong(manifest: Manifest) -> Iterator[str]:
    """What is wrong with a manifest whose parts each have a right form."""
    # What the name of an object in the store can be is settled here, and not in the middle of a restore or a prune.
    for held, kind in ((manifest.journal, "journal"), *((a, "artifacts") for a in manifest.artifacts)):
        yield from _wrong_reference(held, kind)
    if not manifest.journal.name.startswith(f"journal/{manifest.pipeline}/"):
        yield f"{manifest.journal.name[:100]!r} is of another pipeline"
    if manifest.previous is not None and not is_manifest(manifest.previous):
        yield f"{manifest.previous[:100]!r} is not the name of a manifest"
    for name in manifest.follows or ():
        if not (is_manifest(name) or _WITHOUT_JOURNAL.fullmatch(name)):
            yield f"{name[:100]!r} is not the name of a manifest"
    columns = [name for name, _ in (*manifest.layout.key, *manifest.layout.metadata)]
    yield from (f"{name[:100]!r} is not the name of a column" for name in columns if not _is_column(name))
    if len(set(columns)) < len(columns):
        yield "its layout has two columns of one name"
    if "rows" not in manifest.counts or manifest.run_id not in {run.run_id for run in manifest.runs}:
        yield "its own run or its number of rows is missing"
    own = manifest.certificate
    if own and (own.run_id != manifest.run_id or own.chain != chained(own.before, own.run_id, own.rows, own.root)):
        yield "its certificate does not agree with itself"
    if not _is_identity(manifest.identity):
        yield "its identity is of no embedder"


def _wrong_reference(held: JournalEntry | Artifact, kind: str) -> Iterator[str]:
    found = _REFERENCE.fullmatch(held.name)
    if not found or found[1] != kind or found[4] != _ENDINGS[kind]:
        yield f"{held.name[:100]!r} is not the name of an object in {kind}"
    elif found[3] != held.sha256 or found[2] != held.sha256[:2]:
        yield f"{held.name[:100]!r} does not agree with the sha256 {held.sha256[:64]!r}"
    if not (0 <= held.rows <= _MOST_NUMBER and 0 <= held.bytes <= _MOST_NUMBER):
        yield f"{held.name[:100]!r} has an impossible size"


def _is_column(name: str) -> bool:
    # Python's strings hold halves of characters, which no encoding has.
    encoded = name.encode("utf-8", "replace")
    return encoded.decode() == name and 0 < len(encoded) <= _LONGEST_COLUMN and "\0" not in name


def _is_identity(identity: Identity) -> bool:
    numbers = 0 < identity.dimensions <= sparse.MOST_DIMENSIONS and 0 <= identity.preprocessing <= _MOST_PREPROCESSING
    prefix = identity.document_prefix
    if len(prefix) > _MOST_PREFIX or "\0" in prefix:
        return False
    return numbers and all(0 < len(part) <= 300 and part.isprintable() for part in (identity.provider, identity.model))


def is_manifest(name: str) -> bool:
    """Whether a name is one that a manifest has."""
    return _NOTED.fullmatch(name) is not None


@dataclass(frozen=True, slots=True)
class Link:
    """A manifest in the store."""

    name: str
    sha256: str
    manifest: Manifest

    @property
    def values(self) -> int:
        """About how many values it holds, of some hundred bytes at most each."""
        held = self.manifest
        columns = len(held.layout.key) + len(held.layout.metadata)
        long = len(held.identity.document_prefix) // 100
        return 20 + 5 * len(held.artifacts) + 8 * len(held.runs) + 2 * columns + len(held.follows or ()) + long


def read_chain(store: Store, newest: str, known: Mapping[str, str]) -> list[Link]:
    """The manifests that together describe every row: from one that holds all rows to ``newest``.

    ``known``: the checksums of manifests in the ledger, by name. Raises ``ArtifactCorrupt`` if one is missing or
    corrupt, is of another pipeline, or has another layout than the one after it, or if they do not fit in memory.
    """
    chain = [read_link(store, newest, known)]
    held = chain[0].values
    while (name := chain[-1].manifest.previous) is not None:
        before, after = read_link(store, name, known), chain[-1]
        if before.manifest.run_id >= after.manifest.run_id or before.manifest.layout != after.manifest.layout:
            raise ArtifactCorrupt(f"{store.location(name)} is not the manifest before {after.name}")
        chain.append(before)
        held += before.values
        if held > _MOST_VALUES:
            raise ArtifactCorrupt(f"the manifests before {newest} name more artifacts and runs than a restore can hold")
    return chain[::-1]


def read_link(store: Store, name: str, known: Mapping[str, str]) -> Link:
    """One manifest by its name. Raises ``ArtifactCorrupt`` if it is missing, corrupt, or not the one in ``known``."""
    noted = _NOTED.fullmatch(name)
    if noted is None:
        raise ArtifactCorrupt(f"{name[:200]!r} is not the name of a manifest; the names begin with manifests/")
    sha256 = known.get(name) or noted[1]
    if len(sha256) < _WHOLE:
        # The names of older manifests hold the beginning of the checksum.
        found = store.checksum(name)
        if found is None or not found.startswith(sha256):
            raise ArtifactCorrupt(f"{store.location(name)} is missing, or is not the manifest that its name states")
        sha256 = found
    if not sha256.startswith(noted[1]):
        raise ArtifactCorrupt(f"{store.location(name)} has another checksum in the ledger than in its name")
    manifest = read_manifest(store, name, sha256)
    if not name.startswith(manifests_of(manifest.pipeline)):
        raise ArtifactCorrupt(f"{store.location(name)} is a manifest of another pipeline: {manifest.pipeline}")
    return Link(name, sha256, manifest)
