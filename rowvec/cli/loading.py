"""Importing while the garbage collector rests: half a million objects are made, and hardly any of them is garbage."""

from __future__ import annotations

import gc
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Generator[None]:
    """What is made in here is not looked through for garbage, now or later.

    Of the start of a command, nearly all of it imports, that is a tenth: docs/performance.md.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
