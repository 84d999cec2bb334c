"""Someone else's hand in a store: objects that are changed and then named and summed as if rowvec had written them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Json = dict[str, Any]


def manifests(store: Path) -> list[Path]:
    """The manifests in a folder store, oldest name first."""
    return sorted(store.glob("manifests/*/*.json"))


def write_manifest(store: Path, content: bytes, pipeline: str = "paintings", run_id: object = 9) -> str:
    """Put bytes into a folder store as the manifest with the greatest name; returns its name."""
    sha256 = hashlib.sha256(content).hexdigest()
    name = f"manifests/{pipeline}/29990101T000000.000000Z-{run_id}-{sha256}.json"
    path = store / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return name


def replace_manifests(store: Path, change: Callable[[Json], object]) -> str:
    """Let a changed copy of the newest manifest be the only one, with a name that agrees with its bytes.

    Returns its name. No ledger's mark is left, which would name the manifest that is gone.
    """
    found = manifests(store)
    written = json.loads(found[-1].read_bytes())
    change(written)
    for path in (*found, *store.glob("marks/*/*")):
        path.unlink()
    return write_manifest(store, json.dumps(written).encode(), run_id=written.get("run_id"))


def replace_object(store: Path, reference: Json, content: bytes) -> None:
    """Give the object that a manifest refers to other bytes, and the reference a name and a checksum that fit."""
    old = store / reference["name"]
    sha256 = hashlib.sha256(content).hexdigest()
    kind, pipeline, _, last = reference["name"].split("/")
    name = f"{kind}/{pipeline}/{sha256[:2]}/{sha256}.{last.partition('.')[2]}"
    old.unlink(missing_ok=True)
    (store / name).parent.mkdir(parents=True, exist_ok=True)
    (store / name).write_bytes(content)
    reference.update(name=name, sha256=sha256, bytes=len(content))


class ForgedStore:
    """A folder store as values that a test may change; ``write`` names and sums everything again, as rowvec would."""

    def __init__(self, store: Path) -> None:
        self.manifests = _in_order([(path, json.loads(path.read_bytes())) for path in manifests(store)])
        self.objects = {
            str(path.relative_to(store)): path.read_bytes()
            for path in sorted(store.rglob("*"))
            if path.is_file() and path.suffix in (".parquet", ".zst")
        }
        self.marks = {str(path.relative_to(store)): json.loads(path.read_bytes()) for path in store.glob("marks/*/*")}

    def references(self) -> list[Json]:
        """What the manifests say of the other objects, as far as it still has the form of a reference."""
        found: list[Any] = []
        for manifest in self.manifests:
            artifacts = manifest.get("artifacts")
            found += [manifest.get("journal"), *(artifacts if isinstance(artifacts, list) else ())]
        return [one for one in found if isinstance(one, dict) and isinstance(one.get("name"), str)]

    def write(self, store: Path) -> None:
        """Write the store into an empty folder. A manifest whose parts have no sense any more is written as it is."""
        for reference in self.references():
            name = reference["name"]
            if name in self.objects:
                content = self.objects[name]
                if hashlib.sha256(content).hexdigest() not in name:
                    replace_object(store, reference, content)
                else:
                    _put(store / name, content)
        previous = None
        for manifest in self.manifests:
            if isinstance(manifest.get("previous"), str) and previous and manifest["previous"].startswith("manifests/"):
                manifest["previous"] = previous
            if isinstance(manifest.get("follows"), list) and previous:
                manifest["follows"] = [previous]
            previous = write_manifest(store, json.dumps(manifest).encode(), run_id=7)
        for name, mark in self.marks.items():
            _put(store / name, json.dumps({**mark, "manifest": previous}).encode())


def _in_order(found: list[tuple[Path, Json]]) -> list[Json]:
    return [manifest for _, manifest in sorted(found, key=lambda one: one[1]["run_id"])]


def _put(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
