"""Folders and files that only their owner may read: they hold rows, vectors and logs, whatever the umask is."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from rowvec.errors import MachineError

FOLDER_MODE = 0o700
FILE_MODE = 0o600

_OTHERS = 0o077

_lock = threading.Lock()
_users: list[int] = []
"""The umask that each context of ``private_files`` has found; the first one is the user's own."""


@contextmanager
def private_files() -> Generator[None]:
    """Within this context, no file or folder that this process creates can be read by other users.

    The umask belongs to the whole process: of several contexts at once, in threads, the last one to end restores it.
    """
    with _lock:
        _users.append(os.umask(_OTHERS))
    try:
        yield
    finally:
        with _lock:
            own = _users[0]
            _users.pop()
            if not _users:
                os.umask(own)


@contextmanager
def files_for_others() -> Generator[None]:
    """Within this context, new files have the mode that the user's umask gives: for pages and pictures to show."""
    with _lock:
        before = os.umask(_users[0]) if _users else None
    try:
        yield
    finally:
        if before is not None:
            os.umask(before)


def private_folder(folder: Path) -> Path:
    """Make a folder, and the missing ones above it, for its owner alone; one that exists is closed to all others.

    A name that leads elsewhere is not followed, because another user may have put it there. Raises ``MachineError`` if
    the folder is a link or belongs to another user, and ``OSError`` if it cannot be made.
    """
    make_folder(folder)
    descriptor = _open_folder(folder)
    try:
        found = os.fstat(descriptor)
        if not is_trusted(found.st_uid, folder.parent):
            raise MachineError(
                f"the folder {folder} belongs to another user; rowvec does not keep rows there: delete it, or set "
                "ROWVEC_HOME to a folder of your own"
            )
        if found.st_mode & _OTHERS and found.st_uid == os.geteuid():
            os.fchmod(descriptor, FOLDER_MODE)
    finally:
        os.close(descriptor)
    return folder


def make_folder(folder: Path) -> None:
    """Make a folder and the missing ones above it for their owner alone; one that exists is left as it is."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(mode=FOLDER_MODE, exist_ok=True)


def is_trusted(owner: int, above: Path) -> bool:
    """Whether files of this user may be used in the folder ``above``: they are ours, the system's, or of its owner.

    The folder of another user is trusted only if it was chosen, which ``rowvec.runtime.home`` checks.
    """
    return owner in (os.geteuid(), 0, above.stat().st_uid)


def is_private(folder: Path, owner: int) -> bool:
    """Whether this is a folder, and no link, that only this user may enter."""
    try:
        found = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == owner and not found.st_mode & _OTHERS


def open_private(path: Path, mode: str) -> IO[bytes]:
    """Open a file for writing (``wb``, ``xb``, ``ab``); a new one is for its owner alone. A link is not followed."""
    return open(path, mode, opener=_opener)  # Path.open takes no opener


def write_private(path: Path, text: str) -> None:
    """Write a text file that only its owner may read."""
    with open_private(path, "wb") as file:
        file.write(text.encode())


def _opener(path: str, flags: int) -> int:
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, FILE_MODE)
    found = os.fstat(descriptor)
    if found.st_mode & _OTHERS and found.st_uid == os.geteuid() and stat.S_ISREG(found.st_mode):
        os.fchmod(descriptor, FILE_MODE)
    return descriptor


def _open_folder(folder: Path) -> int:
    try:
        return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except NotADirectoryError:
        raise MachineError(
            f"{folder} is a link or a file; rowvec needs a folder of its own there: delete it, or set ROWVEC_HOME to "
            "another folder"
        ) from None
