"""An object of a remote store as a file in which a reader moves about: only what is read is fetched."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from typing import Any

BLOCK = 128 << 10
"""Fetched at once, at least: the footer of a small Parquet file."""


class Ranges(io.RawIOBase):
    """A readable file of ``size`` bytes, whose parts ``fetch(offset, length)`` returns."""

    def __init__(self, fetch: Callable[[int, int], bytes], size: int) -> None:
        super().__init__()
        self._fetch, self._size, self._at = fetch, size, 0

    def readable(self) -> bool:
        """See ``io.RawIOBase``."""
        return True

    def seekable(self) -> bool:
        """See ``io.RawIOBase``."""
        return True

    def tell(self) -> int:
        """See ``io.RawIOBase``."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """See ``io.RawIOBase``."""
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        """See ``io.RawIOBase``."""
        length = max(0, min(len(buffer), self._size - self._at))
        if length:
            found = self._fetch(self._at, length)
            length = len(found)
            buffer[:length] = found
            self._at += length
        return length
