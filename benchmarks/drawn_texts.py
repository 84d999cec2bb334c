"""Made-up texts in any number: no two are equal, twenty are of each kind. That is hard for an index, not for a hash."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

_BLOCK_ROWS = 10_000
_ROWS_A_KIND = 20
# Each row has the words of its kind, and some words of its own.
_COMMON, _OWN = 12, 10
_TEXT = (
    "dawn river oil canvas portrait winter harbour gold leaf study woman window garden storm marble "
    "bronze silver wood engraving angel battle village bridge castle child church cliff cloud coast crown "
    "dance desert door dream field fire flower forest fruit horse house hunt island king lake lamp letter "
    "light market mask meadow mirror moon mountain music night ocean orchard palace path queen rain road "
    "roof ruin sailor saint shadow sheep ship shore snow soldier spring square star stone summer sun "
    "sword table temple tower town train tree valley wave wheel wind "
)
WORDS = _TEXT.split()


def copied_texts(rows: int) -> Iterator[str]:
    """Blocks of lines for COPY: id, title, body, author and year; title and body have about 145 bytes together.

    The lines are always the same for the same number of rows.
    """
    random = np.random.default_rng(7)
    kinds = random.integers(len(WORDS), size=(max(1, rows // _ROWS_A_KIND), _COMMON))
    for first in range(0, rows, _BLOCK_ROWS):
        n = min(_BLOCK_ROWS, rows - first)
        own = random.integers(len(WORDS), size=(n, _OWN))
        chosen = np.concatenate([kinds[random.integers(len(kinds), size=n)], own], axis=1).tolist()
        yield "".join(_line(first + i, [WORDS[word] for word in words]) for i, words in enumerate(chosen))


def _line(key: int, words: list[str]) -> str:
    return f"{key}\t{words[0]} {key}\t{' '.join(words)}\tauthor {key % 977}\t{1900 + key % 100}\n"
