"""ROWVEC_HOME: the folder of everything embedded, and the Postgres that lives in it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


def home() -> Path:
    """``ROWVEC_HOME``, by default ``.rowvec`` in the current folder; made when missing."""
    folder = Path(os.environ.get("ROWVEC_HOME", ".rowvec")).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    return folder
