"""A run's manifest: which artifacts hold what it wrote, so that a table can be restored from the store alone."""

from __future__ import annotations

import hashlib
import re
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal
from uuid import uuid4

from pydantic import AwareDatetime, Field, NonNegativeInt, TypeAdapter, ValidationError

from rowvec.artifacts import Artifact
from rowvec.errors import ArtifactCorrupt
from rowvec.fingerprint import Identity
from rowvec.stores import Store, checked_name

# As many digits as keep the manifests of ten runs a second, for 3,000 years, in the order of their runs.
_RUN_DIGITS = 12
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What one run wrote, and what the table held after it."""

    format: Literal["rowvec.manifest/1"] = "rowvec.manifest/1"
    run_id: NonNegativeInt
    pipeline: Annotated[str, Field(min_length=1)]
    table: str
    """``schema.table``."""
    identity: Identity
    artifacts: tuple[Artifact, ...]
    counts: dict[str, int]
    """By name, such as ``new`` and ``deleted``."""
    checksum: str
    """Of all keys and fingerprints in the table after the merge."""
    created_at: AwareDatetime


_MANIFEST = TypeAdapter(Manifest)


def manifests_of(pipeline_name: str) -> str:
    """The prefix of a pipeline's manifests; by name they are in the order of their runs."""
    return f"manifests/{pipeline_name}/"


def write_manifest(store: Store, manifest: Manifest, folder: Path) -> tuple[str, str]:
    """Put a manifest into the store; returns its name and its sha256. ``folder`` holds it on its way.

    The same manifest again is no error: its name holds part of its checksum.
    """
    # Equal manifests, equal bytes: the fields have their order, and so must the counts.
    manifest = replace(manifest, counts=dict(sorted(manifest.counts.items())))
    content = _MANIFEST.dump_json(manifest, indent=1) + b"\n"
    sha256 = hashlib.sha256(content).hexdigest()
    name = f"{manifests_of(manifest.pipeline)}{manifest.run_id:0{_RUN_DIGITS}}-{sha256[:12]}.json"
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
    for artifact in manifest.artifacts:
        # A name that leaves the store, or a checksum nothing can agree with, is found now and not half-way through.
        if not (_SHA256.fullmatch(artifact.sha256) and checked_name(artifact.name)):
            raise ArtifactCorrupt(f"{store.location(name)} is no manifest of rowvec: {artifact.sha256!r} is no sha256")
    return manifest
