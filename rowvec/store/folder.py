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

from rowvec.errors import ArtifactCorrupt
from rowvec.store.protocol import checked_name, checked_prefix, disk_faults, file_checksum, settle

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
            if target.exists() and not settle(self, name, file_checksum(target), sha256):
                return False
            target.parent.mkdir(parents=True, exist_ok=True)
            with _copy(opened, target, sha256, f"the file for {name}") as whole:
                try:
                    # Unlike a rename, a link never replaces the object of another writer.
                    os.link(whole, target)
                except FileExistsError:
                    if not settle(self, name, file_checksum(target), sha256):
                        return False
                    whole.replace(target)
            self._make_durable(target)
            _sweep(target.parent.glob(_PASSING))
        return True

    def put_bytes(self, name: str, content: bytes, sha256: str) -> bool:
        """See ``Store.put_bytes``."""
        return self._put(name, partial(io.BytesIO, content), sha256)

    def get(self, name: str, into: Path, sha256: str) -> None:
        """See ``Store.get``."""
        source = self._path(name)
        with disk_faults(into, _REMEDY):
            if not source.is_file():
                raise ArtifactCorrupt(f"{self.location(name)} is not in the store; rowvec audit --repair fixes this")
            with _copy(partial(source.open, "rb"), into, sha256, self.location(name)) as whole:
                whole.replace(into)

    def names(self, prefix: str = "") -> Iterator[str]:
        """See ``Store.names``."""
        with disk_faults(self._folder(prefix), _REMEDY):
            _sweep(self._folder(prefix).rglob(_PASSING))
            yield from sorted(name for name, path in self._listed(prefix) if path.is_file())

    def sizes(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """See ``Store.sizes``."""
        with disk_faults(self._folder(prefix), _REMEDY):
            for name, path in self._listed(prefix):
                # A file that is deleted during the listing is left out.
                with suppress(FileNotFoundError):
                    status = path.stat()
                    if stat.S_ISREG(status.st_mode):
                        yield name, status.st_size

    def checksum(self, name: str) -> str | None:
        """See ``Store.checksum``."""
        path = self._path(name)
        with disk_faults(path, _REMEDY):
            try:
                return file_checksum(path)
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
        return self.root / checked_name(name)

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
