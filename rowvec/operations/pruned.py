"""What a prune has deleted, or would delete."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from rowvec.runtime.figures import counted


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """What was deleted, or would be with ``--apply``."""

    applied: bool
    artifacts: int
    journal_entries: int
    manifests: int
    bytes: int
    """The size of the artifacts."""
    images: int
    """Images that no row shows any more."""
    image_bytes: int
    kept_artifacts: int
    runs: int
    """Old runs in the ledger that nothing needs any more."""
    compacted: int
    """Small artifacts merged into large ones. A later prune deletes them, once no restorable run names them."""
    note: str
    """Whether another database writes to the same store, so that what it needs was kept, or the store has what this
    database has forgotten; empty if neither."""
    names: tuple[str, ...]
    """The names of up to 100 of the objects."""

    def verdict(self) -> str:
        """One sentence."""
        done = "Deleted" if self.applied else "Would be deleted"
        artifacts, manifests = counted(self.artifacts, "artifacts"), counted(self.manifests, "manifests")
        return f"{done}: {artifacts}, {self.bytes:,} bytes; {manifests}."

    def as_json(self) -> dict[str, Any]:
        """As one JSON object."""
        return asdict(self)
