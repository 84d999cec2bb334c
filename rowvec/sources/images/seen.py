"""What a run has seen of its images: one that nobody has touched since is not read again in the same run."""

from __future__ import annotations

import os
import time
from functools import lru_cache
from os import stat_result
from pathlib import Path
from typing import TYPE_CHECKING

from rowvec.runtime.home import home

if TYPE_CHECKING:  # what is remembered is made by what remembers it
    pass
from dataclasses import dataclass
from datetime import datetime

from rowvec.errors import RowError

Mark = tuple[int | str, ...]
"""What tells whether an image is still the one that was read; equal marks, equal bytes."""

MARGIN_SECONDS = 3.0
"""A file changed so short a time before it was read may change again without a new time: file systems count in steps
of up to a second, and a kernel's clock in hundredths. Git calls such a file racily clean, and reads it, as we do."""

# Where the time of a change is this kernel's own, so that the margin means something: not on a network share, whose
# server has another clock, and whose client may show attributes of a minute ago; not on tmpfs, where writing through a
# mapping never sets it.
_LOCAL = frozenset({"ext2", "ext3", "ext4", "xfs", "f2fs", "overlay"})
_MOUNTS = Path("/proc/self/mountinfo")

# Some 500 bytes each. Of a larger source the rest is read each time.
MOST_REMEMBERED = 100_000
_RUNS = 4

_memories: dict[str, ImageMemory] = {}


class ImageMemory:
    """Of one run, in one process. Nothing is carried to another run: that one reads every image once."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[Mark, Seen]] = {}

    def known(self, place: str) -> tuple[Mark, Seen] | None:
        """What was seen there, and the mark it had."""
        return self._seen.get(place)

    def remember(self, place: str, mark: Mark, seen: Seen) -> None:
        """Keep it for the next reading of the same run."""
        if place in self._seen or len(self._seen) < MOST_REMEMBERED:
            self._seen[place] = mark, seen


def run_name(run_id: int) -> str:
    """What a run is called here: the numbers of runs are a database's own."""
    return f"{home()}/{run_id}"


def memory_of(run: str | None) -> ImageMemory:
    """The memory of a run, by a name of its own; an empty one for who belongs to none."""
    if run is None:
        return ImageMemory()
    if run not in _memories and len(_memories) >= _RUNS:
        _memories.pop(next(iter(_memories)), None)  # of a run that failed, and did not say that it was over
    return _memories.setdefault(run, ImageMemory())


def forget_run(run: str) -> None:
    """A run that is over remembers nothing."""
    _memories.pop(run, None)


def mark_of(status: stat_result) -> Mark:
    """Of a file: which one it is, its size, and when it was changed.

    The time of modification can be set by anybody; that of the change (``ctime``) by nobody but the system.
    """
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def is_settled(status: stat_result, began_ns: int) -> bool:
    """Whether a file was last changed long enough before its reading began, by a clock that can be trusted."""
    newest = max(status.st_ctime_ns, status.st_mtime_ns)
    return began_ns - newest > MARGIN_SECONDS * 1e9 and _is_local(status.st_dev)


def now_ns() -> int:
    """The clock that files are marked by."""
    return time.time_ns()


@lru_cache(maxsize=64)
def _is_local(device: int) -> bool:
    """Whether a device is known for a local disk; what cannot be found out is not."""
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        lines = _MOUNTS.read_text(errors="replace").splitlines()
    except OSError:
        return False
    parted = (line.partition(" - ") for line in lines)
    kinds = {after.split()[0] for before, _, after in parted if before.split()[2] == wanted}
    return bool(kinds) and kinds <= _LOCAL


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What was found in one place."""

    place: str | None
    sha256: str | None = None
    media_type: str | None = None
    width: int | None = None
    height: int | None = None
    bytes: int | None = None
    modified: datetime | None = None
    error: RowError | None = None
