"""Budgets: pure decisions, limits across runs, machines and generations, and concurrent requests within them."""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rowvec.errors import AwaitingJobs, BudgetExceeded, UsageError
from rowvec.ledger import spending
from rowvec.ledger.held_lease import Ownership, exclusively
from rowvec.ledger.lease import Lease
from rowvec.ledger.pipelines import register
from rowvec.ledger.runs import RunId
from rowvec.ledger.spending import LedgerBudget, SpendingAccount, Spent, exceeded_limit, left
from rowvec.pipeline import Pipeline
from rowvec.pipeline.embedders import Budget
from rowvec.postgres.connection import Connection, connect
from rowvec.stages import dry_run
from rowvec.vectors.fingerprint import Identity
from tests.support import paintings
from tests.support.paintings import assert_in_step, rebuild, sync
from tests.support.servers.openai_server import KEY, OpenAIServer, failing, serve

PRICE = 1000.0
"""US dollars per million tokens: a thousandth of a dollar per token, so that the figures are easy to read."""

dollars = st.floats(min_value=0, max_value=1e6, allow_nan=False)
limits = st.none() | st.floats(min_value=1e-6, max_value=1e6)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Generator[OpenAIServer]:
    """The provider, with its key in the environment."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serve(key=KEY) as opened:
        yield opened


@pytest.fixture
def lease(connection: Connection, database_url: str) -> Generator[Lease]:
    """The lease of a pipeline."""
    pipeline_id = register(
        connection, paintings.pipeline("./unused"), Identity(provider="p", model="m", dimensions=2, preprocessing=1)
    )
    with exclusively(database_url, "paintings", pipeline_id) as held:
        yield held


def pipeline(server: OpenAIServer, tmp_path: Path, budget: dict[str, float] | None, **more: Any) -> Pipeline:
    """The gallery's pipeline with four texts per request, at a price that is easy to multiply."""
    embedder = {
        "kind": "openai",
        "model": "text-embedding-3-small",
        "dimensions": 96,
        "base_url": server.url,
        "max_batch_inputs": 4,
        "concurrency": 4,
        "cost_per_million_tokens": PRICE,
        "budget": budget,
        **more,
    }
    return paintings.pipeline(str(tmp_path / "artifacts"), embedder=embedder)


def dollars_billed(server: OpenAIServer) -> float:
    """The provider's bill in US dollars."""
    return server.tokens_billed * PRICE / 1e6


@given(per_run=limits, per_month=limits, run=dollars, more=dollars, usd=dollars)
def test_the_rest_of_the_budget_may_be_spent_and_more_may_not(
    per_run: float | None, per_month: float | None, run: float, more: float, usd: float
) -> None:
    budget, spent = Budget(per_run=per_run, per_month=per_month), Spent(run=run, month=run + more)
    rest = left(budget, spent)
    if rest is None:
        assert (per_run, per_month) == (None, None)
        assert exceeded_limit(budget, spent, usd) is None
        return
    assert rest >= 0
    if exceeded_limit(budget, spent, usd) is None:
        assert usd <= rest + 1e-6
    else:
        assert usd > rest - 1e-6


@given(st.lists(st.floats(min_value=0, max_value=10), max_size=50), st.floats(min_value=0.01, max_value=100))
def test_a_sequence_of_reservations_never_exceeds_the_limit(costs: list[float], limit: float) -> None:
    budget, spent = Budget(per_run=limit), 0.0
    for usd in costs:
        if exceeded_limit(budget, Spent(run=spent), usd) is None:
            spent += usd
    assert spent <= limit + 1e-6


def test_threads_together_never_exceed_the_budget(connection: Connection, lease: Lease, direct_url: str) -> None:
    account = SpendingAccount(family="f", run_id=RunId(1), budget=Budget(per_month=0.1))
    others = SpendingAccount(family="f", run_id=RunId(2), budget=account.budget)

    def spend(budget: LedgerBudget) -> int:
        try:
            hold = budget.reserve(3)
        except BudgetExceeded:
            return 0
        budget.settle(hold, 3)
        return 3

    with connect(direct_url) as one, connect(direct_url) as two:
        owner, both = Ownership(lease, None), ((one, account), (two, others))
        budgets = [LedgerBudget(c, owner, a, lambda tokens: tokens / 1000) for c, a in both]
        with ThreadPoolExecutor(8) as threads:
            spent = sum(threads.map(spend, budgets * 40))
    assert spent == 99
    assert spending.spent_by(connection, account).month == pytest.approx(0.099)


def test_requests_in_flight_count_before_they_are_answered(connection: Connection, lease: Lease) -> None:
    account = SpendingAccount(family="f", run_id=RunId(1), budget=Budget(per_run=0.01))
    budget = LedgerBudget(connection, Ownership(lease, None), account, lambda tokens: tokens / 1000)
    holds = [budget.reserve(5), budget.reserve(5)]
    with pytest.raises(BudgetExceeded, match="per_run"):
        budget.reserve(1)
    budget.settle(holds[0], 0)
    budget.settle(holds[1], 4)
    assert spending.spent_by(connection, account).run == pytest.approx(0.004)
    assert budget.reserve(6).usd == pytest.approx(0.006)


def test_a_run_stops_before_it_exceeds_its_budget_and_the_next_continues(
    source: Connection, server: OpenAIServer, tmp_path: Path
) -> None:
    whole = dry_run.plan(pipeline(server, tmp_path, None)).cost_usd
    limited = pipeline(server, tmp_path, {"per_run": 0.6 * whole})
    planned = dry_run.plan(limited).budget
    assert planned
    assert (planned.enough, planned.left) == (False, pytest.approx(0.6 * whole))
    with pytest.raises(BudgetExceeded, match=r"embedder\.budget\.per_run.*what was paid for is kept"):
        sync(limited)
    assert 0 < dollars_billed(server) <= 0.6 * whole
    kept = source.execute("SELECT count(*) FROM rowvec.answers").fetchone()
    assert kept == (len(server.paid),)
    report = sync(limited)
    assert report.consistent
    assert max(server.paid.values()) == 1
    assert dollars_billed(server) == pytest.approx(whole)
    spent = source.execute("SELECT sum(settled_usd), sum(reserved_usd) FROM rowvec.spending").fetchone()
    assert spent == pytest.approx((whole, 0))
    assert_in_step(source)


def test_all_runs_and_generations_share_the_budget_of_the_month(
    source: Connection, server: OpenAIServer, tmp_path: Path
) -> None:
    whole = dry_run.plan(pipeline(server, tmp_path, None)).cost_usd
    sync(pipeline(server, tmp_path, None))
    larger = pipeline(server, tmp_path, {"per_month": 1.5 * whole}, dimensions=128)
    with pytest.raises(BudgetExceeded, match="per_month"):
        rebuild(larger)
    assert dollars_billed(server) <= 1.5 * whole
    source.execute("UPDATE rowvec.spending SET month = month - interval '1 month'")
    rebuild(larger)
    assert dollars_billed(server) == pytest.approx(2 * whole)


def test_refused_requests_cost_nothing(source: Connection, server: OpenAIServer, tmp_path: Path) -> None:
    whole = dry_run.plan(pipeline(server, tmp_path, None)).cost_usd
    server.add(failing(500, times=5))
    assert sync(pipeline(server, tmp_path, {"per_run": 1.0001 * whole})).consistent


def test_a_budget_without_a_price_is_an_error_before_anything_is_sent(
    source: Connection, server: OpenAIServer, tmp_path: Path
) -> None:
    unknown = pipeline(server, tmp_path, {"per_run": 1.0}, model="some-model", cost_per_million_tokens=None)
    with pytest.raises(UsageError, match="cost_per_million_tokens"):
        sync(unknown)
    assert server.requests == []


def test_jobs_are_cut_to_the_budget(source: Connection, server: OpenAIServer, tmp_path: Path) -> None:
    whole = dry_run.plan(pipeline(server, tmp_path, None)).cost_usd
    batch = {"at_least": 5, "wait_minutes": 0}
    limited = pipeline(server, tmp_path, {"per_run": 0.3 * whole}, batch=batch)
    server.batches.hold = True
    with pytest.raises(AwaitingJobs):
        sync(limited)
    reserved = source.execute("SELECT sum(reserved_usd) FROM rowvec.spending").fetchone()
    assert reserved is not None
    assert 0 < reserved[0] <= 0.3 * whole
    server.batches.hold = False
    server.batches.finish()
    report = sync(limited)
    assert report.cost_usd == pytest.approx(whole / 2)
    assert max(server.paid.values()) == 1
    assert_in_step(source)
