"""Texts of rows, files, stores and servers on their way to a person: they are shown, and never obeyed.

A terminal obeys control characters (colours, titles, links, the clipboard), and turns the direction of writing around;
a Markdown page fetches images and follows links. Each has one function here, which the boundary to it calls.
"""

from __future__ import annotations

import re

# C0 without tab and line feed, DEL and C1; marks, embeddings, overrides and isolates of direction; separators of lines
# and paragraphs; invisible formatting that is deprecated; halves of surrogate pairs, which no terminal can be sent.
_OBEYED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]"
)
_BREAKS = re.compile(r"\s*[\n\t]\s*")
# What has a meaning anywhere in a line: CommonMark, and the links of GitHub's Markdown that need no brackets.
_MARKDOWN = re.compile(r"[\\`*_{}\[\]<>|~$&#@]|(?<=\w):(?=//)|(?<=www)\.", re.IGNORECASE)
# What makes a line a list, a heading or a rule.
_AT_BEGIN = re.compile(r"^(\s*\d*)([-+=.)])")


def shown(text: str) -> str:
    """The text with every character that a terminal would obey written as its code; lines stay lines."""
    return _OBEYED.sub(_code, text)


def one_line(text: str) -> str:
    """As ``shown``, in one line: a line break in a row must not begin a sentence that looks like ours."""
    return shown(_BREAKS.sub(" ", text))


def json_text(text: str) -> str:
    """JSON that means the same, with the characters that a terminal would obey as escapes."""
    return _OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def plain(text: str) -> str:
    """Markdown that is displayed as this text, in one line, and does nothing else."""
    escaped = _MARKDOWN.sub(lambda found: f"\\{found[0]}", one_line(text))
    return _AT_BEGIN.sub(lambda found: f"{found[1]}\\{found[2]}", escaped)


def _code(found: re.Match[str]) -> str:
    number = ord(found[0])
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"
