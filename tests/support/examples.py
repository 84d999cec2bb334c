"""How many cases a property test tries: few and fixed ones in ``make test``, many and new ones in ``make soak``."""

from __future__ import annotations

import os

PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "fixed")
"""``fixed`` or ``random``; ``make soak`` sets the latter."""

_TIMES_MORE = 20


def examples(fixed: int) -> int:
    """``max_examples`` of a test whose cases cost much or resemble each other: ``fixed`` of them in ``make test``."""
    return fixed if PROFILE == "fixed" else _TIMES_MORE * fixed
