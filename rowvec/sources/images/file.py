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
    """Equal as long as the bytes are the same; None if the bytes may change while the mark does not."""


class Places(Protocol):
    """Where a source's images are."""

    def read(self, written: str) -> ImageFile:
        """The whole image at the path or URL that a row has. Several threads call it.

        Raises ``RowError``, which names the image, if it is not there, is no file, is larger than allowed, or is
        outside the folder or account; ``SourceError`` or ``StoreUnavailable`` if it cannot be read now for another
        reason.
        """
        ...

    def mark(self, written: str) -> Mark | None:
        """The mark of the image as it is now, without reading it; None if there is none."""
        ...


def is_url(path: str) -> bool:
    """Whether a path is a blob's URL."""
    return path.lower().startswith(("https://", "http://"))


def too_many_bytes(written: str, size: int, limit: int) -> RowError:
    """The error for an image file that is larger than allowed."""
    return RowError("image_too_large", f"{written} has {size:,} bytes, and source.max_bytes allows {limit:,}")
