"""What a request may cost: asked before it is sent, told after, by whichever thread sends it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """Money set apart for one request."""

    usd: float
    month: date | None = None
    """The month it is counted in; None where nothing was set apart."""


class Purse(Protocol):
    """Many threads take from it at once."""

    def reserve(self, tokens: int) -> Hold:
        """Set apart what so many tokens cost. Raises ``BudgetExceeded`` where that would pass the budget."""
        ...

    def settle(self, hold: Hold, tokens: int) -> None:
        """The request was billed for so many tokens; 0 where it was refused. Never raises for a lost database."""
        ...


class Bottomless:
    """Of whoever keeps no account: a single search, a test."""

    def reserve(self, tokens: int) -> Hold:
        """See ``Purse``."""
        del tokens
        return Hold(usd=0.0)

    def settle(self, hold: Hold, tokens: int) -> None:
        """See ``Purse``."""


FREE = Bottomless()
