"""Programs whose clock is set otherwise: Debian's libfaketime, unpacked without being installed."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest
from filelock import FileLock

from tests.support.servers.pgbouncer import CACHE
from tests.support.waiting import PATIENCE_SECONDS


@contextmanager
def clock_shifted(seconds: int) -> Generator[dict[str, str]]:
    """Environment variables by which a new process has a clock that is so many seconds ahead, or behind if negative.

    Clocks that cannot be set are as they are. Skips the test if the library is neither here nor can be downloaded.
    """
    found = _library()
    # Another user, such as that of a server, may not enter the folder of the tests.
    with tempfile.TemporaryDirectory(prefix="rvclock") as folder:
        Path(folder).chmod(0o755)
        library = shutil.copy(found, folder)
        yield {"LD_PRELOAD": str(library), "FAKETIME": f"{seconds:+d}s", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}


def _library() -> Path:
    unpacked = CACHE / "libfaketime"
    CACHE.mkdir(exist_ok=True)
    with FileLock(CACHE / "libfaketime.lock", timeout=PATIENCE_SECONDS):
        if not unpacked.exists():
            if not (apt := shutil.which("apt-get")) or not (dpkg := shutil.which("dpkg")):
                pytest.skip("there is no apt-get to download libfaketime")
            part = CACHE / "libfaketime.part"
            part.mkdir(exist_ok=True)
            got = subprocess.run(  # noqa: S603 # Debian's own program
                [apt, "download", "libfaketime"], cwd=part, capture_output=True, text=True, check=False
            )
            if got.returncode:
                pytest.skip(f"Debian's package of libfaketime cannot be downloaded here: {got.stderr.strip()[-200:]}")
            for package in part.glob("*.deb"):
                subprocess.run([dpkg, "-x", package, part], check=True, capture_output=True)  # noqa: S603
            part.rename(unpacked)
    return next(unpacked.rglob("libfaketime.so.1"))
