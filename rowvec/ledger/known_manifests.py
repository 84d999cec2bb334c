"""The manifests that the ledger knows: their checksums, and which one is the newest of a pipeline."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from rowvec.ledger.pipelines import is_readable
from rowvec.postgres.connection import Connection
from rowvec.postgres.queries import query


@dataclass(frozen=True, slots=True)
class KnownManifests:
    """What the ledger says of a pipeline's manifests; nothing, if there is no ledger."""

    newest: str | None = None
    """The last one that a run of the pipeline wrote."""
    checksums: dict[str, str] = field(default_factory=dict[str, str])
    """The sha256 of each manifest of any generation, by name."""

    def unknown(self, names: Iterable[str]) -> list[str]:
        """Those of the names that the ledger does not know."""
        return [name for name in names if name not in self.checksums]


def known_manifests(connection: Connection, pipeline_name: str) -> KnownManifests:
    """The manifests of a pipeline in the ledger."""
    if not is_readable(connection, "runs", "manifest_sha256"):
        return KnownManifests()
    values = {"name": pipeline_name}
    rows = connection.execute(query("known_manifests", "of_family"), values).fetchall()
    newest = next((name for name, _, is_own in rows if is_own), None)
    return KnownManifests(newest, {name: sha256 for name, sha256, _ in rows if sha256})
