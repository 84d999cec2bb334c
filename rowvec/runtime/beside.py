"""Work that a thread does beside a context, until the context ends."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager


@contextmanager
def beside(work: Callable[[threading.Event], None]) -> Generator[None]:
    """Run ``work`` in a thread of its own, with the context variables of the caller.

    Its event is set when the context ends, and the context waits until ``work`` has returned.
    """
    stop, context = threading.Event(), contextvars.copy_context()
    thread = threading.Thread(target=context.run, args=(work, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
