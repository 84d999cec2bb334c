"""Counts and amounts as a person reads them."""

from __future__ import annotations

# Below this, four decimals would say that it was free.
_LEAST_SHOWN_USD = 0.0001


def counted(number: int, many: str, one: str | None = None) -> str:
    """A number with what it counts: "1 text", "2,000 texts".

    ``one`` is for words that lose more than their last letter: ``counted(1, "rows have", "row has")`` is "1 row has".
    """
    return f"{number:,} {(one or many.removesuffix('s')) if number == 1 else many}"


def dollars(amount: float) -> str:
    """An amount in US dollars with four decimals; one that would look like zero is "less than $0.0001"."""
    if 0 < amount < _LEAST_SHOWN_USD:
        return f"less than ${_LEAST_SHOWN_USD}"
    return f"${amount:,.4f}" if amount else "$0"
