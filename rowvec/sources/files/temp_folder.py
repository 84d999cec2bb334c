"""A temporary folder for reading a source; the next one deletes the folders that killed processes left."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

_PREFIX = "source-"


@contextmanager
def temporary_folder(parent: Path) -> Generator[Path]:
    """A new folder in ``parent`` that is deleted when the context ends; leftovers of ended processes are deleted first.

    A process holds a lock on its folder, and the system releases the lock when the process ends, even if it is killed.
    A process id would not do: by now, or in another container, it may be the id of another process.
    """
    with _locked(parent):
        # Sweeping takes this lock too, so no other process sees a folder that is made and not locked yet.
        _sweep(parent)
        place = Path(tempfile.mkdtemp(dir=parent, prefix=_PREFIX))
        locked = _try_to_lock(place)
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)
        if locked is not None:
            os.close(locked)


def _sweep(parent: Path) -> None:
    for folder in parent.glob(f"{_PREFIX}*"):
        locked = _try_to_lock(folder)
        if locked is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(locked)


@contextmanager
def _locked(folder: Path) -> Generator[None]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _try_to_lock(folder: Path) -> int | None:
    """A descriptor with the folder's lock; None if another process has the lock, or the folder is gone."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
