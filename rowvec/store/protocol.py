"""The protocol of a blob store, and the rules for the names of its objects."""

from __future__ import annotations

import errno
import hashlib
import logging
import re
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

from rowvec.errors import ArtifactCorrupt, StoreRefused, StoreUnavailable

# Azure allows 1,024 characters per name, the prefix of the URL included.
_MAX_NAME = 900


# Names that both stores accept: no empty segment, none that begins with a dot (so no "..", and space for a folder's own
# temporary files), and no character with a meaning in a file system or a URL.
_NAME = re.compile(r"(?:[A-Za-z0-9_=-][A-Za-z0-9_.=-]*)(?:/[A-Za-z0-9_=-][A-Za-z0-9_.=-]*)*")


# Errors that a person must fix; any other (a slow mount, an interrupted call) may not come again.
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

    Every method raises ``StoreUnavailable`` if the same call may succeed later, and ``StoreRefused`` if it cannot:
    permission, account, a name with ``..``. No message holds a credential.
    """

    def put(self, name: str, path: Path, sha256: str) -> bool:
        """Keep a file under a new name; returns ``False`` if the same bytes exist under it.

        An object appears complete or not at all. If the name holds the sha256, other bytes under it are corrupt and are
        replaced. Raises ``ArtifactCorrupt`` if other bytes exist under any other kind of name, or if the file does not
        agree with ``sha256``.
        """
        ...

    def put_bytes(self, name: str, content: bytes, sha256: str) -> bool:
        """Like ``put``, for bytes in memory that are probably new: they are sent without a look at the store first."""
        ...

    def get(self, name: str, into: Path, sha256: str, *, at_most: int) -> None:
        """Fetch an object into a file, which appears complete or not at all.

        Raises ``ArtifactCorrupt`` if the object is missing, its bytes do not agree with ``sha256``, or it has more than
        ``at_most`` bytes, which is what the caller knows of its size: somebody else may have put a larger one there.
        """
        ...

    def opened(self, name: str) -> AbstractContextManager[BinaryIO]:
        """An object as a file in which the reader moves about: only what is read is fetched; no checksum is checked.

        Raises ``ArtifactCorrupt`` if the object is missing.
        """
        ...

    def replace(self, name: str, content: bytes) -> None:
        """Keep bytes under a name in place of those that it had: a reader sees the old ones or the new ones.

        Only for objects that nothing refers to by their content.
        """
        ...

    def names(self, prefix: str = "") -> Iterator[str]:
        """The names that begin with ``prefix``, sorted."""
        ...

    def sizes(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """The names that begin with ``prefix``, in any order, each with its size in bytes; by listing, without a
        request per object.
        """
        ...

    def checksum(self, name: str) -> str | None:
        """The sha256 of an object, or ``None`` if there is no such object.

        A folder reads the file. A blob has it in its metadata; the bytes are read if the metadata is missing, or if the
        service has another MD5 than the recorded one.
        """
        ...

    def delete(self, name: str) -> None:
        """Delete an object; a missing object is not an error."""
        ...

    def location(self, name: str) -> str:
        """The path or URL of the object for a person, never with a credential."""
        ...


def checked_name(name: str) -> str:
    """Return the name. Raises ``StoreRefused`` if it is not a valid name of an object in the store."""
    if len(name) > _MAX_NAME or not _NAME.fullmatch(name):
        raise StoreRefused(
            f"{name[:100]!r} is not a valid name for an object; use letters, digits and . _ = - in segments "
            f"separated by /, none of which begins with a dot, and at most {_MAX_NAME} characters"
        )
    return name


def checked_prefix(prefix: str) -> str:
    """Return the prefix: part of a name, a folder's name with its slash, or empty. Raises like ``checked_name``."""
    if prefix:
        checked_name(prefix.removesuffix("/"))
    return prefix


def settle(store: Store, name: str, stored: str, sha256: str) -> bool:
    """Whether an existing object with this checksum must be replaced. Raises like ``Store.put``."""
    if stored == sha256:
        return False
    if sha256 not in name:
        raise ArtifactCorrupt(
            f"{store.location(name)} already exists with other bytes than it should have; rowvec audit names its "
            "rows, and if you delete it, the next sync writes it again"
        )
    logger.warning("%s was corrupt in the store and is written again", store.location(name))
    return True


def check_size(store: Store, name: str, size: int, at_most: int) -> None:
    """Raise ``ArtifactCorrupt`` if an object that is being read has more bytes than it may have."""
    if size > at_most:
        raise ArtifactCorrupt(f"{store.location(name)} has more than the {at_most:,} bytes that it may have")


@contextmanager
def disk_faults(path: Path, remedy: str) -> Generator[None]:
    """Raise errors of the file system at ``path`` as ``StoreRefused`` or ``StoreUnavailable``."""
    try:
        yield
    except OSError as error:
        where, reason = error.filename or path, error.strerror or type(error).__name__
        if error.errno in _FATAL:
            raise StoreRefused(f"{where} cannot be used: {reason}; {remedy}") from error
        raise StoreUnavailable(f"{where} cannot be used at the moment: {reason}") from error


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
"""The suffix of an object's name, by media type."""
