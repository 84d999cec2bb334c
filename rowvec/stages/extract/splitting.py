"""Long contents in chunks: as many tokens as are allowed, cut at paragraphs, lines, sentences or words, with overlap.

The splitter fills one chunk after the other, so one more word at the top of a text would move every cut below it, and
the whole text would be paid for again. Therefore a long text is first cut into sections, at places that depend only on
the text around them, and each section is split by itself: an edit changes only the chunks of its own section.

In Markdown and HTML no chunk crosses a heading, and each begins with the path of the headings above it.
"""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from itertools import chain
from typing import Literal

from semantic_text_splitter import MarkdownSplitter, TextSplitter

from rowvec.errors import UsageError
from rowvec.pipeline.embedders import Embedder, PaidEmbedder
from rowvec.pipeline.sources import Chunks
from rowvec.stages.extract.headings import Section, markdown_of, sections

_LIBRARY = "semantic-text-splitter"

# Increased whenever our own part of the splitting changes.
_REVISION = 1

# A token has about four characters. Sections have at least three chunks, and six on average. With fewer, more chunks
# would be short, as the last one of a section is; with more, an edit would cost more.
_REACH_CHARS = 3 * 4

# Characters before and behind a place from which its random number is computed.
_CONTEXT = 24

# Text without any place to cut (endless hexadecimal digits) is cut by length, as the splitter takes a whole section.
_LONGEST_REACHES = 16

_STOPS = ".!?\u2026\u3002\uff01\uff1f"
"""What ends a sentence; also the ellipsis, and the marks of Chinese and Japanese, which no space follows."""

_PLACE = re.compile("\\s+|(?<=[\u3002\uff01\uff1f])(?=\\S)")

# How many characters to look back, per token of overlap, for the words that a chunk repeats.
_LONGEST_TOKEN = 8

_WORD = re.compile(r"\S+")

_BELOW = " > "
"""What stands between two headings of a path."""

# What reads the structure of a text, for each format, as its distributions are called.
_READERS = {"markdown": ["markdown-it-py"], "html": ["markdown-it-py", "markdownify", "beautifulsoup4"]}


@dataclass(frozen=True, slots=True, kw_only=True)
class Splitting:
    """How contents become chunks; equal digests give equal chunks."""

    tokens: int
    overlap: int
    encoding: str
    """The name of the tokenizer that counts."""
    count: Callable[[str], int]
    """Tokens of a text."""
    format: Literal["text", "markdown", "html"] = "text"
    _splitter: TextSplitter | MarkdownSplitter = field(init=False, repr=False, compare=False)
    _narrower: dict[int, Splitting] = field(default_factory=dict["int", "Splitting"], init=False, compare=False)
    """As this one, by the tokens of a piece."""

    def __post_init__(self) -> None:
        kind = TextSplitter if self.format == "text" else MarkdownSplitter
        # A frozen dataclass sets its derived fields this way.
        object.__setattr__(self, "_splitter", kind.from_callback(self.count, self.tokens - self.overlap))

    def digest(self) -> bytes:
        """32 bytes over everything, except the text, that the chunks of a text depend on.

        This includes the library's version: after an upgrade all contents are split again, and only chunks that came
        out differently are paid for.
        """
        parts: list[object] = [_LIBRARY, version(_LIBRARY), _REVISION, self.tokens, self.overlap, self.encoding]
        if self.format != "text":
            parts += [self.format, *map(version, _READERS[self.format])]
        return hashlib.sha256(json.dumps(parts).encode()).digest()

    def split(self, text: str) -> list[str]:
        """The chunks of a text that is not blank, in order, each of at most ``tokens`` tokens.

        Together they hold the whole text, except white space between them; of HTML, what a reader of the page sees.
        """
        if self.format == "text":
            made = self._pieces(text)
        else:
            markdown = markdown_of(text) if self.format == "html" else text
            made = [piece for section in sections(markdown) for piece in self._under_its_path(section)]
        # A text of nothing but Unicode white space (a no-break space) is content here, and becomes one chunk.
        return made or [text]

    def _under_its_path(self, section: Section) -> Iterator[str]:
        """The chunks of a section, each with as much of the path as fits into a half of it, the nearest headings."""
        path = section.path
        while path and self.count(_BELOW.join(path)) > self.tokens // 2:
            path = path[1:]
        if section.path and not path:
            # The heading alone is too long to be repeated, so it is text.
            yield from self._pieces(f"{section.path[-1]}\n\n{section.text}")
        elif not path:
            yield from self._pieces(section.text)
        elif section.text.strip():
            head = _BELOW.join(path) + "\n\n"
            # Where the head and a piece meet, one token may become two.
            narrower = self._with_less_room(self.count(head) + 1)
            yield from (head + piece for piece in narrower._pieces(section.text))
        elif section.alone:
            yield _BELOW.join(path)

    def _with_less_room(self, tokens: int) -> Splitting:
        """As this one, with so many tokens less for each piece."""
        room = max(1, self.tokens - tokens)
        if room not in self._narrower:
            self._narrower[room] = replace(self, tokens=room, overlap=min(self.overlap, room // 2))
        return self._narrower[room]

    def _pieces(self, text: str) -> list[str]:
        made: list[str] = []
        before = 0
        for start, end in self._spans(text):
            made.append(text[self._first_word(text, before, start, end) : end])
            before = start
        return made

    def _spans(self, text: str) -> Iterator[tuple[int, int]]:
        """Where each chunk, without the words it repeats, begins and ends."""
        start, reach = 0, self.tokens * _REACH_CHARS
        for end in chain(_cuts(text, reach), [len(text)]):
            for first in range(start, end, _LONGEST_REACHES * reach):
                section = text[first : min(end, first + _LONGEST_REACHES * reach)]
                for offset, chunk in self._splitter.chunk_indices(section):
                    yield first + offset, first + offset + len(chunk)
            start = end

    def _first_word(self, text: str, before: int, start: int, end: int) -> int:
        """Where a chunk begins, with the words it repeats of the chunk before: at most ``overlap`` tokens.

        The splitter's own overlap consists of whole paragraphs if it cuts at paragraphs, so there is mostly none.
        """
        if not (start and self.overlap):
            return start
        # A word that is cut in two because the search goes no further back does not count.
        earliest = max(before, start - _LONGEST_TOKEN * self.overlap)
        words = [earliest + found.start() for found in _WORD.finditer(text[earliest:start])]
        if words and words[0] == earliest > before:
            del words[0]
        at = bisect_left(words, True, key=lambda word: self.count(text[word:start].rstrip()) <= self.overlap)
        fitting = (word for word in words[at:] if self.count(text[word:end]) <= self.tokens)
        return next(fitting, start)


def splitting(chunks: Chunks, embedder: Embedder) -> Splitting:
    """How a pipeline splits; tokens are counted the way its embedder counts them.

    Raises ``UsageError`` if the prefix and a whole chunk are more than the embedder takes.
    """
    name, count = _counter(embedder)
    if isinstance(embedder, PaidEmbedder) and embedder.document_prefix:
        prefix = count(embedder.document_prefix)
        if chunks.tokens + prefix > embedder.max_input_tokens:
            raise UsageError(
                f"source.chunks.tokens, {chunks.tokens:,}, and the {prefix:,} of embedder.document_prefix are more "
                f"than embedder.max_input_tokens, {embedder.max_input_tokens:,}; lower source.chunks.tokens to "
                f"{embedder.max_input_tokens - prefix:,}"
            )
    return Splitting(tokens=chunks.tokens, overlap=chunks.overlap, encoding=name, count=count, format=chunks.format)


def _counter(embedder: Embedder) -> tuple[str, Callable[[str], int]]:
    # The imports are late: each loads a vocabulary, and a run needs only one of them.
    if embedder.kind == "local":
        from rowvec.embedders.wordllama import load_model, pieces_of

        tokenizer = load_model(embedder.dimensions).tokenizer
        return embedder.model, lambda text: sum(
            len(tokenizer.encode(piece, add_special_tokens=False).ids) for piece in pieces_of(text)
        )
    from rowvec.embedders.provider import tokens

    return tokens.ENCODING, tokens.count


def _cuts(text: str, reach: int) -> Iterator[int]:
    """Places between sections, ascending, at least ``reach`` characters from each other and from both ends.

    The text is cut at a place if it is the best within ``reach`` on both sides. Memory: the places within two reaches.
    """
    best: deque[tuple[int, int]] = deque()
    """Place and cost, each cost less than all behind it: the first place is the best of the window."""
    undecided: deque[tuple[int, int]] = deque()

    def decided(seen: int) -> Iterator[int]:
        while undecided and undecided[0][0] + reach < seen:
            place, _ = undecided.popleft()
            while best[0][0] < place - reach:
                best.popleft()
            if best[0][0] == place and reach <= place <= len(text) - reach:
                yield place

    for place, cost in _places(text) if len(text) > 2 * reach else ():
        yield from decided(place)
        while best and best[-1][1] > cost:
            best.pop()
        best.append((place, cost))
        undecided.append((place, cost))
    yield from decided(len(text) + reach + 1)


def _places(text: str) -> Iterator[tuple[int, int]]:
    """Where a text may be cut, ascending, each place with its cost: the less, the better.

    The end of a paragraph is better than the end of a line, which is better than the end of a sentence, which is better
    than a space. Among equals a random number decides, which is computed from the text around the place.
    """
    for found in _PLACE.finditer(text):
        place, gap = found.end(), found.group()
        lines = gap.count("\n")
        rank = 0 if lines > 1 else 1 if lines else 2 if text[found.start() - 1] in _STOPS else 3
        around = text[max(0, place - _CONTEXT) : place + _CONTEXT]
        yield place, rank << 32 | zlib.crc32(around.encode("utf-8", "surrogatepass"))
