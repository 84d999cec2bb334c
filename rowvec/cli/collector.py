"""Imports with Python's garbage collector paused: they create half a million objects, nearly all of them permanent."""

from __future__ import annotations

import gc
from collections.abc import Generator
from contextlib import contextmanager

# As many new objects, instead of Python's 700, before the collector looks at them: a command of some seconds would call
# it a hundred times, in 0.04 s.
_NEW_OBJECTS = 20_000


@contextmanager
def collector_paused() -> Generator[None]:
    """Within this context no garbage is collected, and objects that are created in it are never examined afterwards.

    This saves a tenth of the start of a command, which is nearly all imports: docs/explanation/performance.md.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.set_threshold(_NEW_OBJECTS, *gc.get_threshold()[1:])
        gc.enable()
