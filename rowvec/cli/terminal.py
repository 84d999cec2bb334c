"""The terminal: the only way to it leads through these classes, which write what a row holds and obey none of it."""

from __future__ import annotations

import sys
import threading
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import IO, Any, TextIO, cast

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from rowvec.runtime.display import shown


class Terminal(Console):
    """A rich console for texts of which none is markup: it writes no control character but its own."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, highlight=False, emoji=False)

    @property
    def file(self) -> IO[str]:
        """Where it writes; past ``_Shown``, which would show the console's own colours as well."""
        found = super().file
        return cast("IO[str]", found.inner) if isinstance(found, _Shown) else found

    @file.setter
    def file(self, new_file: IO[str]) -> None:
        self._file = new_file

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The segments of something printed, before lines are measured and padded."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(shown(segment.text), segment.style)


_silent = threading.Event()


def silence_others() -> None:
    """From now on, only a ``Terminal`` writes to the standard error."""
    _silent.set()


class _Shown:
    """A stream for all that others print: warnings, logs, tracebacks, the usage of a command."""

    def __init__(self, inner: TextIO) -> None:
        self.inner = inner

    def write(self, text: str) -> int:
        if not _silent.is_set():
            self.inner.write(shown(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def isatty(self) -> bool:
        """False: nobody should write colours here."""
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


@contextmanager
def stderr_shown() -> Generator[None]:
    """Within this context, what anybody writes to ``sys.stderr`` holds no character that a terminal obeys."""
    before = sys.stderr
    sys.stderr = cast("TextIO", _Shown(before))
    try:
        yield
    finally:
        sys.stderr = before
