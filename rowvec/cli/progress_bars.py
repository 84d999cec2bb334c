"""Progress on stderr: bars on a terminal, plain lines if the output is piped."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from rowvec.cli.terminal import Terminal
from rowvec.runtime.progress import listening

# The log of a long run should stay readable: one line per part at its end, and until then one in so many seconds.
_LINE_SECONDS = 10.0


@contextmanager
def shown_progress(console: Terminal) -> Generator[None]:
    """Within this context, show the progress of everything that runs in this process."""
    if console.is_terminal and not console.quiet and not console.as_json:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=console, transient=True) as bars, listening(_Bars(bars)):
            yield
    else:
        with listening(_Lines(console)):
            yield


class _Bars:
    """One bar per part."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._tasks: dict[tuple[str, str], TaskID] = {}
        self._lock = threading.Lock()

    def __call__(self, stage: str, part: str, done: int, total: int) -> None:
        with self._lock:
            if (stage, part) not in self._tasks:
                self._tasks[stage, part] = self._bars.add_task(f"{stage} {part}", total=total)
            self._bars.update(self._tasks[stage, part], completed=done, total=total, visible=done < total)


class _Lines:
    """One line per part at its end, and one every ten seconds until then."""

    def __init__(self, console: Terminal) -> None:
        self._console = console
        self._last: dict[tuple[str, str], float] = {}
        self._lock = threading.Lock()

    def __call__(self, stage: str, part: str, done: int, total: int) -> None:
        now = time.monotonic()
        with self._lock:
            last = self._last.setdefault((stage, part), now)
            if done < total and now - last < _LINE_SECONDS:
                return
            self._last[stage, part] = now
            progress = "done" if done == total == 1 else f"{done:,} of {total:,}"
            self._console.print(f"{stage} {part}: {progress}", highlight=False, markup=False)
