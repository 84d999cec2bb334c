"""Labelled questions: texts to search for, and the rows that answer each of them, from a file of JSON lines."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rowvec.errors import UsageError
from rowvec.runtime.display import one_line
from rowvec.runtime.figures import counted

Key = tuple[str, ...]
"""The key of a row of the source, each column as text."""

_FORM = '{"question": "...", "relevant": [KEY, ...]}'


@dataclass(frozen=True, slots=True)
class Labelled:
    """A question, and how well rows answer it."""

    question: str
    grades: dict[Key, float]
    """Above zero; of rows that are not in it, zero."""


def read_labelled(path: Path, columns: int) -> list[Labelled]:
    """The questions of a file. ``columns``: how many columns the key of a row has.

    A line is ``{"question": TEXT, "relevant": [KEY, ...]}``, with ``{"key": KEY, "grade": NUMBER}`` for a row that
    answers better or worse than others; a key of several columns is a list. Empty lines are skipped. Raises
    ``UsageError``, which names the line, for a line of another form, and for a file without questions.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UsageError(
            f"the questions {path} cannot be read ({reason}); name a file with one JSON object per line"
        ) from None
    found = [_labelled(f"{path}:{number}", line, columns) for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise UsageError(f"{path} has no questions; write one per line, as {_FORM}")
    return found


def _labelled(where: str, line: str, columns: int) -> Labelled:
    try:
        written: Any = json.loads(line)
    except (ValueError, RecursionError):
        raise UsageError(f"{where} is not JSON: write {_FORM}") from None
    question = written.get("question") if isinstance(written, dict) else None
    relevant = written.get("relevant") if isinstance(written, dict) else None
    if not isinstance(question, str) or not question.strip() or not isinstance(relevant, list) or not relevant:
        raise UsageError(f"{where} is no labelled question: write {_FORM}, with at least one key")
    grades = dict(_graded(where, one, columns) for one in relevant)
    return Labelled(question=question, grades=grades)


def _graded(where: str, written: Any, columns: int) -> tuple[Key, float]:
    key, grade = (written.get("key"), written.get("grade", 1)) if isinstance(written, dict) else (written, 1)
    parts = key if isinstance(key, list) else [key]
    if len(parts) != columns or not all(isinstance(part, (str, int, float)) for part in parts):
        raise UsageError(
            f"{where}: {one_line(json.dumps(key))} is no key; the rows have a key of {counted(columns, 'columns')}"
        )
    if not isinstance(grade, (int, float)) or isinstance(grade, bool) or not 0 < grade <= _MOST_GRADE:
        raise UsageError(f"{where}: the grade {one_line(json.dumps(grade))} is not from above 0 to {_MOST_GRADE}")
    return tuple(map(str, parts)), float(grade)


# A gain is 2 to the power of the grade, less one.
_MOST_GRADE = 10
