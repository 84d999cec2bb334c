"""Progress callbacks: stages report how far they are, and the terminal and Prefect subscribe."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager

Listener = Callable[[str, str, int, int], None]
"""Called from any thread with the stage, its part (a batch or a phase), the count done, and the total."""

_listeners: list[Listener] = []


@contextmanager
def listening(listener: Listener) -> Generator[None]:
    """Call ``listener`` for all progress in this process while the context is open."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


@contextmanager
def under_way(stage: str, part: str) -> Generator[None]:
    """Report to all listeners that something begins whose parts nobody counts, and that it is done."""
    tell(stage, part, 0, 1)
    yield
    tell(stage, part, 1, 1)


def tell(stage: str, part: str, done: int, total: int) -> None:
    """Report progress to all listeners."""
    for listener in list(_listeners):
        listener(stage, part, done, total)
