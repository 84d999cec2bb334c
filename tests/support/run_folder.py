"""What all processes of one test run share: a folder, and a pipe that is closed when the run ends, however it ends."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

_FOLDER = "ROWVEC_TESTS_FOLDER"
"""The environment variable by which the processes of the run know the folder."""
_PREFIX = "rvrun"
_LIFE = "life"
_MEMORY = Path("/dev/shm")  # noqa: S108 # a file system, under which each folder of ours has a random name
_ROOM = 4 << 30
_ours: list[int] = []
"""The writing end of the pipe, in the process that has begun the run."""


def begin() -> None:
    """Make the folder, in the first process of the run, and delete those of runs that were killed."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        return
    for place in {_MEMORY, Path(tempfile.gettempdir())}:
        for life in place.glob(f"{_PREFIX}*/{_LIFE}"):
            _delete_if_left(life)
    # In memory if there is plenty of it: databases of tests are copied and deleted all the time. The path is short,
    # because the path of a Unix socket may have 107 bytes.
    in_memory = _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free > _ROOM
    made = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=_MEMORY if in_memory else None))
    # A Postgres or a pooler may run as another user.
    made.chmod(0o711)
    os.mkfifo(made / "new", 0o600)
    _ours.append(os.open(made / "new", os.O_RDWR))
    fcntl.flock(_ours[0], fcntl.LOCK_EX)
    (made / "new").rename(made / _LIFE)
    os.environ[_FOLDER] = str(made)


def _delete_if_left(life: Path) -> None:
    with suppress(OSError):
        opened = os.open(life, os.O_RDWR)
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # A Postgres that was left there ends when it misses its files.
            shutil.rmtree(life.parent, ignore_errors=True)
        finally:
            os.close(opened)


def end() -> None:
    """End the servers that read the pipe, and delete the folder, in the process that has begun the run."""
    for writing in _ours:
        os.close(writing)
        shutil.rmtree(os.environ.pop(_FOLDER), ignore_errors=True)
    _ours.clear()


def run_folder() -> Path:
    """The folder of this run."""
    return Path(os.environ[_FOLDER])


def open_until_the_end() -> int:
    """The reading end of the pipe: a process that has it as its standard input reads its end when the run ends."""
    return os.open(run_folder() / _LIFE, os.O_RDONLY)


def short_folder(prefix: str) -> Path:
    """A new folder with a short path."""
    return Path(tempfile.mkdtemp(prefix=prefix, dir=os.environ.get(_FOLDER)))
