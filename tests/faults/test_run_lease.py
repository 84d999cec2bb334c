"""Runs that lose their connections, their server, or their turn: never two runs at work, and nothing paid twice."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, LiteralString

import psycopg
import pytest
from psycopg import sql

from rowvec.errors import LeaseLost, PipelineBusy
from rowvec.ledger.lease import open_owned
from rowvec.ledger.runs import Ending, finish_run, running
from rowvec.operations import prune as prune_module
from rowvec.pipeline import Pipeline
from rowvec.postgres.connection import Connection, connect
from rowvec.stages import embed, upload
from rowvec.stages.batch import Batch
from rowvec.stages.extract import stage as extract
from rowvec.stages.report import SyncReport
from tests.support import paintings
from tests.support.cli_process import PrefectServer, start, write_pipeline
from tests.support.paintings import assert_in_step, fill, sync
from tests.support.servers.disposable import own_postgres
from tests.support.servers.openai_server import KEY, OpenAIServer, serve
from tests.support.waiting import PATIENCE_SECONDS, wait_for

LEASE_SECONDS = 3.0
TEXTS_A_REQUEST, CONCURRENCY = 4, 2
IN_FLIGHT = TEXTS_A_REQUEST * CONCURRENCY


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Generator[OpenAIServer]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serve(key=KEY) as opened:
        yield opened


@pytest.fixture
def paid(source: Connection, server: OpenAIServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    """A pipeline whose embedder costs money and answers four texts a request, two requests at a time."""
    monkeypatch.setenv("ROWVEC_LEASE_SECONDS", str(LEASE_SECONDS))
    embedder = {
        "kind": "openai",
        "model": "text-embedding-3-small",
        "dimensions": 96,
        "base_url": server.url,
        "max_batch_inputs": TEXTS_A_REQUEST,
        "concurrency": CONCURRENCY,
    }
    return paintings.pipeline(str(tmp_path / "artifacts"), embedder=embedder)


class Running:
    """A sync in a thread of its own."""

    def __init__(self, pipeline: Pipeline, run: Callable[[Pipeline], SyncReport] = sync) -> None:
        self._report: SyncReport | None = None
        self._error: BaseException | None = None
        self._run, self._pipeline = run, pipeline
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        try:
            self._report = self._run(self._pipeline)
        except BaseException as error:  # noqa: BLE001 # the test looks at it
            self._error = error

    def until(self, holds: Callable[[], object]) -> None:
        """Wait until something holds while the sync is at work."""

        def reached() -> bool:
            if holds():
                return True
            assert self._thread.is_alive(), f"it has ended before that: {self._error or self._report}"
            return False

        wait_for(reached)

    def report(self) -> SyncReport:
        """What the sync reports; raises what it raises."""
        self._thread.join(PATIENCE_SECONDS)
        if self._error is not None:
            raise self._error
        assert self._report is not None
        return self._report


def end_sessions(connection: Connection) -> int:
    """End all other sessions in the database; returns how many there were."""
    ended = connection.execute(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
    ).fetchone()
    assert ended is not None
    return ended[0]


def states(connection: Connection) -> list[str]:
    return [state for (state,) in connection.execute("SELECT state FROM rowvec.runs ORDER BY run_id")]


def take_over(connection: Connection) -> None:
    """What another run does to a lease that has not been renewed."""
    connection.execute("UPDATE rowvec.run_leases SET number = number + 1")
    connection.execute("UPDATE rowvec.lease_renewals SET number = number + 1")


def test_a_run_whose_connections_are_cut_goes_on_and_keeps_others_out(
    source: Connection, paid: Pipeline, server: OpenAIServer
) -> None:
    server.latency = 0.4
    first = Running(paid)
    first.until(lambda: len(server.requests) > 3)
    assert end_sessions(source) > 1
    with pytest.raises(PipelineBusy, match="another run of the pipeline paintings is at work"):
        sync(paid)
    server.latency = 0.0
    assert first.report().consistent
    assert_in_step(source)
    assert (len(server.paid), states(source)) == (50, ["succeeded"])


def test_a_server_that_ends_idle_sessions_makes_nothing_paid_twice(
    source: Connection, paid: Pipeline, server: OpenAIServer
) -> None:
    database = sql.Identifier(source.info.dbname)
    source.execute(sql.SQL("ALTER DATABASE {} SET idle_session_timeout = '50ms'").format(database))
    fill(source, 8, start=51)
    source.execute("DELETE FROM paintings WHERE id <= 50")
    server.latency = 0.3
    assert sync(paid).consistent
    assert_in_step(source)
    assert len(server.paid) == 8


def test_a_crash_of_the_server_ends_no_run_and_loses_no_answer(
    server: OpenAIServer, paid: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    with own_postgres() as postgres:
        monkeypatch.setenv("ROWVEC_DATABASE_URL", postgres.url)
        with connect(postgres.url) as connection:
            connection.execute(paintings.SOURCE)
            fill(connection, 20)
        server.latency = 0.4
        first = Running(paid)
        first.until(lambda: len(server.requests) > 1)
        postgres.kill()
        postgres.start()
        with pytest.raises(PipelineBusy):
            sync(paid)
        server.latency = 0.0
        assert first.report().consistent
        with connect(postgres.url) as connection:
            assert_in_step(connection)
            assert states(connection) == ["succeeded"]
        assert len(server.paid) == 20


@pytest.mark.parametrize("stage", ["embed", "merge"])
def test_a_stopped_run_that_comes_back_changes_nothing_and_says_that_another_has_taken_over(
    source: Connection,
    paid: Pipeline,
    server: OpenAIServer,
    tmp_path: Path,
    prefect_server: PrefectServer,
    direct_url: str,
    request: pytest.FixtureRequest,
    stage: str,
) -> None:
    file = write_pipeline(paid, tmp_path)
    server.latency = 0.4
    stopped = start(prefect_server.api, "sync", file, "--json")
    # A process that is stopped for good would keep the servers of the tests waiting.
    request.addfinalizer(lambda: stopped.process.poll() is None and stopped.kill())
    stopped.when(lambda: len(server.requests) > 3)
    if stage == "merge":
        # The merge has written everything, and waits to say so in the ledger.
        with psycopg.connect(direct_url) as holder:
            holder.execute("SELECT FROM rowvec.runs WHERE state = 'running' FOR NO KEY UPDATE")
            server.latency = 0.0
            waiting = (
                "SELECT true FROM pg_stat_activity WHERE application_name = 'rowvec merge' AND wait_event_type = 'Lock'"
            )
            stopped.when(lambda: source.execute(waiting).fetchone())
            os.killpg(stopped.process.pid, signal.SIGSTOP)
    else:
        os.killpg(stopped.process.pid, signal.SIGSTOP)
    server.latency = 0.0
    assert sync(paid).consistent
    before, table = len(server.texts), paintings.vectors(source)
    os.killpg(stopped.process.pid, signal.SIGCONT)
    ended = stopped.wait()
    assert ended.status == 1
    assert "this run has lost the pipeline paintings: another run took over" in ended.stderr
    # A request that was on its way when the run was stopped may arrive now; no other one is sent.
    assert before <= len(server.texts) <= 50 + IN_FLIGHT
    assert paintings.vectors(source) == table
    assert states(source) == ["lost", "succeeded"]
    # Nothing of it is left, and the next run finds nothing to do.
    assert sync(paid).embedded == 0
    assert source.execute("SELECT count(*) FROM pg_tables WHERE tablename ~ '^(plan|staging)_'").fetchone() == (0,)


def test_of_runs_that_start_together_one_works(source: Connection, paid: Pipeline, server: OpenAIServer) -> None:
    server.latency = 0.2
    together = [Running(paid) for _ in range(4)]
    outcomes: list[str] = []
    for one in together:
        try:
            outcomes.append(f"consistent: {one.report().consistent}")
        except PipelineBusy:
            outcomes.append("busy")
    assert sorted(outcomes) == ["busy", "busy", "busy", "consistent: True"]
    assert (len(server.paid), states(source)) == (50, ["succeeded"])


def test_a_killed_run_on_this_machine_makes_the_next_one_wait_for_a_moment_only(
    source: Connection,
    paid: Pipeline,
    server: OpenAIServer,
    tmp_path: Path,
    prefect_server: PrefectServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ROWVEC_LEASE_SECONDS", str(PATIENCE_SECONDS))
    server.latency = 0.4
    command = start(prefect_server.api, "sync", write_pipeline(paid, tmp_path))
    command.when(lambda: len(server.requests) > 3).kill()
    server.latency, began = 0.0, time.monotonic()
    assert sync(paid).consistent
    assert time.monotonic() - began < PATIENCE_SECONDS / 2
    assert (len(server.paid) <= 50 + IN_FLIGHT, states(source)) == (True, ["abandoned", "succeeded"])


@pytest.mark.parametrize("clock", ["-1 day", "1 day"])
def test_a_clock_that_is_set_makes_no_second_owner_and_keeps_no_lease(
    source: Connection, paid: Pipeline, server: OpenAIServer, clock: str
) -> None:
    """The database's clock is what stands in its rows: each renewal is followed by one of a clock that was set."""
    source.execute(
        sql.SQL(
            "CREATE FUNCTION set_clock() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN NEW.ends_at := NEW.ends_at + {}::interval; RETURN NEW; END $$"
        ).format(sql.Literal(clock))
    )
    source.execute(
        "CREATE TRIGGER set_clock BEFORE UPDATE ON rowvec.lease_renewals FOR EACH ROW EXECUTE FUNCTION set_clock()"
    )
    server.latency = 0.4
    first = Running(paid)
    first.until(lambda: len(server.requests) > 3)
    with pytest.raises(PipelineBusy):
        sync(paid)
    server.latency = 0.0
    assert first.report().consistent
    # As a run on another machine that was killed leaves it.
    source.execute("UPDATE rowvec.run_leases SET held = true, machine = 'another'")
    began = time.monotonic()
    assert sync(paid).consistent
    assert LEASE_SECONDS <= time.monotonic() - began < PATIENCE_SECONDS


def test_a_worker_in_another_process_asks_the_ledger_and_stops(
    source: Connection, paid: Pipeline, server: OpenAIServer
) -> None:
    with running(paid, "test") as run:
        plan = extract.run(paid, run)
        # A worker has the lease as a value, and no thread that renews it.
        elsewhere = replace(run, lease=replace(run.lease, pipeline="as a worker has it"))
        batch = embed.run(paid, Batch.of(elsewhere, 0))
        assert (batch.embedded, plan.batches, len(server.paid)) == (50, 1, 50)
        fill(source, 5, start=51)
        extract.run(paid, run)
        take_over(source)
        with pytest.raises(LeaseLost):
            embed.run(paid, Batch.of(elsewhere, 0))
        with pytest.raises(LeaseLost):
            upload.run(paid, batch)
        assert len(server.paid) == 50
        assert source.execute("SELECT count(*) FROM rowvec.artifacts").fetchone() == (0,)


def _write_while_another_takes_over(connection: Connection, other: Connection, begin: sql.Composed) -> None:
    with connection.transaction():
        connection.execute(begin)
        connection.execute("UPDATE paintings SET title = 'second'")
        take_over(other)


@pytest.mark.needs("a superuser", "the run writes to the source's table")
@pytest.mark.parametrize("isolation", ["READ COMMITTED", "REPEATABLE READ"])
def test_a_transaction_that_began_with_the_lease_does_not_commit_without_it(
    source: Connection, paid: Pipeline, isolation: LiteralString
) -> None:
    begin = sql.SQL("SET TRANSACTION ISOLATION LEVEL {}").format(sql.SQL(isolation))
    with running(paid, "test") as run, open_owned(paid, run.lease) as connection:
        with connection.transaction():
            connection.execute(begin)
            connection.execute("UPDATE paintings SET title = 'first'")
        # Renewals must not make it fail.
        source.execute("UPDATE rowvec.lease_renewals SET renewals = renewals + 1")
        with pytest.raises(LeaseLost):
            _write_while_another_takes_over(connection, source, begin)
        with pytest.raises(LeaseLost):
            connection.execute("UPDATE paintings SET title = 'third'")
        assert source.execute("SELECT DISTINCT title FROM paintings").fetchall() == [("first",)]
        with pytest.raises(LeaseLost):
            finish_run(connection, run.run_id, Ending(state="succeeded"))


@pytest.mark.needs("a superuser", "the session that the run ends is a superuser's")
def test_a_session_of_a_stopped_run_that_holds_its_tables_is_ended(
    source: Connection, paid: Pipeline, server: OpenAIServer, direct_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with paintings.dying_after("load", monkeypatch):
        sync(paid)
    source.execute("UPDATE rowvec.runs SET state = 'running'")
    ((table,),) = source.execute("SELECT tablename FROM pg_tables WHERE tablename ~ '^staging_'").fetchall()
    with psycopg.connect(direct_url, application_name="rowvec merge") as merging:
        both = sql.Identifier("rowvec", table), sql.Identifier("paintings")
        merging.execute(sql.SQL("LOCK TABLE {}, {}").format(*both))
        assert sync(paid).consistent
        with pytest.raises(psycopg.OperationalError):
            merging.execute("SELECT 1")
    assert len(server.paid) == 50
    assert source.execute("SELECT count(*) FROM pg_tables WHERE tablename ~ '^(plan|staging)_'").fetchone() == (0,)


def test_what_a_run_without_its_lease_would_delete_from_the_store_stays(
    source: Connection, paid: Pipeline, server: OpenAIServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync(paid)
    source.execute("UPDATE paintings SET title = 'other'")
    sync(paid)
    source.execute("UPDATE rowvec.artifacts SET created_at = '2000-01-01'")
    objects = sorted(path for path in tmp_path.rglob("artifacts/**/*") if path.is_file())
    found = prune_module._unneeded  # pyright: ignore[reportPrivateUsage] # what it does first

    def found_too_late(*arguments: Any) -> Any:
        unneeded = found(*arguments)
        assert unneeded
        take_over(source)
        time.sleep(LEASE_SECONDS / 2)
        return unneeded

    monkeypatch.setattr(prune_module, "_unneeded", found_too_late)
    with pytest.raises(LeaseLost):
        prune_module.prune(paid, timedelta(0), apply=True)
    assert sorted(path for path in tmp_path.rglob("artifacts/**/*") if path.is_file()) == objects
    assert states(source)[-1] == "lost"


def _update_twice_around_the_end_of_the_session(connection: Connection, other: Connection) -> None:
    with connection.transaction():
        connection.execute("UPDATE paintings SET title = 'before it ended' WHERE id = 1")
        end_sessions(other)
        with suppress(psycopg.OperationalError):
            connection.execute("SELECT 1")
        connection.execute("UPDATE paintings SET title = 'after it ended' WHERE id = 2")


def test_of_a_transaction_whose_session_has_ended_nothing_more_is_done(source: Connection, direct_url: str) -> None:
    with connect(direct_url) as connection:
        with pytest.raises(psycopg.OperationalError):
            _update_twice_around_the_end_of_the_session(connection, source)
        changed = "SELECT count(*) FROM paintings WHERE title LIKE '%ended'"
        assert connection.execute(changed).fetchone() == (0,)


@pytest.mark.parametrize("last", ["copy", "savepoint"])
def test_a_session_that_ends_is_a_lost_connection_at_each_statement(
    source: Connection, direct_url: str, last: str
) -> None:
    with connect(direct_url) as connection:
        with pytest.raises(psycopg.OperationalError):
            _end_the_session_before_the_last_statement(connection, source, last)
        assert connection.execute("SELECT count(*) FROM paintings").fetchone() == (50,)


def _end_the_session_before_the_last_statement(connection: Connection, other: Connection, last: str) -> None:
    with connection.transaction():
        if last == "copy":
            with connection.cursor() as cursor, cursor.copy("COPY paintings (id) FROM STDIN") as copy:
                copy.write_row((51,))
                end_sessions(other)
        else:
            connection.execute("SELECT 1")
            end_sessions(other)
            time.sleep(0.1)
            with connection.transaction():
                pass
