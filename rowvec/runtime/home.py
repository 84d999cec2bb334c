"""``ROWVEC_HOME``: the folder of the embedded server and of all local files."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from rowvec.errors import MachineError
from rowvec.runtime.private import make_folder, private_folder

_FULL = (errno.ENOSPC, errno.EDQUOT)
_CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EIO)
_TOO_MANY = (errno.EMFILE, errno.ENFILE)
_TEMPORARY = "temporary-"


def home() -> Path:
    """``ROWVEC_HOME``, by default ``.rowvec`` in the current folder; created, for its owner alone, if it is missing.

    Raises ``MachineError`` if it cannot be created, or if the default folder belongs to another user, who could read
    what is written there. A folder that ROWVEC_HOME names may belong to another user only if root has named it.
    """
    named = os.environ.get("ROWVEC_HOME")
    folder = _named_home()
    try:
        make_folder(folder)
        owner = folder.stat().st_uid
    except OSError as error:
        raise MachineError(
            f"the folder {folder} for the files of rowvec cannot be made ({error.strerror}); set ROWVEC_HOME to a "
            "folder that can be written"
        ) from error
    if owner not in (os.geteuid(), 0) and not (named and os.geteuid() == 0):
        raise MachineError(
            f"the folder {folder} belongs to another user, who could read and change what is kept there; set "
            "ROWVEC_HOME to a folder of your own"
        )
    return folder


def home_folder(*names: str) -> Path:
    """A folder in ``ROWVEC_HOME``, created if it is missing; only its owner may read it.

    Raises what ``home`` and ``rowvec.runtime.private.private_folder`` raise.
    """
    folder = home()
    for name in names:
        folder = private_folder(folder / name)
    return folder


@contextmanager
def temporary_folder(parent: Path) -> Generator[Path]:
    """A new folder in ``parent`` that is deleted when the context ends; leftovers of ended processes are deleted first.

    A process holds a lock on its folder, and the system releases the lock when the process ends, even if it is killed.
    A process id would not do: by now, or in another container, it may be the id of another process. Raises
    ``MachineError`` if the folder cannot be made.
    """
    with local_faults(), _locked(parent):
        # Sweeping takes this lock too, so no other process sees a folder that is made and not locked yet.
        _sweep(parent)
        place = Path(tempfile.mkdtemp(dir=parent, prefix=_TEMPORARY))
        locked = _try_to_lock(place)
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)
        if locked is not None:
            os.close(locked)


@contextmanager
def local_faults() -> Generator[None]:
    """Raise errors of this machine's files as ``MachineError``; others pass."""
    try:
        yield
    except OSError as error:
        found = machine_error(error)
        if found is None:
            raise
        raise found from error


def machine_error(error: OSError) -> MachineError | None:
    """What an error of this machine's files means and what to do; None if it is of something else, as of a network."""
    where = error.filename if isinstance(error.filename, str | os.PathLike) else None
    reason = error.strerror or str(error)
    if error.errno in _FULL:
        place = f"at {where}" if where else f"in ROWVEC_HOME ({_named_home()}), {_temporary_folder()} or the store"
        return MachineError(
            f"there is no room left {place} ({reason}); free some, or set ROWVEC_HOME or TMPDIR to a folder with room; "
            "what was paid for is kept"
        )
    if error.errno in _CLOSED and where:
        return MachineError(
            f"{where} cannot be used ({reason}); let rowvec's user write there, or set ROWVEC_HOME or TMPDIR to a "
            "folder that can be written"
        )
    if error.errno in _TOO_MANY:
        return MachineError(f"this process has too many files open ({reason}); raise the limit (ulimit -n)")
    if error.errno == errno.ENOENT and "temporary directory" in reason:
        return MachineError("no temporary folder can be written; set TMPDIR to a folder that can be written")
    return None


def _named_home() -> Path:
    return Path(os.environ.get("ROWVEC_HOME") or ".rowvec").absolute()


def _temporary_folder() -> str:
    try:
        return tempfile.gettempdir()
    except FileNotFoundError:
        return "TMPDIR"


def _sweep(parent: Path) -> None:
    for folder in parent.glob(f"{_TEMPORARY}*"):
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
