"""An image file as a source lists it, and the places that images are read from."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from rowvec.errors import RowError
from rowvec.sources.images.seen import Mark


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image file as it was read."""

    content: bytes
    modified: datetime
    mark: Mark | None = None
    """By which these bytes are known again; None where they may change without it."""


class Places(Protocol):
    """Where a source's images are."""

    def read(self, written: str) -> ImageFile:
        """The image that a source writes so, whole; called from several threads.

        Raises ``RowError``, naming it, where it is not there, is no file, is larger than allowed or lies outside;
        ``SourceError`` or ``StoreUnavailable`` where nothing is known of it just now.
        """
        ...

    def mark(self, written: str) -> Mark | None:
        """The mark of the image that is there now, which is not read; None where there is none to be had."""
        ...


def is_url(path: str) -> bool:
    """Whether a path is a blob's URL."""
    return path.lower().startswith(("https://", "http://"))


def too_many_bytes(written: str, size: int, limit: int) -> RowError:
    """The sentence for an image file that is larger than allowed."""
    return RowError("image_too_large", f"{written} has {size:,} bytes, and source.max_bytes allows {limit:,}")
