"""``ROWVEC_HOME``: the folder of the embedded server and of all local files."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """``ROWVEC_HOME``, by default ``.rowvec`` in the current folder; created if it does not exist."""
    folder = Path(os.environ.get("ROWVEC_HOME", ".rowvec")).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    return folder
