"""What a command prints: one JSON object, or tables for people; errors as one sentence and never a traceback."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from datetime import date, datetime
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

out = Console()
err = Console(stderr=True)


def emit(data: dict[str, Any], as_json: bool, for_people: Callable[[], None]) -> None:
    """Print ``data`` as one JSON object, or call what prints it for people."""
    if as_json:
        sys.stdout.write(json.dumps(data, default=_plain, ensure_ascii=False) + "\n")
    else:
        for_people()


def fail(message: str, as_json: bool, **more: Any) -> None:
    """Say what went wrong: on stderr for people, and as JSON where that was asked for."""
    if as_json:
        sys.stdout.write(json.dumps({"error": message, **more}, default=_plain, ensure_ascii=False) + "\n")
    err.print(f"rowvec: {message}", style="red", markup=False, highlight=False, soft_wrap=True)


def table(title: str, columns: Iterable[str], rows: Iterable[Iterable[object]], *, right: Iterable[str] = ()) -> None:
    """Print rows as a table; the columns named in ``right`` are numbers."""
    grid = Table(title=title, title_justify="left", header_style="bold")
    numbers = set(right)
    for column in columns:
        grid.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(_shown(value) for value in row))
    out.print(grid, markup=False)


def _shown(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.4f}"
    # Rich reads some brackets as markup; a row's text is only text.
    return escape(f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value))


def _plain(value: object) -> str:
    if isinstance(value, (date, datetime)):
        return value.isoformat()
    if isinstance(value, bytes):
        return value.hex()
    return str(value)
