"""What other ledgers need of a store: a prune deletes nothing of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from rowvec.errors import ArtifactCorrupt
from rowvec.ledger.marked_store import Standing, family_manifests, family_of
from rowvec.store.manifest import Link
from rowvec.store.protocol import Store


@dataclass(frozen=True, slots=True)
class Shared:
    """The objects that manifests of other ledgers name, and those manifests; empty if no other ledger has a mark."""

    standing: Standing
    artifacts: set[str] = field(default_factory=set[str])
    manifests: set[str] = field(default_factory=set[str])
    entries: set[str] = field(default_factory=set[str])
    """Journal entries."""

    @property
    def has_others(self) -> bool:
        """Whether another ledger writes to the store."""
        return bool(self.standing.others)


def shared_objects(standing: Standing, store: Store, pipeline_name: str, read: Callable[[str], Link]) -> Shared:
    """What manifests of other ledgers name, and the manifests before them; ``read`` gives a manifest by its name.

    Raises ``ArtifactCorrupt`` if one cannot be read: nobody knows what it needs.
    """
    shared = Shared(standing)
    if not shared.has_others:
        return shared
    for name in family_manifests(store, family_of(pipeline_name)):
        if name in shared.manifests:
            continue
        link = _read(read, name)
        if link.manifest.ledger == standing.ledger:
            continue
        while True:
            shared.manifests.add(link.name)
            shared.entries.add(link.manifest.journal.name)
            shared.artifacts.update(artifact.name for artifact in link.manifest.artifacts)
            before = link.manifest.previous
            if before is None or before in shared.manifests:
                break
            link = _read(read, before)
    return shared


def _read(read: Callable[[str], Link], name: str) -> Link:
    try:
        return read(name)
    except ArtifactCorrupt as error:
        raise ArtifactCorrupt(
            f"{error}; another database may need what it names, so nothing is deleted: if none does, run rowvec adopt "
            "or delete it"
        ) from error
