"""Guesses which known word was meant by one that is not known."""

from __future__ import annotations

from collections.abc import Iterable


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """``; did you mean 'title'?`` if a known word is spelt almost like this one; else empty.

    It ends a sentence, so it comes last in a message.
    """
    from difflib import get_close_matches  # late: only an error needs it

    by_lower: dict[str, str] = {}
    for one in known:
        by_lower.setdefault(one.lower(), one)
    found = get_close_matches(str(word).lower(), by_lower, n=1, cutoff=0.6)
    return f"; did you mean {by_lower[found[0]]!r}?" if found else ""
