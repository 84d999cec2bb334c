"""Programs whose clock is set otherwise: Debian's libfaketime, unpacked without being installed."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from tests.support.servers.debian import unpacked


@contextmanager
def clock_shifted(seconds: int) -> Generator[dict[str, str]]:
    """Environment variables by which a new process has a clock that is so many seconds ahead, or behind if negative.

    Clocks that cannot be set are as they are. Skips the test if the library is neither here nor can be downloaded.
    """
    found = next(unpacked("libfaketime", "libfaketime").rglob("libfaketime.so.1"))
    # Another user, such as that of a server, may not enter the folder of the tests.
    with tempfile.TemporaryDirectory(prefix="rvclock") as folder:
        Path(folder).chmod(0o755)
        library = shutil.copy(found, folder)
        yield {"LD_PRELOAD": str(library), "FAKETIME": f"{seconds:+d}s", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
