"""The structure of a content: its sections, and the path of the headings above each of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

# They hold programs and styles, which nobody reads.
_NOT_TEXT = ["script", "style", "template"]


@dataclass(frozen=True, slots=True)
class Section:
    """What lies between one heading and the next."""

    path: tuple[str, ...]
    """The headings above, from the outermost to the nearest."""
    text: str
    """Markdown without the heading."""
    alone: bool
    """Whether no section lies below this one."""


def sections(markdown: str) -> Iterator[Section]:
    """The sections of a Markdown text, in order; the first one may have no heading.

    Only headings of the text itself count, not those in a quotation or a list. Source: CommonMark 0.31, section 4.
    """
    # Late: a pipeline without structured contents need not load it.
    from markdown_it import MarkdownIt

    # The text of a heading stays as it is written, so what is inside of blocks need not be parsed.
    blocks = MarkdownIt("commonmark").disable("inline").parse(markdown)
    found = [
        (int(block.tag[1:]), *block.map, blocks[place + 1].content)
        for place, block in enumerate(blocks)
        if block.type == "heading_open" and block.level == 0 and block.map
    ]
    # As the parser counts them: \r\n and \r end a line too.
    lines = markdown.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    ends = [start for _, start, _, _ in found] + [len(lines)]
    above: list[tuple[int, str]] = []
    if ends[0]:
        yield Section((), "\n".join(lines[: ends[0]]), alone=True)
    for number, (level, _, start, heading) in enumerate(found):
        above = [*(each for each in above if each[0] < level), (level, " ".join(heading.split()))]
        below = found[number + 1][0] if number + 1 < len(found) else 0
        text = "\n".join(lines[start : ends[number + 1]])
        yield Section(tuple(each for _, each in above if each), text, alone=below <= level)


def markdown_of(html: str) -> str:
    """An HTML text as Markdown, without scripts and styles.

    Elements that lie deeper in each other than Python may call itself give their text alone.
    """
    from bs4 import BeautifulSoup
    from markdownify import MarkdownConverter

    # The parser of the standard library: it reads any text, and never fails.
    soup = BeautifulSoup(html, "html.parser")
    for element in soup.find_all(_NOT_TEXT):
        element.decompose()
    convert = MarkdownConverter(
        heading_style="atx", escape_asterisks=False, escape_underscores=False, escape_misc=False
    )
    try:
        return convert.convert_soup(soup).strip()
    except RecursionError:
        return soup.get_text("\n").strip()
