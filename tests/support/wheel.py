"""The wheel of this tree, built without network from a copy, so that no stale ``build/`` folder gets into it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = {"rowvec": "rowvec", "flows": "rowvec_flows", "tasks": "rowvec_tasks"}
"""Each folder of the tree that is installed, and the import name it is installed under."""
_FILES = ("pyproject.toml", "setup.py", "README.md", "LICENSE")


def build(folder: Path) -> Path:
    """Build the wheel in this empty folder, with the setuptools of this environment; returns its path."""
    tree = folder / "tree"
    for name in FOLDERS:
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in _FILES:
        shutil.copy(ROOT / name, tree / name)
    pip(sys.executable, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, tree)
    (wheel,) = folder.glob("*.whl")
    return wheel


def pip(python: str | Path, *arguments: object) -> None:
    """Run pip of this environment for the environment of ``python``; it must not ask an index."""
    done = subprocess.run(  # noqa: S603 # our own interpreter
        [sys.executable, "-m", "pip", "--quiet", "--python", str(python), *map(str, arguments), "--no-index"],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
