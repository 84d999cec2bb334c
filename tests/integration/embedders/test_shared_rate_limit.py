"""Processes that share one account: they use all of its limit and no more, even if one of them is killed."""

from __future__ import annotations

import logging
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg.errors import LockNotAvailable

from rowvec.embedders import open_embedder
from rowvec.embedders.rate_limit.leases import LEASE_SECONDS, Holder, leave, open_pace_ledger, renew
from rowvec.embedders.rate_limit.limiter import Paced, RateLimitAccount
from rowvec.embedders.rate_limit.shared import shared_pace
from rowvec.embedders.rate_limit.shares import Grant
from rowvec.errors import DatabaseUnavailable
from rowvec.pipeline import Pipeline
from rowvec.pipeline.embedders import AzureVisionEmbedder, OpenAIImagesEmbedder
from rowvec.postgres.connection import Connection, connect
from tests.support import paintings
from tests.support.paced_process import Asking, asking, config
from tests.support.servers import azure_vision
from tests.support.servers.openai_server import KEY, OpenAIServer, rate_limited, serve
from tests.support.waiting import wait_for

LEASES = "SELECT granted FROM rowvec.pace_leases WHERE expires_at > clock_timestamp()"
ACCOUNT = RateLimitAccount(address="https://user:word@host/v1", model="m", secret=KEY)
LIMIT = 600
A_SECOND = LIMIT / 60
PATIENCE_SECONDS = 90


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Generator[OpenAIServer]:
    """A provider that enforces its limit; a burst of five seconds' worth of requests is allowed."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serve(key=KEY, requests_per_minute=LIMIT, burst_seconds=5.0, latency=0.02) as opened:
        yield opened


def granted(connection: Connection) -> list[float]:
    """The shares of all leases that have not expired."""
    return [row[0] for row in connection.execute(LEASES).fetchall()]


def settings(server: OpenAIServer, database: str | None, seconds: float, **embedder: Any) -> dict[str, Any]:
    """The settings of a process that sends one text per request."""
    common = {"base_url": server.url, "api_key": KEY, "max_batch_inputs": 1, "concurrency": 8}
    return {"embedder": {**common, **embedder}, "database": database, "seconds": seconds}


def refused(server: OpenAIServer) -> int:
    """Requests that were over the limit."""
    return sum(request.status == 429 for request in tuple(server.requests))


def come_to_use_it(processes: list[Asking], seconds: float = 4.0) -> list[float]:
    """Wait until they have used 85 % of the limit for ``seconds``; returns the part that each has used."""
    end = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < end:
        start = time.monotonic()
        time.sleep(seconds)
        now = time.monotonic()
        parts = [process.between(start, now) / ((now - start) * A_SECOND) for process in processes]
        if sum(parts) >= 0.85:
            return parts
    pytest.fail("they never came to use it")


def test_three_processes_keep_a_limit_together_and_take_over_from_one_that_is_killed(
    connection: Connection, database_url: str, server: OpenAIServer
) -> None:
    with asking(3, settings(server, database_url, 120, requests_per_minute=LIMIT)) as processes:
        wait_for(lambda: granted(connection) == pytest.approx([1 / 3] * 3))
        assert min(come_to_use_it(processes)) > 0
        processes[0].kill()
        processes[1].kill()
        wait_for(lambda: granted(connection) == [1.0])
        come_to_use_it(processes[2:])
    assert refused(server) == 0


@pytest.mark.soak
def test_processes_that_have_to_learn_the_limit_share_it_then(
    connection: Connection, database_url: str, server: OpenAIServer
) -> None:
    with asking(2, settings(server, database_url, 120)) as processes:
        wait_for(lambda: granted(connection) == pytest.approx([0.5] * 2))
        come_to_use_it(processes)
        # Requests are refused before both have learned the limit: each has eight in flight, and a burst is allowed.
        assert refused(server) <= 0.1 * len(server.requests)


def lease_of(connection: Connection, holder: Holder, wanted: float = 1.0, rest: float = 0.0) -> tuple[float, float]:
    """The granted share, and the seconds of rest."""
    given, rest = renew(connection, holder, wanted=wanted, rest=rest)
    return given.granted, rest


def holder(number: int) -> Holder:
    """A process that uses the account."""
    return Holder(id=UUID(int=number), process=str(number), account=ACCOUNT)


def test_leases_in_the_ledger(connection: Connection, database_url: str) -> None:
    ledger = open_pace_ledger(database_url, installed=True)
    one, other = holder(1), holder(2)
    assert lease_of(ledger, one) == (1.0, 0.0)
    assert lease_of(ledger, other)[0] == 0.0
    assert lease_of(ledger, one)[0] == 0.5
    assert lease_of(ledger, other)[0] == 0.5
    # The provider asks for a rest. A process that hears of it from the ledger does not prolong it.
    assert lease_of(ledger, one, rest=30.0)[1] == pytest.approx(30, abs=1)
    assert 0 < lease_of(ledger, other, rest=5.0)[1] <= 30
    connection.execute("UPDATE rowvec.pace_leases SET expires_at = clock_timestamp() WHERE process = '1'")
    assert lease_of(ledger, other)[0] == 1.0
    assert connection.execute("SELECT count(*) FROM rowvec.pace_leases").fetchone() == (1,)
    # A standby whose clock is an hour behind has taken over.
    assert lease_of(ledger, one)[0] == 0.0
    connection.execute("UPDATE rowvec.pace_leases SET expires_at = expires_at + interval '1 hour'")
    connection.execute("UPDATE rowvec.pace_accounts SET rest_until = rest_until + interval '1 hour'")
    assert lease_of(ledger, other) == (1.0, 0.0)
    leave(ledger, other)
    assert lease_of(ledger, one)[0] == 1.0
    # Another account has limits of its own.
    elsewhere = Holder(
        id=uuid4(), process="3", account=RateLimitAccount(address="https://host/v1", model="n", secret=KEY)
    )
    assert lease_of(ledger, elsewhere) == (1.0, 0.0)
    row = connection.execute(
        "SELECT a::text, l::text FROM rowvec.pace_accounts AS a, rowvec.pace_leases AS l"
    ).fetchone()
    assert row is not None
    assert not any(secret in text for text in row for secret in (KEY, "word"))
    ledger.close()


def _renew_beside(frozen: Connection, ledger: Connection) -> None:
    """The other process waits for the account only until the server ends the transaction of the frozen one."""
    with frozen.transaction():
        frozen.execute("SELECT FROM rowvec.pace_accounts FOR UPDATE")
        with pytest.raises(LockNotAvailable):
            renew(ledger, holder(2), wanted=1.0, rest=0.0)
        free = "SELECT FROM rowvec.pace_accounts FOR UPDATE SKIP LOCKED"
        wait_for(lambda: ledger.execute(free).fetchone() is not None)
        renew(ledger, holder(2), wanted=1.0, rest=0.0)
        frozen.execute("SELECT 1")


def test_a_process_that_freezes_while_renewing_blocks_others_for_seconds_only(database_url: str) -> None:
    frozen = open_pace_ledger(database_url, installed=True)
    with open_pace_ledger(database_url, installed=True) as ledger:
        renew(frozen, holder(1), wanted=1.0, rest=0.0)
        with pytest.raises(psycopg.OperationalError, match="the server has ended the session"):
            _renew_beside(frozen, ledger)
    frozen.close()


@pytest.fixture
def paid(server: OpenAIServer, tmp_path: Path) -> Pipeline:
    """The pipeline of the paintings, by an account whose limit it does not reach."""
    embedder = {
        "kind": "openai",
        "model": "text-embedding-3-small",
        "dimensions": 96,
        "base_url": server.url,
        "max_batch_inputs": 10,
        "requests_per_minute": LIMIT,
    }
    return paintings.pipeline(str(tmp_path / "artifacts"), embedder=embedder)


def test_a_sync_takes_a_lease_and_returns_it(source: Connection, paid: Pipeline) -> None:
    assert paintings.sync(paid).embedded == 50
    wait_for(lambda: source.execute("SELECT count(*) FROM rowvec.pace_accounts").fetchone() == (1,))
    wait_for(lambda: source.execute("SELECT count(*) FROM rowvec.pace_leases").fetchone() == (0,))


def test_without_a_limit_the_ledger_is_not_used(source: Connection, paid: Pipeline) -> None:
    free = paid.model_copy(update={"embedder": paid.embedder.model_copy(update={"requests_per_minute": None})})
    assert paintings.sync(free).embedded == 50
    assert source.execute("SELECT count(*) FROM rowvec.pace_accounts").fetchone() == (0,)


def test_a_ledger_that_cannot_be_reached_stops_no_request(
    source: Connection, paid: Pipeline, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("ROWVEC_PACE_DATABASE_URL", "postgresql://me:hidden@127.0.0.1:9/none")
    with caplog.at_level(logging.WARNING, "rowvec.embedders.rate_limit.shared"):
        assert paintings.sync(paid).embedded == 50
    (message,) = [
        record.getMessage() for record in caplog.records if record.name == "rowvec.embedders.rate_limit.shared"
    ]
    assert message.startswith(
        "the pace of text-embedding-3-small is not shared with other processes; this one keeps to"
    )
    assert "100 %" in message
    assert "hidden" not in message


def test_a_ledger_that_is_lost_while_others_hold_everything_stops_no_request(
    database_url: str, server: OpenAIServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder = open_embedder(config(KEY, base_url=server.url, requests_per_minute=LIMIT))
    assert isinstance(embedder, Paced)
    holders = list[Holder]()

    def renewed_once(ledger: Connection, holder: Holder, *, wanted: float, rest: float) -> tuple[Grant, float]:
        holders.append(holder)
        if len(holders) > 1:
            raise DatabaseUnavailable("it is away")
        return renew(ledger, holder, wanted=wanted, rest=rest)

    monkeypatch.setattr("rowvec.embedders.rate_limit.shared.renew", renewed_once)
    with open_pace_ledger(database_url, installed=True) as ledger:
        another = Holder(id=uuid4(), process="another", account=embedder.account)
        assert lease_of(ledger, another)[0] == 1.0
        with shared_pace(database_url, embedder):
            assert len(list(embedder.embed(["a boat"]))) == 1
            assert len(holders) > 1
            assert embedder.pace.share == 0.5


def test_targets_in_two_databases_share_by_a_third(
    source: Connection, another_url: str, paid: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third database has pgvector, but no schema of ours yet."""
    monkeypatch.setenv("ROWVEC_PACE_DATABASE_URL", another_url)
    assert paintings.sync(paid).embedded == 50
    assert source.execute("SELECT count(*) FROM rowvec.pace_accounts").fetchone() == (0,)
    with connect(another_url) as ledger:
        assert ledger.execute("SELECT address, model FROM rowvec.pace_accounts").fetchall() == [
            ("127.0.0.1", "text-embedding-3-small")
        ]


_ALL_KNOW_OF_THE_REST = """
    SELECT min(l.expires_at) - make_interval(secs => %s) > min(a.rest_until) - interval '6 seconds'
    FROM rowvec.pace_leases AS l JOIN rowvec.pace_accounts AS a USING (account)
    WHERE a.rest_until > clock_timestamp()
"""
"""Whether each process has renewed its lease since one of them was told to rest for six seconds."""


def test_a_complaint_to_one_process_makes_the_other_rest(
    connection: Connection, database_url: str, server: OpenAIServer
) -> None:
    embedder = open_embedder(config(KEY, base_url=server.url, requests_per_minute=LIMIT))
    with shared_pace(database_url, embedder):
        list(embedder.embed(["before"]))
        # Longer than the test waits for the other process: without news of the rest, this one would send too soon.
        server.add(rate_limited(6))
        with asking(1, settings(server, database_url, 120, requests_per_minute=LIMIT)) as (other,):
            wait_for(lambda: refused(server))
            wait_for(lambda: connection.execute(_ALL_KNOW_OF_THE_REST, (LEASE_SECONDS,)).fetchone() == (True,))
            list(embedder.embed(["after"]))
            times = {request.texts: request.at for request in server.requests}
            (complaint,) = [request.at for request in server.requests if request.status == 429]
            assert times["after",] >= complaint + 5.5
            assert other.process.poll() is None


def test_azure_vision_shares_its_requests_per_second(connection: Connection, database_url: str) -> None:
    with azure_vision.serve() as server:
        part = AzureVisionEmbedder(kind="azure_vision", base_url=server.url, requests_per_second=50)
        embedder = open_embedder(part.model_copy(update={"api_key": azure_vision.KEY}))
        assert isinstance(embedder, Paced)
        with shared_pace(database_url, embedder):
            assert len(list(embedder.embed(["a boat", "a house"]))) == 2
            assert granted(connection) == [1.0]


def test_a_server_that_takes_images_shares_its_requests_per_minute(
    connection: Connection, database_url: str, server: OpenAIServer
) -> None:
    part = OpenAIImagesEmbedder(
        kind="openai_images", model="clip", dimensions=32, base_url=server.url, requests_per_minute=LIMIT
    )
    embedder = open_embedder(part.model_copy(update={"api_key": KEY}))
    assert isinstance(embedder, Paced)
    with shared_pace(database_url, embedder):
        assert len(list(embedder.embed(["a boat", "a house"]))) == 2
        assert granted(connection) == [1.0]
