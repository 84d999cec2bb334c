"""The blob store of a run: it writes and deletes only while the run's lease is held."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from rowvec.ledger.held_lease import Ownership
from rowvec.store.protocol import Store


@dataclass(frozen=True, slots=True)
class OwnedStore:
    """A ``Store`` whose changes raise ``LeaseLost``, before they are made, once another run has taken over."""

    store: Store
    ownership: Ownership

    def put(self, name: str, path: Path, sha256: str) -> bool:
        """See ``Store.put``."""
        self.ownership.ensure()
        return self.store.put(name, path, sha256)

    def put_bytes(self, name: str, content: bytes, sha256: str) -> bool:
        """See ``Store.put_bytes``."""
        self.ownership.ensure()
        return self.store.put_bytes(name, content, sha256)

    def get(self, name: str, into: Path, sha256: str, *, at_most: int) -> None:
        """See ``Store.get``."""
        self.store.get(name, into, sha256, at_most=at_most)

    def opened(self, name: str) -> AbstractContextManager[BinaryIO]:
        """See ``Store.opened``."""
        return self.store.opened(name)

    def replace(self, name: str, content: bytes) -> None:
        """See ``Store.replace``."""
        self.ownership.ensure()
        self.store.replace(name, content)

    def names(self, prefix: str = "") -> Iterator[str]:
        """See ``Store.names``."""
        return self.store.names(prefix)

    def sizes(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """See ``Store.sizes``."""
        return self.store.sizes(prefix)

    def checksum(self, name: str) -> str | None:
        """See ``Store.checksum``."""
        return self.store.checksum(name)

    def delete(self, name: str) -> None:
        """See ``Store.delete``."""
        self.ownership.ensure()
        self.store.delete(name)

    def location(self, name: str) -> str:
        """See ``Store.location``."""
        return self.store.location(name)
