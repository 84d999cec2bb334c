"""A folder for what a source takes on disk while it is read; one that a killed process left goes with the next."""

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
def passing_folder(parent: Path) -> Generator[Path]:
    """A new folder in ``parent``, gone with the context; those that nobody holds any more are gone before it.

    Its holder has a lock on it, which the system takes away with the process, in whatever way that ends: a process id
    would mean another process by now, or in another container.
    """
    with _locked(parent):
        # Whoever sweeps has this lock too, and so never sees a folder that is made and not held yet.
        _sweep(parent)
        place = Path(tempfile.mkdtemp(dir=parent, prefix=_PREFIX))
        held = _try_to_hold(place)
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)
        if held is not None:
            os.close(held)


def _sweep(parent: Path) -> None:
    for folder in parent.glob(f"{_PREFIX}*"):
        held = _try_to_hold(folder)
        if held is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(held)


@contextmanager
def _locked(folder: Path) -> Generator[None]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _try_to_hold(folder: Path) -> int | None:
    """A descriptor with the folder's lock; None where somebody else has it, or it is gone by now."""
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
