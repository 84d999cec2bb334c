"""Prints a command's result as one JSON object or as tables, and an error as one sentence, never a traceback."""

from __future__ import annotations

import csv
import io
import json
import math
import shlex
import shutil
import sys
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from datetime import date, datetime
from pathlib import Path
from typing import Any

from rich.measure import Measurement
from rich.table import Table

from rowvec.cli.terminal import Terminal
from rowvec.runtime.display import json_text, one_line, shown

out = Terminal()
err = Terminal(stderr=True)

_gathered: list[list[dict[str, Any]]] = []


def as_typed(program: str) -> str:
    """How the user's shell calls a program of this environment: by its name if that finds it, else by its path."""
    beside = Path(sys.executable).parent / program
    return program if shutil.which(program) == str(beside) else shlex.quote(str(beside))


def emit(data: dict[str, Any], as_json: bool, for_people: Callable[[], None]) -> None:
    """Print ``data`` as one JSON object, or call ``for_people`` to print it on a terminal."""
    if as_json:
        _write_json(data)
    else:
        for_people()


def write_csv(rows: list[dict[str, Any]]) -> None:
    """Print rows as CSV with a header: unchanged into a pipe, and on a terminal with nothing that it obeys."""
    text = io.StringIO(newline="")
    if rows:
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    written = text.getvalue()
    sys.stdout.write(shown(written) if sys.stdout.isatty() else written)


def fail(message: str, as_json: bool, **more: Any) -> None:
    """Print an error: on stderr, and with ``as_json`` also as a JSON object on stdout."""
    if as_json:
        _write_json({"error": message, **more})
    err.print(f"rowvec: {one_line(message)}", style="red", soft_wrap=True)


def table(title: str, columns: Iterable[str], rows: Iterable[Iterable[object]], *, right: Iterable[str] = ()) -> None:
    """Print rows as a table; the columns named in ``right`` are numbers."""
    grid = Table(title=title, title_justify="left", header_style="bold")
    numbers = set(right)
    for column in columns:
        grid.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(_shown(value) for value in row))
    _keep_words_whole(grid)
    out.print(grid, markup=False)


@contextmanager
def gathered(as_json: bool) -> Generator[None]:
    """Within this context JSON objects are not printed; at its end they are, as one list."""
    if not as_json:
        yield
        return
    _gathered.append([])
    try:
        yield
    finally:
        _print_json(_gathered.pop())


@contextmanager
def heading(name: str, as_json: bool) -> Generator[None]:
    """Within this context all that is printed is about this file, one of several."""
    if not as_json:
        out.print(f"{name}:", style="bold", soft_wrap=True)
        yield
        return
    before = len(_gathered[-1])
    yield
    _gathered[-1][before:] = [{"file": name, **found} for found in _gathered[-1][before:]]


def _keep_words_whole(grid: Table) -> None:
    """In a narrow terminal, break lines in columns that have several words, and leave out the spaces around cells."""
    if grid.__rich_measure__(out, out.options).minimum > out.width:
        grid.padding = 0
    if grid.__rich_measure__(out, out.options).minimum <= out.width:
        for column in grid.columns:
            widths = [Measurement.get(out, out.options, cell) for cell in (column.header, *column.cells)]
            column.no_wrap = all(width.minimum == width.maximum for width in widths)


def _write_json(data: dict[str, Any]) -> None:
    if _gathered:
        _gathered[-1].append(data)
    else:
        _print_json(data)


def _print_json(data: object) -> None:
    try:
        written = json.dumps(data, default=_plain, ensure_ascii=False, allow_nan=False)
    except ValueError:
        written = json.dumps(_finite(data), default=_plain, ensure_ascii=False, allow_nan=False)
    sys.stdout.write(json_text(written) + "\n")


def _finite(value: Any) -> Any:
    """The same value with numbers that JSON does not have as the texts that Postgres has for them."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {name: _finite(inside) for name, inside in value.items()}
    return [_finite(inside) for inside in value] if isinstance(value, (list, tuple)) else value


def _shown(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.4f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _plain(value: object) -> str:
    if isinstance(value, (date, datetime)):
        return value.isoformat()
    if isinstance(value, bytes):
        return value.hex()
    return str(value)
