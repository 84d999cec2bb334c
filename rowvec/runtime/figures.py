"""Counts and amounts as a person reads them."""

from __future__ import annotations

# Below this, four decimals would say that it was free.
_LEAST_SHOWN_USD = 0.0001


def counted(number: int, nouns: str) -> str:
    """``counted(1, "texts")`` is "1 text", ``counted(2_000, "texts")`` is "2,000 texts"."""
    return f"{number:,} {nouns.removesuffix('s') if number == 1 else nouns}"


def dollars(amount: float) -> str:
    """An amount in US dollars with four decimals; one that would look like zero is "less than $0.0001"."""
    if 0 < amount < _LEAST_SHOWN_USD:
        return f"less than ${_LEAST_SHOWN_USD}"
    return f"${amount:,.4f}" if amount else "$0"
