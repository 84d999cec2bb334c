"""A local folder as blob store: the default, for one machine or a shared mount."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from rowvec.errors import ArtifactCorrupt, StoreRefused
from rowvec.store.protocol import check_size, checked_name, checked_prefix, disk_faults, file_checksum, settle

_BLOCK = 1 << 20
_REMEDY = "fix that, or set artifacts.url"
# Older temporary files are from killed writers: no writer needs a day for a file, or writes nothing for a day.
_PASSING = ".*.part"
_PASSING_SECONDS = 24 * 60 * 60

_Opened = Callable[[], BinaryIO]


@dataclass(frozen=True, slots=True)
class FolderStore:
    """See ``rowvec.store.protocol.Store``. The first object that is put creates the folder."""

    root: Path

    def put(self, name: str, path: Path, sha256: str) -> bool:
        """See ``Store.put``."""
        return self._put(name, partial(path.open, "rb"), sha256)

    def _put(self, name: str, opened: _Opened, sha256: str) -> bool:
        target = self._path(name)
        with disk_faults(target, _REMEDY):
            if _is_file(target) and not settle(self, name, file_checksum(target), sha256):
                return False
            target.parent.mkdir(parents=True, exist_ok=True)
            with _copy(opened, target, sha256, f"the file for {name}") as whole:
                try:
                    # Unlike a rename, a link never replaces the object of another writer.
                    os.link(whole, target)
                except FileExistsError:
                    # What is no file holds no bytes of ours; a rename replaces a link, and not what it leads to.
                    if not settle(self, name, file_checksum(target) if _is_file(target) else "", sha256):
                        return False
                    whole.replace(target)
            self._make_durable(target)
            _sweep(target.parent.glob(_PASSING))
        return True

    def put_bytes(self, name: str, content: bytes, sha256: str) -> bool:
        """See ``Store.put_bytes``."""
        return self._put(name, partial(io.BytesIO, content), sha256)

    def get(self, name: str, into: Path, sha256: str, *, at_most: int) -> None:
        """See ``Store.get``."""
        source = self._path(name)
        with disk_faults(into, _REMEDY):
            if not _is_file(source):
                raise ArtifactCorrupt(f"{self.location(name)} is not in the store; rowvec audit --repair fixes this")
            check_size(self, name, source.stat().st_size, at_most)
            with _copy(partial(source.open, "rb"), into, sha256, self.location(name)) as whole:
                whole.replace(into)

    @contextmanager
    def opened(self, name: str) -> Generator[BinaryIO]:
        """See ``Store.opened``."""
        path = self._path(name)
        with disk_faults(path, _REMEDY):
            if not _is_file(path):
                raise ArtifactCorrupt(f"{self.location(name)} is not in the store; rowvec audit --repair fixes this")
            with path.open("rb") as file:
                yield file

    def replace(self, name: str, content: bytes) -> None:
        """See ``Store.replace``."""
        target = self._path(name)
        with disk_faults(target, _REMEDY):
            target.parent.mkdir(parents=True, exist_ok=True)
            sha256 = hashlib.sha256(content).hexdigest()
            with _copy(partial(io.BytesIO, content), target, sha256, f"the file for {name}") as whole:
                whole.replace(target)
            self._make_durable(target)

    def names(self, prefix: str = "") -> Iterator[str]:
        """See ``Store.names``."""
        with disk_faults(self._folder(prefix), _REMEDY):
            _sweep(self._folder(prefix).rglob(_PASSING))
            yield from sorted(name for name, path in self._listed(prefix) if _is_file(path))

    def sizes(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """See ``Store.sizes``."""
        with disk_faults(self._folder(prefix), _REMEDY):
            for name, path in self._listed(prefix):
                # A file that is deleted during the listing is left out.
                with suppress(FileNotFoundError):
                    status = path.lstat()
                    if stat.S_ISREG(status.st_mode):
                        yield name, status.st_size

    def checksum(self, name: str) -> str | None:
        """See ``Store.checksum``."""
        path = self._path(name)
        with disk_faults(path, _REMEDY):
            try:
                return file_checksum(path) if _is_file(path) else None
            except FileNotFoundError:
                return None

    def delete(self, name: str) -> None:
        """See ``Store.delete``."""
        path = self._path(name)
        with disk_faults(path, _REMEDY):
            path.unlink(missing_ok=True)

    def location(self, name: str) -> str:
        """See ``Store.location``."""
        return str(self._path(name))

    def _folder(self, prefix: str) -> Path:
        return self.root / checked_prefix(prefix).rpartition("/")[0]

    def _listed(self, prefix: str) -> Iterator[tuple[str, Path]]:
        for path in self._folder(prefix).rglob("*"):
            name = path.relative_to(self.root).as_posix()
            # Names that begin with a dot are temporary files of writers.
            if name.startswith(prefix) and "/." not in f"/{name}":
                yield name, path

    def _path(self, name: str) -> Path:
        """The path of an object. Raises ``StoreRefused`` if a symbolic link in the store leads out of it."""
        path = self.root / checked_name(name)
        folder, root = os.path.realpath(path.parent), os.path.realpath(self.root)
        if os.path.commonpath([folder, root]) != root:
            raise StoreRefused(f"{path.parent} is a symbolic link that leads out of {self.root}; put a folder there")
        return path

    def _make_durable(self, target: Path) -> None:
        """Sync the folder and every folder that was created for it: only then does a name survive a power cut."""
        top = self.root.parent
        for folder in target.parents:
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            if folder == top:
                break


def _is_file(path: Path) -> bool:
    """Whether it is a file, and not a link to one, nor a pipe that never ends."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def _sweep(leftovers: Iterable[Path]) -> None:
    """Delete temporary files that killed writers left. Permission errors are ignored: the caller wants something
    else.
    """
    before = time.time() - _PASSING_SECONDS
    for path in leftovers:
        with suppress(OSError):
            if path.lstat().st_mtime < before:
                path.unlink()


@contextmanager
def _copy(opened: _Opened, target: Path, sha256: str, what: str) -> Generator[Path]:
    """A synced and checked copy next to ``target`` under a temporary name; it is deleted afterwards."""
    passing = target.parent / f".{uuid4().hex}.part"
    digest = hashlib.sha256()
    try:
        with opened() as reader, passing.open("xb") as writer:
            while block := reader.read(_BLOCK):
                digest.update(block)
                writer.write(block)
            writer.flush()
            os.fsync(writer.fileno())
        if digest.hexdigest() != sha256:
            raise ArtifactCorrupt(f"{what} does not agree with its checksum {sha256[:12]}: it was cut or changed")
        yield passing
    finally:
        passing.unlink(missing_ok=True)
