"""Debian's packages of what tests run beside rowvec, unpacked without being installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from filelock import FileLock

from tests.support.waiting import PATIENCE_SECONDS

CACHE = Path(__file__).parents[3] / ".servers"
"""Servers that tests have downloaded."""


def unpacked(name: str, *packages: str) -> Path:
    """The folder with the files of these packages, downloaded once; skips the test where that cannot be done.

    ``name``: of the folder, and of what is wanted, for people.
    """
    folder, part = CACHE / name, CACHE / f"{name}.part"
    CACHE.mkdir(exist_ok=True)
    with FileLock(CACHE / f"{name}.lock", timeout=PATIENCE_SECONDS):
        if not folder.exists():
            if not (apt := shutil.which("apt-get")) or not (dpkg := shutil.which("dpkg")):
                pytest.skip(f"there is no {name} here, and no apt-get to download it")
            part.mkdir(exist_ok=True)
            got = subprocess.run(  # noqa: S603 # Debian's own program
                [apt, "download", *packages], cwd=part, capture_output=True, text=True, check=False
            )
            if got.returncode:
                pytest.skip(f"Debian's package of {name} cannot be downloaded here: {got.stderr.strip()[-200:]}")
            for package in part.glob("*.deb"):
                subprocess.run([dpkg, "-x", package, part], check=True, capture_output=True)  # noqa: S603
            part.rename(folder)
    return folder
