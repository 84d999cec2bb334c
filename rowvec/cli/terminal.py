"""The terminal: the only way to it leads through these classes, which write what a row holds and obey none of it."""

from __future__ import annotations

import json
import logging
import sys
import threading
import traceback
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import IO, Any, TextIO, cast

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from rowvec.runtime.display import json_text, one_line, shown


class Terminal(Console):
    """A rich console for texts of which none is markup: it writes no control character but its own."""

    quiet = False
    """Whether only warnings and errors are printed: what has a colour of its own."""
    as_json = False
    """Whether each print is one line with a JSON object, for a collector of logs."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, highlight=False, emoji=False)

    def print(self, *objects: Any, **how: Any) -> None:
        """As rich's, in the manner that was asked for."""
        level = _LEVELS.get(str(how.get("style")), "info")
        if self.quiet and level == "info":
            return
        if self.as_json:
            self.write_json(level, " ".join(map(str, objects)))
        else:
            super().print(*objects, **how)

    def write_json(self, level: str, message: str) -> None:
        """Write one line with a JSON object."""
        line = {"time": datetime.now(UTC).isoformat(), "level": level, "message": message}
        self.file.write(json_text(json.dumps(line, ensure_ascii=False)) + "\n")

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


_LEVELS = {"red": "error", "yellow": "warning"}
_STYLES = {logging.INFO: None, logging.WARNING: "yellow", logging.ERROR: "red"}


class Logs(logging.Handler):
    """Writes what rowvec's own modules log to a terminal."""

    def __init__(self, terminal: Terminal) -> None:
        super().__init__()
        self._terminal = terminal

    def emit(self, record: logging.LogRecord) -> None:
        """See ``logging.Handler``."""
        style = _STYLES.get(record.levelno, "red")
        self._terminal.print(f"rowvec: {one_line(record.getMessage())}", style=style, soft_wrap=True)


_silent = threading.Event()


def silence_others() -> None:
    """From now on, only a ``Terminal`` writes to the standard error."""
    _silent.set()


class _Shown:
    """A stream for all that others print: warnings, Prefect's log, tracebacks, the usage of a command."""

    def __init__(self, inner: TextIO, terminal: Terminal) -> None:
        self.inner = inner
        self._terminal = terminal
        self._begun = ""
        """A line whose end is not written yet."""
        self._lock = threading.Lock()

    def write(self, text: str) -> int:
        if _silent.is_set():
            return len(text)
        if self._terminal.as_json:
            with self._lock:
                *lines, self._begun = (self._begun + text).split("\n")
                self._write_lines(lines)
        else:
            self.inner.write(shown(text))
        return len(text)

    def end_line(self) -> None:
        """Write what was begun."""
        with self._lock:
            self._write_lines([self._begun])
            self._begun = ""

    def _write_lines(self, lines: Iterable[str]) -> None:
        for line in lines:
            if line.strip():
                self._terminal.write_json("warning", line.rstrip())

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def isatty(self) -> bool:
        """False: nobody should write colours here."""
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


@contextmanager
def stderr_shown(terminal: Terminal) -> Generator[None]:
    """Within this context, what anybody writes to ``sys.stderr`` holds no character that a terminal obeys.

    ``terminal`` is that of the standard error. If it writes JSON, each line of others is an object too.
    """
    before, all_of_it = sys.stderr, _Shown(sys.stderr, terminal)
    sys.stderr = cast("TextIO", all_of_it)
    try:
        yield
    except Exception:
        if not terminal.as_json:
            raise
        traceback.print_exc()
        sys.exit(1)
    finally:
        all_of_it.end_line()
        sys.stderr = before
