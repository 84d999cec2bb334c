"""What a run remembers of its images: an image that has not changed is not read again in the same run."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from os import stat_result
from pathlib import Path

from rowvec.errors import RowError
from rowvec.runtime.home import home

Mark = tuple[int | str, ...]
"""Shows whether an image is still the one that was read: equal marks mean equal bytes."""

MARGIN_SECONDS = 3.0
"""A file that was changed less than this before it was read may change again and keep its time: file systems count in
steps of up to a second, and a kernel's clock in hundredths. Git calls such a file racily clean, and reads it."""

# File systems on which this kernel sets the time of a change, so that the margin can be trusted. A network share does
# not belong here: its server has another clock, and its client may show attributes of a minute ago. Nor does tmpfs,
# where writing through a mapping never sets the time.
_LOCAL = frozenset({"ext2", "ext3", "ext4", "xfs", "f2fs", "overlay"})
_MOUNTS = Path("/proc/self/mountinfo")

# Some 500 bytes each. The further images of a larger source are read each time.
MOST_REMEMBERED = 100_000
_RUNS = 4

_memories: dict[str, ImageMemory] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What was found at one path or URL."""

    place: str | None
    sha256: str | None = None
    media_type: str | None = None
    width: int | None = None
    height: int | None = None
    bytes: int | None = None
    modified: datetime | None = None
    error: RowError | None = None


class ImageMemory:
    """The images that one run has read in one process. The next run starts with none, and reads every image once."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[Mark, Seen]] = {}

    def known(self, place: str) -> tuple[Mark, Seen] | None:
        """What was found there, and the mark it had."""
        return self._seen.get(place)

    def remember(self, place: str, mark: Mark, seen: Seen) -> None:
        """Keep what was found for the next time the same run reads the source."""
        if place in self._seen or len(self._seen) < MOST_REMEMBERED:
            self._seen[place] = mark, seen


def run_name(run_id: int) -> str:
    """A name for a run in this process: another database may number another run alike."""
    return f"{home()}/{run_id}"


def memory_of(run: str | None) -> ImageMemory:
    """The memory of a run, by the name that ``run_name`` gives it; an empty one for None."""
    if run is None:
        return ImageMemory()
    if run not in _memories and len(_memories) >= _RUNS:
        _memories.pop(next(iter(_memories)), None)  # the oldest: of a run that failed and did not call forget_run
    return _memories.setdefault(run, ImageMemory())


def forget_run(run: str) -> None:
    """Forget the images of a run that is over."""
    _memories.pop(run, None)


def mark_of(status: stat_result) -> Mark:
    """The mark of a file: which file it is, its size, and when it was changed.

    Any user can set the time of modification; only the system sets the time of the change (``ctime``).
    """
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def is_settled(status: stat_result, began_ns: int) -> bool:
    """Whether a file was last changed long enough before its reading began, by a clock that can be trusted."""
    newest = max(status.st_ctime_ns, status.st_mtime_ns)
    return began_ns - newest > MARGIN_SECONDS * 1e9 and _is_local(status.st_dev)


def now_ns() -> int:
    """The time, by the clock that sets the times of files."""
    return time.time_ns()


@lru_cache(maxsize=64)
def _is_local(device: int) -> bool:
    """Whether a device is known to be a local disk; False if that cannot be found out."""
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        lines = _MOUNTS.read_text(errors="replace").splitlines()
    except OSError:
        return False
    fields = (line.partition(" - ") for line in lines)
    kinds = {after.split()[0] for before, _, after in fields if before.split()[2] == wanted}
    return bool(kinds) and kinds <= _LOCAL
