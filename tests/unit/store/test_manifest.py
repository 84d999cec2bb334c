"""A manifest is read as it was written, and no other content is accepted as a manifest."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from rowvec.errors import ArtifactCorrupt, RowvecError
from rowvec.pipeline.model import Artifacts
from rowvec.store.artifact import Artifact
from rowvec.store.manifest import (
    JournalEntry,
    Layout,
    Manifest,
    RunRecord,
    manifests_of,
    read_chain,
    read_manifest,
    write_manifest,
)
from rowvec.store.open import open_store
from rowvec.store.protocol import Store
from rowvec.vectors.fingerprint import Identity

MANIFEST = Manifest(
    run_id=42,
    pipeline="paintings",
    table="vectors.paintings",
    identity=Identity(provider="local", model="wordllama", dimensions=64, preprocessing=1),
    layout=Layout(key=(("id", "integer"),), metadata=(("author", "text"),)),
    previous=None,
    journal=JournalEntry(name="journal/paintings/cd/cdef.csv.zst", sha256="cd" * 32, rows=50, bytes=1_234),
    runs=(
        RunRecord(
            run_id=42,
            cause="test",
            state="succeeded",
            started_at=datetime(2025, 1, 2, 3, 4, tzinfo=UTC),
            finished_at=None,
            embedded=50,
            tokens=0,
            cost_usd=0.0,
        ),
    ),
    artifacts=(Artifact(name="artifacts/paintings/ab/abcd.parquet", sha256="ab" * 32, rows=50, bytes=12_345),),
    counts={"new": 50, "deleted": 0},
    checksum="1f2e",
    created_at=datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC),
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A folder store; a blob store gives the same guarantees, see test_stores.py."""
    return open_store(Artifacts(url=str(tmp_path / "store")))


def test_a_manifest_comes_back(store: Store, tmp_path: Path) -> None:
    name, sha256 = write_manifest(store, MANIFEST, tmp_path)
    assert name == f"manifests/paintings/20250102T030405.000000Z-42-{sha256[:12]}.json"
    assert read_manifest(store, name, sha256) == MANIFEST
    assert write_manifest(store, MANIFEST, tmp_path) == (name, sha256)
    assert list(tmp_path.glob("*.json")) == []


def test_equal_manifests_have_equal_bytes(store: Store, tmp_path: Path) -> None:
    other_order = replace(MANIFEST, counts=dict(reversed(MANIFEST.counts.items())))
    assert write_manifest(store, other_order, tmp_path) == write_manifest(store, MANIFEST, tmp_path)


def test_manifests_are_listed_in_the_order_of_time(store: Store, tmp_path: Path) -> None:
    # After the loss of a database, run numbers start at 1 again, so the order is that of time.
    times = [MANIFEST.created_at + timedelta(milliseconds=i) for i in range(3)]
    runs = [replace(MANIFEST, run_id=run, created_at=at) for run, at in zip((9, 100, 1), times, strict=True)]
    written = [write_manifest(store, run, tmp_path)[0] for run in runs]
    write_manifest(store, replace(MANIFEST, pipeline="paintings-2"), tmp_path)
    assert list(store.names(manifests_of("paintings"))) == written


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("format",), "rowvec.manifest/3"),
        (("journal", "name"), "../../etc/passwd"),
        (("journal", "sha256"), None),
        (("identity",), None),
        (("run_id",), -1),
        (("created_at",), "2025-01-02T03:04:05"),
        (("artifacts", 0, "name"), "../../etc/passwd"),
        (("artifacts", 0, "sha256"), "ab"),
        (("artifacts", 0, "rows"), "many"),
    ],
)
def test_a_file_that_is_not_a_manifest_is_named(
    store: Store, tmp_path: Path, path: tuple[str | int, ...], value: str | int | None
) -> None:
    name, sha256 = write_manifest(store, MANIFEST, tmp_path)
    local = tmp_path / "changed"
    store.get(name, local, sha256)
    content = json.loads(local.read_bytes())
    part: Any = content
    for step in path[:-1]:
        part = part[step]
    part[path[-1]] = value
    local.write_text(json.dumps(content))
    digest = hashlib.sha256(local.read_bytes()).hexdigest()
    store.put("manifests/paintings/changed.json", local, digest)
    with pytest.raises(RowvecError, match=r"changed\.json|is not a valid name for an object"):
        read_manifest(store, "manifests/paintings/changed.json", digest)


def test_a_manifest_with_other_bytes_is_corrupt(store: Store, tmp_path: Path) -> None:
    name, _ = write_manifest(store, MANIFEST, tmp_path)
    with pytest.raises(ArtifactCorrupt, match="manifests/paintings"):
        read_manifest(store, name, "0" * 64)


def test_a_chain_begins_with_a_full_manifest_and_ends_with_the_newest(store: Store, tmp_path: Path) -> None:
    assert read_chain(store, "paintings") == []
    names: list[str | None] = [None]
    for run, begins in enumerate([True, False, True, False, False]):
        at = MANIFEST.created_at + timedelta(seconds=run)
        manifest = replace(MANIFEST, run_id=run, created_at=at, previous=None if begins else names[-1])
        names.append(write_manifest(store, manifest, tmp_path)[0])
    assert [link.manifest.run_id for link in read_chain(store, "paintings")] == [2, 3, 4]
    assert [link.manifest.run_id for link in read_chain(store, "paintings", names[2])] == [0, 1]
    store.delete(str(names[4]))
    with pytest.raises(ArtifactCorrupt, match="is missing"):
        read_chain(store, "paintings")


def test_text_that_is_not_json_is_not_a_manifest(store: Store, tmp_path: Path) -> None:
    local = tmp_path / "text"
    local.write_text("not json")
    digest = hashlib.sha256(b"not json").hexdigest()
    store.put("manifests/text.json", local, digest)
    with pytest.raises(ArtifactCorrupt, match=r"manifests/text\.json is not a manifest"):
        read_manifest(store, "manifests/text.json", digest)
