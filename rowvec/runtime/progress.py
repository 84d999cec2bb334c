"""Who wants to see how far a stage is: the terminal and Prefect listen, the stages only tell."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager

Listener = Callable[[str, str, int, int], None]
"""Called with stage, what of it (a batch, a phase), done, and total; from any thread."""

_listeners: list[Listener] = []


@contextmanager
def listening(listener: Listener) -> Generator[None]:
    """Have ``listener`` told of all progress in this process meanwhile."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def tell(stage: str, part: str, done: int, total: int) -> None:
    """Tell all listeners."""
    for listener in list(_listeners):
        listener(stage, part, done, total)
