"""What a pipeline spends on its embedder, recorded in the ledger so that all runs and machines share one budget."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass

from rowvec.embedders.budget import Reservation
from rowvec.errors import BudgetExceeded, RetriableError, UsageError
from rowvec.ledger.held_lease import Ownership
from rowvec.ledger.lease import Lease, owned
from rowvec.ledger.runs import RunId
from rowvec.pipeline import Pipeline
from rowvec.pipeline.embedders import AzureVisionEmbedder, Budget, OpenAIImagesEmbedder, PaidEmbedder
from rowvec.pipeline.model import IMAGE_EMBEDDERS
from rowvec.postgres.connection import Connection, lost_connections_are_retriable, open_target
from rowvec.postgres.locks import LockSpace
from rowvec.postgres.queries import query

# In US dollars: a sum of floats may exceed its limit by a rounding error.
_TOLERANCE = 1e-9

_NO_LIMIT = Budget()

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """US dollars that are spent, or reserved for requests that are under way."""

    run: float = 0.0
    month: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SpendingAccount:
    """Who spends, and the limits."""

    family: str
    """The pipeline's name: its generations share one budget."""
    run_id: RunId
    budget: Budget


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetOutlook:
    """A pipeline's budget before a run, in US dollars."""

    per_run: float | None
    """The limit of one run; None if there is none."""
    per_month: float | None
    """The limit of a month (UTC); None if there is none."""
    spent_this_month: float
    left: float
    """What may still be spent."""
    enough: bool
    """Whether that covers what the run is expected to cost."""


def account_of(pipeline: Pipeline, run_id: RunId) -> SpendingAccount:
    """The account that a run of the pipeline spends from."""
    return SpendingAccount(family=pipeline.name.split(".", maxsplit=1)[0], run_id=run_id, budget=budget_of(pipeline))


def budget_of(pipeline: Pipeline) -> Budget:
    """The pipeline's budget; one without limits if the pipeline has none or its embedder costs nothing."""
    embedder = pipeline.embedder
    if isinstance(embedder, (PaidEmbedder, AzureVisionEmbedder, OpenAIImagesEmbedder)):
        return embedder.budget or _NO_LIMIT
    return _NO_LIMIT


def left(budget: Budget, spent: Spent) -> float | None:
    """US dollars that may still be spent, at least 0; None if there is no limit."""
    rooms = [
        limit - gone
        for limit, gone in ((budget.per_run, spent.run), (budget.per_month, spent.month))
        if limit is not None
    ]
    return max(0.0, min(rooms)) if rooms else None


def exceeded_limit(budget: Budget, spent: Spent, usd: float) -> str | None:
    """The key of the limit that ``usd`` more US dollars would exceed; None if they exceed none."""
    limits = {"per_run": (budget.per_run, spent.run), "per_month": (budget.per_month, spent.month)}
    for key, (limit, gone) in limits.items():
        if limit is not None and gone + usd > limit + _TOLERANCE:
            return key
    return None


def spent_by(connection: Connection, account: SpendingAccount) -> Spent:
    """What the run and its pipeline have spent so far, reservations included."""
    values = {"family": account.family, "run_id": account.run_id}
    row = connection.execute(query("spending", "spent"), values).fetchone()
    return Spent(run=row[0], month=row[1]) if row else Spent()


def reserve(connection: Connection, account: SpendingAccount, usd: float) -> Reservation:
    """Reserve ``usd`` US dollars, inside the caller's transaction if there is one.

    Raises ``BudgetExceeded`` if that would exceed a limit.
    """
    with connection.transaction():
        connection.execute(query("spending", "lock"), {"space": LockSpace.SPENDING, "family": account.family})
        spent = spent_by(connection, account)
        key = exceeded_limit(account.budget, spent, usd)
        if key is not None:
            raise _exceeded(account, spent, usd, key)
        values = {"family": account.family, "run_id": account.run_id, "usd": usd}
        row = connection.execute(query("spending", "reserve"), values).fetchone()
        return Reservation(usd=usd, month=row[0] if row else None)


def settle(connection: Connection, family: str, run_id: int, hold: Reservation, usd: float) -> None:
    """Replace a reservation by the actual cost of ``usd`` US dollars."""
    values = {"family": family, "run_id": run_id, "month": hold.month, "held": hold.usd, "usd": usd}
    connection.execute(query("spending", "settle"), values)


def check_price(pipeline: Pipeline, usd_a_million: float) -> None:
    """Raise ``UsageError`` if the pipeline has a budget and no price is configured or known."""
    if left(budget_of(pipeline), Spent()) is not None and not usd_a_million:
        raise UsageError(
            f"embedder.budget needs the price of {pipeline.embedder.model}: set embedder."
            + (
                "cost_per_thousand_transactions"
                if pipeline.embedder.kind in IMAGE_EMBEDDERS
                else "cost_per_million_tokens"
            )
        )


def outlook(budget: Budget, spent: Spent, cost: float) -> BudgetOutlook | None:
    """What is left of the budget, and whether it covers ``cost`` US dollars; None if there is no limit."""
    rest = left(budget, spent)
    if rest is None:
        return None
    return BudgetOutlook(
        per_run=budget.per_run,
        per_month=budget.per_month,
        spent_this_month=spent.month,
        left=rest,
        enough=cost <= rest + _TOLERANCE,
    )


class LedgerBudget:
    """A ``BudgetHold`` over the ledger, for the threads of one embedder, which share its connection."""

    def __init__(
        self, connection: Connection, ownership: Ownership, account: SpendingAccount, cost: Callable[[int], float]
    ) -> None:
        self._connection = connection
        self._ownership = ownership
        self._account = account
        self._cost = cost
        self._lock = threading.Lock()
        self._limited = left(account.budget, Spent()) is not None

    def reserve(self, tokens: int) -> Reservation:
        """See ``BudgetHold``. No request begins unless the run's lease is held: raises ``LeaseLost``.

        Without a limit, the process that renews the lease makes no query before a request.
        """
        self._ownership.ensure()
        if not self._limited:
            return Reservation(usd=0.0)
        with self._lock, lost_connections_are_retriable(), owned(self._connection, self._ownership.lease):
            return reserve(self._connection, self._account, self._cost(tokens))

    def settle(self, hold: Reservation, tokens: int) -> None:
        """See ``BudgetHold``. If the database is unreachable, the reservation stays, so that no paid answer is lost.

        The cost of an answer is recorded even if the lease was lost meanwhile.
        """
        usd = self._cost(tokens)
        if not usd and not hold.usd:
            return
        try:
            with self._lock, lost_connections_are_retriable():
                settle(self._connection, self._account.family, self._account.run_id, hold, usd)
        except RetriableError as error:
            logger.warning("$%.6f stay reserved in rowvec.spending: %s", hold.usd, error)


@contextmanager
def open_budget(
    pipeline: Pipeline, run_id: RunId, lease: Lease, cost: Callable[[int], float]
) -> Generator[LedgerBudget]:
    """The budget of a run, on a connection of its own; the pipeline's references must be resolved."""
    check_price(pipeline, cost(1_000_000))
    with open_target(pipeline, "rowvec budget") as connection:
        yield LedgerBudget(connection, Ownership(lease, pipeline.target.url), account_of(pipeline, run_id), cost)


def _exceeded(account: SpendingAccount, spent: Spent, usd: float, key: str) -> BudgetExceeded:
    spent_usd, limit, period = (
        (spent.run, account.budget.per_run, "this run")
        if key == "per_run"
        else (spent.month, account.budget.per_month, "this month")
    )
    when = "run again" if key == "per_run" else "wait for the next month (UTC)"
    return BudgetExceeded(
        f"{account.family} has spent ${spent_usd:,.6f} of the ${limit or 0.0:,.6f} of {period}, and the next request "
        f"would cost about ${usd:,.6f}: {when}, or raise embedder.budget.{key} and run again; what was paid for is kept"
    )
