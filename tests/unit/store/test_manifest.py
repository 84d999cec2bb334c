"""A manifest is read as it was written, and no other content is accepted as a manifest."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from rowvec.errors import ArtifactCorrupt, StoreRefused, UsageError
from rowvec.pipeline.model import Artifacts
from rowvec.store.artifact import Artifact
from rowvec.store.heads import newest_chain
from rowvec.store.manifest import (
    JournalEntry,
    Layout,
    Manifest,
    RunRecord,
    read_chain,
    read_link,
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
    journal=JournalEntry(name=f"journal/paintings/cd/{'cd' * 32}.csv.zst", sha256="cd" * 32, rows=50, bytes=1_234),
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
    artifacts=(Artifact(name=f"artifacts/paintings/ab/{'ab' * 32}.parquet", sha256="ab" * 32, rows=50, bytes=12_345),),
    counts={"new": 50, "deleted": 0, "rows": 50},
    checksum="1234",
    created_at=datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC),
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A folder store; a blob store gives the same guarantees, see test_stores.py."""
    return open_store(Artifacts(url=str(tmp_path / "store")))


def test_a_manifest_comes_back(store: Store, tmp_path: Path) -> None:
    name, sha256 = write_manifest(store, MANIFEST, tmp_path)
    assert name == f"manifests/paintings/20250102T030405.000000Z-42-{sha256}.json"
    assert read_manifest(store, name, sha256) == MANIFEST
    assert write_manifest(store, MANIFEST, tmp_path) == (name, sha256)
    assert list(tmp_path.glob("*.json")) == []


def test_equal_manifests_have_equal_bytes(store: Store, tmp_path: Path) -> None:
    other_order = replace(MANIFEST, counts=dict(reversed(MANIFEST.counts.items())))
    assert write_manifest(store, other_order, tmp_path) == write_manifest(store, MANIFEST, tmp_path)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("format",), "rowvec.manifest/3"),
        (("journal", "name"), "../../etc/passwd"),
        (("journal", "name"), "journal/paintings/cd/../../../../etc/passwd"),
        (("journal", "name"), "/etc/passwd"),
        (("journal", "name"), f"artifacts/paintings/cd/{'cd' * 32}.parquet"),
        (("journal", "name"), f"journal/paintings/ab/{'ab' * 32}.csv.zst"),
        (("journal", "name"), f"journal/paintings/cd/{'cd' * 32}.csv.zst\0"),
        (("journal", "name"), f"journal/others/cd/{'cd' * 32}.csv.zst"),
        (("journal", "sha256"), None),
        (("journal", "bytes"), 2**64),
        (("identity",), None),
        (("run_id",), -1),
        (("run_id",), 2**31),
        (("run_id",), "42"),
        (("run_id",), True),
        (("pipeline",), "../paintings"),
        (("previous",), "../../etc/passwd"),
        (("previous",), "manifests/paintings/newest.json"),
        (("follows",), ["manifests/../x"]),
        (("identity", "dimensions"), 0),
        (("identity", "model"), "a\nb"),
        (("layout", "key"), []),
        (("layout", "key", 0, 0), "a\0b"),
        (("layout", "key", 0, 0), "i" * 64),
        (("layout", "key", 0, 0), "\ud800"),
        (("layout", "metadata", 0, 0), "id"),
        (("layout", "metadata", 0, 1), "t" * 301),
        (("runs", 0, "state"), "planned"),
        (("runs", 0, "cause"), "a\0b"),
        (("runs", 0, "cost_usd"), float("inf")),
        (("runs", 0, "embedded"), 2**40),
        (("runs",), []),
        (("counts",), {"new": 1}),
        (("counts", "rows"), 1.5),
        (("checksum",), "ab"),
        (("created_at",), "2025-01-02T03:04:05"),
        (("artifacts", 0, "name"), "../../etc/passwd"),
        (("artifacts", 0, "sha256"), "ab"),
        (("artifacts", 0, "rows"), "many"),
    ],
)
def test_a_file_that_is_not_a_manifest_is_named(
    store: Store, tmp_path: Path, path: tuple[str | int, ...], value: object
) -> None:
    name, sha256 = write_manifest(store, MANIFEST, tmp_path)
    local = tmp_path / "changed"
    store.get(name, local, sha256, at_most=10**9)
    content = json.loads(local.read_bytes())
    part: Any = content
    for step in path[:-1]:
        part = part[step]
    part[path[-1]] = value
    local.write_text(json.dumps(content))
    digest = hashlib.sha256(local.read_bytes()).hexdigest()
    store.put("manifests/paintings/changed.json", local, digest)
    with pytest.raises(ArtifactCorrupt, match=r"changed\.json is not a manifest of rowvec") as refused:
        read_manifest(store, "manifests/paintings/changed.json", digest)
    assert len(str(refused.value).splitlines()) == 1


def test_a_manifest_with_other_bytes_is_corrupt(store: Store, tmp_path: Path) -> None:
    name, _ = write_manifest(store, MANIFEST, tmp_path)
    with pytest.raises(ArtifactCorrupt, match="manifests/paintings"):
        read_manifest(store, name, "0" * 64)


def numbered(run: int, **changes: Any) -> Manifest:
    """A manifest of the run of this number, a second after the run before."""
    runs = (replace(MANIFEST.runs[0], run_id=run),)
    at = MANIFEST.created_at + timedelta(seconds=run)
    return replace(MANIFEST, run_id=run, runs=runs, **{"created_at": at, **changes})


def test_a_chain_begins_with_a_full_manifest_and_ends_with_the_newest(store: Store, tmp_path: Path) -> None:
    assert newest_chain(store, "paintings") == []
    names: list[str] = []
    for run, begins in enumerate([True, False, True, False, False]):
        before = names[-1] if names else None
        follows = (before,) if begins and before else ()
        manifest = numbered(run, previous=None if begins else before, follows=follows)
        names.append(write_manifest(store, manifest, tmp_path)[0])
    assert [link.manifest.run_id for link in newest_chain(store, "paintings")] == [2, 3, 4]
    assert [link.manifest.run_id for link in read_chain(store, names[1], {})] == [0, 1]
    store.delete(names[3])
    with pytest.raises(ArtifactCorrupt, match="is not in the store"):
        newest_chain(store, "paintings")


def test_the_newest_is_the_one_that_no_other_follows_whatever_the_clock(store: Store, tmp_path: Path) -> None:
    first, _ = write_manifest(store, numbered(1, follows=()), tmp_path)
    day_before = MANIFEST.created_at - timedelta(days=1)
    second, _ = write_manifest(store, numbered(2, previous=first, follows=(), created_at=day_before), tmp_path)
    assert [link.name for link in newest_chain(store, "paintings")] == [first, second]
    third, _ = write_manifest(store, numbered(3, follows=(second,), created_at=day_before), tmp_path)
    assert [link.name for link in newest_chain(store, "paintings")] == [third]


def test_two_that_no_other_follows_are_named(store: Store, tmp_path: Path) -> None:
    first, _ = write_manifest(store, numbered(1, follows=()), tmp_path)
    given_up, _ = write_manifest(store, numbered(3, previous=first, follows=()), tmp_path)
    second, _ = write_manifest(store, numbered(2, previous=first, follows=()), tmp_path)
    with pytest.raises(UsageError, match="--manifest") as refused:
        newest_chain(store, "paintings")
    assert given_up in str(refused.value)
    assert second in str(refused.value)
    assert first not in str(refused.value)
    last, _ = write_manifest(store, numbered(4, previous=second, follows=(given_up,)), tmp_path)
    assert newest_chain(store, "paintings")[-1].name == last


def test_manifests_of_an_older_program_are_in_the_order_of_runs_and_time(store: Store, tmp_path: Path) -> None:
    """They do not say what they follow: each of these holds every row, and the second was left by a killed run."""
    for run in (1, 2, 3):
        write_manifest(store, numbered(run), tmp_path)
    last, _ = write_manifest(store, numbered(4), tmp_path)
    assert [link.name for link in newest_chain(store, "paintings")] == [last]


def test_a_manifest_is_known_by_its_whole_checksum(store: Store, tmp_path: Path) -> None:
    """Names used to hold twelve digits of it; what the ledger knows holds all the same."""
    name, sha256 = write_manifest(store, MANIFEST, tmp_path)
    short = name.replace(sha256, sha256[:12])
    other, other_sha256 = write_manifest(store, numbered(43), tmp_path)
    path = tmp_path / "other"
    store.get(name, path, sha256, at_most=10**9)
    store.put(short, path, sha256)
    assert read_link(store, short, {}).sha256 == sha256
    with pytest.raises(ArtifactCorrupt, match="does not agree with its checksum"):
        read_link(store, short, {short: sha256[:12] + "0" * 52})
    with pytest.raises(ArtifactCorrupt, match="another checksum in the ledger"):
        read_link(store, short, {short: other_sha256})
    store.get(other, path, other_sha256, at_most=10**9)
    (tmp_path / "store" / name).write_bytes(path.read_bytes())
    with pytest.raises(ArtifactCorrupt, match="does not agree with its checksum"):
        read_link(store, name, {})


def test_a_manifest_that_is_too_large_is_not_read(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, sha256 = write_manifest(store, MANIFEST, tmp_path)
    monkeypatch.setattr("rowvec.store.manifest.MOST_BYTES", 100)
    with pytest.raises(ArtifactCorrupt, match="more than the 100 bytes"):
        read_manifest(store, name, sha256)
    with pytest.raises(StoreRefused, match="rowvec prune --apply --compact"):
        write_manifest(store, numbered(44), tmp_path)


@pytest.mark.parametrize("content", [b"[" * 5_000_000, b'{"a":' * 100_000, b'{"counts":{' + b'"a":1,' * 4_000_001])
def test_json_that_is_deep_or_full_of_values_is_refused_before_it_takes_memory(
    store: Store, tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "deep"
    path.write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    store.put("manifests/deep.json", path, digest)
    with pytest.raises(ArtifactCorrupt, match="is not a manifest of rowvec"):
        read_manifest(store, "manifests/deep.json", digest)


def test_text_that_is_not_json_is_not_a_manifest(store: Store, tmp_path: Path) -> None:
    local = tmp_path / "text"
    local.write_text("not json")
    digest = hashlib.sha256(b"not json").hexdigest()
    store.put("manifests/text.json", local, digest)
    with pytest.raises(ArtifactCorrupt, match=r"manifests/text\.json is not a manifest"):
        read_manifest(store, "manifests/text.json", digest)


def test_wide_manifests_of_one_chain_are_not_all_held(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They name one artifact each, and a hundred columns."""
    wide = Layout(key=(("id", "integer"),), metadata=tuple((f"column {n}", "text") for n in range(100)))
    first, _ = write_manifest(store, numbered(1, layout=wide), tmp_path)
    second, _ = write_manifest(store, numbered(2, layout=wide, previous=first), tmp_path)
    monkeypatch.setattr("rowvec.store.manifest._MOST_VALUES", 450)
    assert len(read_chain(store, first, {})) == 1
    with pytest.raises(ArtifactCorrupt, match=f"the manifests before {second} name more"):
        read_chain(store, second, {})
