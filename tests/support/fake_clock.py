"""A clock for tests of waiting: no time passes but what is waited for, and that at once."""

from __future__ import annotations

import threading


class JumpingClock:
    """Lets waits pass at once, and remembers them."""

    def __init__(self, start: float = 0.0) -> None:
        self.time = start
        self.waits: list[float] = []

    def now(self) -> float:
        """Seconds, from ``start``."""
        return self.time

    def wait(self, seconds: float, stop: threading.Event) -> None:
        """Let them have passed."""
        del stop
        self.waits.append(seconds)
        self.time += seconds
