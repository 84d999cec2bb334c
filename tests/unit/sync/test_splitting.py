"""Splitting a text costs by its length, whatever the text looks like."""

from __future__ import annotations

import random

import pytest

from rowvec.stages.extract.splitting import Splitting

_WORDS = ("painter", "light", "of", "stone")

# The splitter tries several ends for each chunk, and counts each.
_MOST_COUNTED = 60


def _text(kind: str, characters: int) -> str:
    chance = random.Random(1)
    if kind == "digits":
        return "".join(chance.choices("0123456789", k=characters))
    if kind == "lines":
        return "a\n" * (characters // 2)
    if kind == "space":
        return f"a{' ' * characters}b"
    words = [chance.choice(_WORDS) for _ in range(characters // 5)]
    if kind == "sentences":
        words = [f"{word}." if i % 9 == 8 else word for i, word in enumerate(words)]
    return " ".join(words)


@pytest.mark.parametrize("kind", ["words", "sentences", "lines", "digits", "space"])
def test_ten_times_the_text_is_ten_times_the_work(kind: str) -> None:
    counted = 0

    def count(text: str) -> int:
        nonlocal counted
        counted += len(text)
        return (len(text) + 3) // 4

    # A real tokenizer would take a hundred times as long.
    how = Splitting(tokens=48, overlap=8, encoding="four characters", count=count)
    per_character: list[float] = []
    for characters in (15_000, 150_000):
        text, counted = _text(kind, characters), 0
        assert len(how.split(text)) > 0
        per_character.append(counted / len(text))
    assert per_character[1] <= min(_MOST_COUNTED, 1.2 * per_character[0])
