"""Waiting for what another process or thread does."""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE_SECONDS = 180
"""How long a test waits for what takes a moment on a quiet machine. Less would fail on a machine with much to do."""


def wait_for(holds: Callable[[], object], seconds: float = PATIENCE_SECONDS, every: float = 0.02) -> None:
    """Return once ``holds`` returns something true, asked ``every`` so many seconds; fails after ``seconds``."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"it did not happen within {seconds} s"
        time.sleep(every)
