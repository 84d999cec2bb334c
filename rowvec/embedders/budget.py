"""The budget that a thread reserves from before it sends a request, and settles with after the answer."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """Money reserved for one request."""

    usd: float
    month: date | None = None
    """The month whose budget it counts against; None if nothing was reserved."""


class BudgetHold(Protocol):
    """Holds back money of a budget for requests under way. Many threads use it at once."""

    def reserve(self, tokens: int) -> Reservation:
        """Reserve the price of this many tokens. Raises ``BudgetExceeded`` if that would exceed the budget."""
        ...

    def settle(self, hold: Reservation, tokens: int) -> None:
        """Replace the reservation by what was billed: this many tokens, 0 if the provider refused the request.

        Never raises if the connection to the database is lost.
        """
        ...


class Unlimited:
    """A budget without a limit, for single searches and tests."""

    def reserve(self, tokens: int) -> Reservation:
        """See ``BudgetHold``."""
        del tokens
        return Reservation(usd=0.0)

    def settle(self, hold: Reservation, tokens: int) -> None:
        """See ``BudgetHold``."""


UNLIMITED = Unlimited()
