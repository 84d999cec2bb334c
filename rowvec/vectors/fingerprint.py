"""Fingerprints: sha256 over the embedder's identity and the content. Rows with the same one share a vector."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import NewType, Protocol

Fingerprint = NewType("Fingerprint", bytes)
"""32 bytes. Same fingerprint, same vector."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Everything about an embedder that a vector depends on."""

    provider: str
    model: str
    dimensions: int
    preprocessing: int
    """Increased whenever our own handling of the text before the model changes."""
    document_prefix: str = ""
    """What stands before each text that the model is sent; not part of the stored content."""

    def __str__(self) -> str:
        prefix = f" and the document_prefix {self.document_prefix!r}" if self.document_prefix else ""
        return f"{self.provider} {self.model} with {self.dimensions:,} dimensions{prefix}"

    @property
    def from_source(self) -> bool:
        """Whether the source brings the vectors in a column, so that no model makes vectors of texts."""
        return self.provider == "column"

    def digest(self) -> bytes:
        """32 bytes. The fixed length keeps identity and content apart in the hash."""
        return hashlib.sha256(json.dumps(self.as_json(), sort_keys=True).encode()).digest()

    def as_json(self) -> dict[str, str | int]:
        """The fields as they are hashed and stored.

        An empty prefix is left out: fingerprints from before there were prefixes stay as they are, so no vector is paid
        for again.
        """
        return {name: value for name, value in asdict(self).items() if name != "document_prefix" or value}


class Digested(Protocol):
    """What a content is hashed together with: an embedder's identity, or a way to split."""

    def digest(self) -> bytes:
        """32 bytes."""
        ...


def fingerprint(identity: bytes, content: bytes, vector: bytes | None = None) -> Fingerprint:
    """The fingerprint of one row; Postgres computes the same from ``fingerprint`` in ``sql/extract.sql``.

    ``content`` is the rendered text as UTF-8 (or an image's bytes). ``vector`` is given only where the source
    brings its own vectors: then a change of the vector alone is a change of the row.
    """
    if vector is None:
        return Fingerprint(hashlib.sha256(identity + content).digest())
    return Fingerprint(hashlib.sha256(identity + hashlib.sha256(content).digest() + vector).digest())
