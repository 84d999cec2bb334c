"""Where the images of a source are, and how one is read: from one folder and nothing outside it, or from blobs."""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from rowvec.errors import RowError, SourceError
from rowvec.pipeline.sources import ImagesSource
from rowvec.sources.images.file import ImageFile, Places, is_url, too_many_bytes
from rowvec.sources.images.seen import Mark, is_settled, mark_of, now_ns

_MISSING = frozenset({errno.ENOENT, errno.ENOTDIR})
# Errors that are about this one file. Any other error (a slow mount, a failing disk) says nothing about the image, and
# must not reject its row: the merge would delete the row's vector.
_ITS_OWN = {
    errno.EACCES: "may not be read by this user",
    errno.EPERM: "may not be read by this user",
    errno.ELOOP: "is a symbolic link that leads nowhere",
    errno.ENAMETOOLONG: "has a longer name than a file can have",
}
_KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}


def open_places(source: ImagesSource, *, listed: bool = True) -> Places:
    """Where the images of a source are; its references must be resolved.

    ``listed``: this machine lists them, so a folder must be there.

    Raises ``SourceError`` if the folder is not there, or the URL names no container.
    """
    root = source.images or _root_of(source.path)
    if is_url(root):
        from rowvec.sources.images.blobs import BlobPlaces  # late: Azure's client takes half a second to import

        return BlobPlaces.at(root, source.credential, source.max_bytes)
    if listed and not Path(root).is_dir():
        raise SourceError(
            f"the folder of images {root} is not there; check source.{'images' if source.images else 'path'}"
        )
    return FolderPlaces(Path(root).resolve(), source.max_bytes)


@dataclass(frozen=True, slots=True)
class FolderPlaces:
    """See ``Places``. Symbolic links are followed if their target is in the folder too."""

    root: Path
    max_bytes: int

    def read(self, written: str) -> ImageFile:
        """See ``Places``."""
        path, began = self._inside(written), now_ns()
        try:
            # Check the kind of file before opening it, because opening a pipe or a device may have an effect; and
            # again afterwards, because it may be another file by then.
            _check_is_file(path.lstat(), written)
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            with os.fdopen(descriptor, "rb") as file:
                status = os.fstat(descriptor)
                _check_is_file(status, written)
                too_large = status.st_size > self.max_bytes
                content = b"" if too_large else file.read(self.max_bytes + 1)
        except OSError as error:
            is_link = error.errno in _MISSING and (self.root / written).is_symlink()
            raise _explained(error, written, path, is_link=is_link) from None
        if too_large or len(content) > self.max_bytes:
            raise too_many_bytes(written, max(status.st_size, len(content)), self.max_bytes)
        # The mark was taken before the reading: an edit during it, or later, gives the file another mark.
        mark = mark_of(status) if is_settled(status, began) else None
        return ImageFile(content, datetime.fromtimestamp(status.st_mtime, UTC), mark)

    def mark(self, written: str) -> Mark | None:
        """See ``Places``."""
        try:
            return mark_of(self._inside(written).lstat())
        except (OSError, RowError):
            return None  # read() reports the reason

    def _inside(self, written: str) -> Path:
        if "\0" in written:
            raise RowError("unreadable", "the path of the image holds a NUL character")
        if ".." in Path(written).parts:
            raise RowError("unreadable", f"{written} has .. in it, and images are only read in {self.root}")
        try:
            path = (self.root / written).resolve()
        except (OSError, RuntimeError):  # Python 3.11 and 3.13 raise different errors for links in a circle
            raise RowError("unreadable", f"{written} is a symbolic link that leads nowhere") from None
        if not path.is_relative_to(self.root):
            raise RowError("unreadable", f"{written} leads out of {self.root}, where images are read")
        return path


def _root_of(path: str) -> str:
    """The folder of images itself, or the folder that the table of images is in; of a glob, all before a wildcard."""
    if is_url(path):
        return path.rpartition("/")[0]
    if Path(path).is_dir():
        return path
    parts = Path(path).parts[:-1]
    fixed = next((i for i, part in enumerate(parts) if any(c in part for c in "*?[")), len(parts))
    return str(Path(*parts[:fixed])) if fixed else "."


def _check_is_file(status: os.stat_result, written: str) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "a device")
        raise RowError("unreadable", f"{written} is {kind} and not a file")


def _explained(error: OSError, written: str, path: Path, *, is_link: bool) -> RowError | SourceError:
    if error.errno in _MISSING:
        is_gone = (
            f"{written} is a symbolic link to a file that is not there" if is_link else f"there is no file {written}"
        )
        return RowError("missing_image", is_gone)
    if error.errno in _ITS_OWN:
        return RowError("unreadable", f"{written} {_ITS_OWN[error.errno]}")
    return SourceError(f"{path} cannot be read at the moment: {error.strerror}; nothing was changed, run again")
