"""What a store of artifacts can do, and the rules for its names."""

from __future__ import annotations

import errno
import hashlib
import logging
import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from rowvec.errors import ArtifactCorrupt, StoreRefused, StoreUnavailable

# Azure allows 1,024 characters a name, of which the prefix of the URL has its share.
_MAX_NAME = 900


# What both stores can hold under the same name: no empty segment, none that begins with a dot (so no "..", and room
# for a folder's own temporary files), nothing that a file system or a URL would read in another way.
_NAME = re.compile(r"(?:[A-Za-z0-9_=-][A-Za-z0-9_.=-]*)(?:/[A-Za-z0-9_=-][A-Za-z0-9_.=-]*)*")


# What a person has to mend; anything else (a slow mount, an interrupted call) may be gone at the next attempt.
_FATAL = frozenset(
    {
        errno.EACCES,
        errno.EPERM,
        errno.EROFS,
        errno.ENOSPC,
        errno.EDQUOT,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.ENAMETOOLONG,
        errno.EOPNOTSUPP,
    }
)


logger = logging.getLogger(__name__)


class Store(Protocol):
    """Immutable objects under names such as ``artifacts/paintings/ab/abcd.parquet``.

    Every method raises ``StoreUnavailable`` where the same call may succeed later, and ``StoreRefused`` where it will
    not: permission, account, a name with ``..``. No message holds a credential.
    """

    def put(self, name: str, path: Path, sha256: str) -> bool:
        """Keep a file under a name that is not taken; ``False`` where the same bytes are there already.

        An object appears whole or not at all. Where the name itself holds the sha256, other bytes under it are spoilt
        and of use to nobody: they are replaced. Raises ``ArtifactCorrupt`` where other bytes have a name of any other
        kind, or the file does not agree with ``sha256``.
        """
        ...

    def put_bytes(self, name: str, content: bytes, sha256: str) -> bool:
        """As ``put``, of an object that is in memory and most likely new: it is sent without asking first."""
        ...

    def get(self, name: str, into: Path, sha256: str) -> None:
        """Fetch an object into a file, which appears whole or not at all.

        Raises ``ArtifactCorrupt`` where the object is missing or its bytes do not agree with ``sha256``.
        """
        ...

    def names(self, prefix: str = "") -> Iterator[str]:
        """The names that begin with ``prefix``, in their order."""
        ...

    def sizes(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """The names that begin with ``prefix``, in any order, each with its bytes; a listing, no request an object."""
        ...

    def checksum(self, name: str) -> str | None:
        """The sha256 the store has for an object, or ``None`` where there is none.

        A folder reads the file. A blob's was noted when it was put; its bytes are read where there is no note, or where
        the service has another MD5 for them than was noted.
        """
        ...

    def delete(self, name: str) -> None:
        """Let go of an object; one that is gone already is no error."""
        ...

    def location(self, name: str) -> str:
        """Where a person finds the object: a path or a URL, never with a credential."""
        ...


def checked_name(name: str) -> str:
    """The name itself. Raises ``StoreRefused`` where it could mean anything outside the store."""
    if len(name) > _MAX_NAME or not _NAME.fullmatch(name):
        raise StoreRefused(
            f"{name[:100]!r} is no name for an object; use letters, digits and . _ = - in segments parted by /, "
            f"none of which begins with a dot, and at most {_MAX_NAME} characters"
        )
    return name


def checked_prefix(prefix: str) -> str:
    """The prefix itself: part of a name, a folder's name with its slash, or empty. Raises as ``checked_name``."""
    if prefix:
        checked_name(prefix.removesuffix("/"))
    return prefix


def settle(store: Store, name: str, stored: str, sha256: str) -> bool:
    """Whether an object that has the name already, with this checksum, is to be replaced. Raises as ``Store.put``."""
    if stored == sha256:
        return False
    if sha256 not in name:
        raise ArtifactCorrupt(
            f"{store.location(name)} is there already with other bytes than it should have; rowvec audit names the "
            "rows it concerns, and deleting it lets the next sync write it anew"
        )
    logger.warning("%s was spoilt in the store and is written anew", store.location(name))
    return True


@contextmanager
def disk_faults(path: Path, remedy: str) -> Generator[None]:
    """What the file system refuses while ``path`` is written or read, as ``StoreRefused`` or ``StoreUnavailable``."""
    try:
        yield
    except OSError as error:
        where, reason = error.filename or path, error.strerror or type(error).__name__
        if error.errno in _FATAL:
            raise StoreRefused(f"{where} cannot be used: {reason}; {remedy}") from error
        raise StoreUnavailable(f"{where} cannot be used just now: {reason}") from error


def file_checksum(path: Path) -> str:
    """The sha256 of a file, as 64 hex digits; in constant memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


SUFFIXES = {
    "image/jpeg": "jpg",
    "image/png": "png",
    "image/gif": "gif",
    "image/webp": "webp",
    "image/bmp": "bmp",
    "image/tiff": "tif",
    "image/x-icon": "ico",
}
"""What an object's name ends in, by what its bytes are."""
