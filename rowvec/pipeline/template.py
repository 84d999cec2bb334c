"""The content template: literal text and column names in braces, and nothing else of Python's format language."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_TOKEN = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


@dataclass(frozen=True, slots=True)
class Column:
    """A place in the template that a column's text fills."""

    name: str


@dataclass(frozen=True, slots=True)
class Template:
    """A parsed template: ``"{title}\\n{body}"`` is a column, a literal, a column."""

    parts: tuple[str | Column, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns used, each once, in the order of their first use."""
        return tuple(dict.fromkeys(part.name for part in self.parts if isinstance(part, Column)))

    def render(self, row: Mapping[str, str | None]) -> str:
        """The content of a row of texts; a NULL renders as the empty string."""
        return "".join(part if isinstance(part, str) else (row[part.name] or "") for part in self.parts)


def parse(text: str) -> Template:
    """Parse a template. ``{{`` and ``}}`` stand for braces.

    Raises ``ValueError`` for an unmatched brace or an empty name. A name extends to the closing brace. It
    has no attribute, index, conversion or format code, so a template cannot reach any.
    """
    parts: list[str | Column] = []
    position = 0
    for match in _TOKEN.finditer(text):
        parts.append(text[position : match.start()])
        position = match.end()
        token = match.group()
        if token in ("{{", "}}"):
            parts.append(token[0])
        elif token in ("{", "}"):
            raise ValueError(
                f"unmatched {token!r} at character {match.start() + 1}; write {token * 2} for the character"
            )
        elif not match.group(1):
            raise ValueError(f"empty column name at character {match.start() + 1}")
        else:
            parts.append(Column(match.group(1)))
    parts.append(text[position:])
    return Template(_joined(parts))


def _joined(parts: list[str | Column]) -> tuple[str | Column, ...]:
    """Join neighbouring literals and drop empty ones."""
    joined: list[str | Column] = []
    for part in parts:
        if isinstance(part, str) and joined and isinstance(joined[-1], str):
            joined[-1] += part
        elif part != "":
            joined.append(part)
    return tuple(joined)
