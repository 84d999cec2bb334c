"""A database that cuts connections, holds locks, fills up or refuses: what the real command does and leaves behind."""

from __future__ import annotations

import threading
from collections.abc import Generator
from pathlib import Path
from typing import LiteralString

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from rowvec.errors import RowvecError
from rowvec.pipeline.file import load
from rowvec.postgres.connection import Connection
from tests.support import paintings
from tests.support.cli_process import write_pipeline
from tests.support.fault_outcomes import Rowvec, failed, has_table, paid, refused, succeeded, waits
from tests.support.paintings import assert_in_step
from tests.support.servers.disposable import own_postgres
from tests.support.servers.fault_proxy import DatabaseProxy, before_database, terminate
from tests.support.servers.openai_server import KEY, OpenAIServer, serve


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Generator[OpenAIServer]:
    """An embedder that costs money, with its key in the environment."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serve(key=KEY) as opened:
        yield opened


@pytest.fixture
def file(source: Connection, server: OpenAIServer, tmp_path: Path) -> Path:
    """A pipeline file with a paid embedder."""
    return write_pipeline(paid(server, str(tmp_path / "artifacts")), tmp_path)


@pytest.fixture
def proxy(database_url: str, source: Connection, monkeypatch: pytest.MonkeyPatch) -> Generator[DatabaseProxy]:
    """A proxy in front of the database; the command connects to it as if it were the database."""
    with before_database(database_url) as opened:
        monkeypatch.setenv("ROWVEC_DATABASE_URL", opened.url())
        yield opened


def test_a_copy_cut_in_its_middle_and_a_merge_that_is_terminated_are_done_again(
    source: Connection,
    direct_url: str,
    proxy: DatabaseProxy,
    server: OpenAIServer,
    file: Path,
    rowvec: Rowvec,
) -> None:
    # 50 rows of 96 floats take more than 20 kB, so the cut is in the middle of their data.
    copying = proxy.cut(application="rowvec load 0", sent=15_000)
    server.hold = threading.Event()
    with psycopg.connect(direct_url) as keeper:
        running = rowvec.start("sync", file).when(lambda: server.most_at_once)
        keeper.execute("LOCK TABLE paintings")
        server.hold.set()
        running.when(lambda: waits(source, "rowvec merge"))
        assert terminate(source, "rowvec merge") == 1
        keeper.rollback()
        report = succeeded(running.wait())
    assert copying.done == 1
    assert (report["new"], report["embedded"], report["rows"]) == (50, 50, 50)
    assert set(server.paid.values()) == {1}
    assert_in_step(source)


@pytest.mark.parametrize(
    "stage",
    [
        "merge",
        *(pytest.param(stage, marks=pytest.mark.soak) for stage in ("upload 0", "load 0", "validate")),
        pytest.param("extract", marks=pytest.mark.soak),
    ],
)
def test_a_commit_whose_acknowledgement_is_lost_is_not_done_twice(
    source: Connection, proxy: DatabaseProxy, server: OpenAIServer, file: Path, rowvec: Rowvec, stage: str
) -> None:
    # The zero byte ends a statement. Without it, COMMIT would also match ON COMMIT DROP.
    lost = proxy.cut(application=f"rowvec {stage}", unheard=b"COMMIT\0")
    report = succeeded(rowvec("sync", file))
    assert lost.done == 1
    assert (report["new"], report["embedded"], report["rows"], report["consistent"]) == (50, 50, 50, True)
    assert set(server.paid.values()) == {1}
    assert_in_step(source)


@pytest.mark.parametrize(
    "cause",
    [
        pytest.param(
            "terminated",
            marks=pytest.mark.needs("no pooler", "the pooler has fewer sessions than the run has connections"),
        ),
        pytest.param("restarted", marks=pytest.mark.soak),
    ],
)
def test_sessions_that_end_while_the_embedder_thinks_cost_what_was_in_flight_and_no_more(
    source: Connection, server: OpenAIServer, file: Path, rowvec: Rowvec, tmp_path: Path, cause: str
) -> None:
    at_once = 8
    if cause == "terminated":
        server.hold = threading.Event()
        running = rowvec.start("sync", file).when(lambda: server.most_at_once)
        # Between two transactions a session says only whose it is.
        assert terminate(source, "rowvec") >= 2
        server.hold.set()
        report = succeeded(running.wait())
        assert_in_step(source)
    else:
        with own_postgres() as own:
            with psycopg.connect(own.url, autocommit=True) as connection:
                connection.execute(paintings.SOURCE)
                paintings.fill(connection, 50)
            server.hold = threading.Event()
            running = rowvec.start("sync", file, ROWVEC_DATABASE_URL=own.url).when(lambda: server.most_at_once)
            own.kill()
            own.start()
            server.hold.set()
            report = succeeded(running.wait())
            with psycopg.connect(own.url, autocommit=True) as connection:
                assert_in_step(connection)
    assert (report["rows"], report["consistent"]) == (50, True)
    assert len(server.paid) == 50
    assert server.paid.total() <= 50 + at_once


@pytest.mark.soak
@pytest.mark.parametrize("stage", ["extract", "load 0", "merge"])
def test_a_session_that_is_terminated_in_a_stage_is_opened_again(
    source: Connection, direct_url: str, server: OpenAIServer, file: Path, rowvec: Rowvec, stage: str
) -> None:
    # A table that the stage needs and the stage before it does not.
    needed: dict[str, LiteralString] = {"extract": "paintings", "load 0": "rowvec.loaded", "merge": "vectors.paintings"}
    succeeded(rowvec("sync", file))
    paintings.fill(source, 20, start=51)
    server.hold = threading.Event()
    with psycopg.connect(direct_url) as keeper:
        if stage == "extract":
            keeper.execute("LOCK TABLE paintings")
            server.hold.set()
            running = rowvec.start("sync", file)
        else:
            server.most_at_once = 0
            running = rowvec.start("sync", file).when(lambda: server.most_at_once)
            keeper.execute(sql.SQL("LOCK TABLE {}").format(sql.SQL(needed[stage])))
            server.hold.set()
        running.when(lambda: waits(source, f"rowvec {stage}"))
        assert terminate(source, f"rowvec {stage}") == 1
        keeper.rollback()
        report = succeeded(running.wait())
    assert (report["rows"], report["consistent"]) == (70, True)
    assert set(server.paid.values()) == {1}
    assert_in_step(source)


@pytest.mark.parametrize(
    "code",
    ["53100", *(pytest.param(code, marks=pytest.mark.soak) for code in ("53200", "53400"))],
    ids={"53100": "disk full", "53200": "out of memory", "53400": "temp_file_limit"}.get,
)
def test_a_database_out_of_room_stops_the_run_with_nothing_half_done(
    source: Connection, server: OpenAIServer, file: Path, rowvec: Rowvec, code: str
) -> None:
    succeeded(rowvec("sync", file))
    before = paintings.vectors(source)
    # The server itself raises the error when the merge writes its first row.
    source.execute(
        sql.SQL(
            "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$"
            " BEGIN RAISE EXCEPTION 'could not extend file' USING ERRCODE = {}; END $$"
        ).format(sql.Literal(code))
    )
    source.execute(
        "CREATE TRIGGER no_room BEFORE INSERT ON vectors.paintings FOR EACH ROW EXECUTE FUNCTION full_disk()"
    )
    paintings.fill(source, 10, start=51)
    source.execute("DELETE FROM paintings WHERE id < 5")
    failed(source, rowvec("sync", file), "the database is out of room: could not extend file; free some and run again")
    assert paintings.vectors(source) == before
    source.execute("DROP TRIGGER no_room ON vectors.paintings")
    report = succeeded(rowvec("sync", file))
    assert (report["embedded"], report["reused"], report["deleted"]) == (0, 10, 4)
    assert set(server.paid.values()) == {1}
    assert_in_step(source)


@pytest.fixture
def role(connection: Connection) -> Generator[str]:
    """A role that may log in, and nothing else."""
    (name,) = connection.execute("SELECT 'limited_' || current_database()").fetchone() or ("",)
    connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(name)))
    yield name
    connection.execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(sql.Identifier(name)))


@pytest.mark.needs("pgvector in public", "the role of the test has no right on another schema")
@pytest.mark.needs("a superuser", "the role of the test makes the schemas")
@pytest.mark.needs("no pooler", "the pooler of the tests logs in as one role for all")
def test_a_missing_grant_is_named_and_the_run_after_the_grant_is_paid_for_once(
    source: Connection,
    database_url: str,
    server: OpenAIServer,
    file: Path,
    rowvec: Rowvec,
    role: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # As an administrator would set it up: the extension exists, and the role may create rowvec's schema itself.
    source.execute("DROP SCHEMA rowvec CASCADE")
    url = make_conninfo(database_url, user=role)
    monkeypatch.setenv("ROWVEC_DATABASE_URL", url)
    pipeline = load(file)

    def refuses(*words: str) -> None:
        with pytest.raises(RowvecError) as error:
            paintings.sync(pipeline)
        assert all(word in str(error.value) for word in words), error.value

    def allow(statement: str) -> None:
        names = {"role": sql.Identifier(role), "database": sql.Identifier(source.info.dbname)}
        source.execute(sql.SQL(statement).format(**names))  # pyright: ignore[reportArgumentType] # ours, below

    refused(rowvec("sync", file), "permission denied", "docs/how-to/operations.md")
    allow("GRANT CREATE, TEMPORARY ON DATABASE {database} TO {role}")
    refuses("the source's table public.paintings cannot be read: permission denied for table paintings")
    allow("GRANT SELECT ON paintings TO {role}; ALTER ROLE {role} CONNECTION LIMIT 1")
    refuses("the database has no connection free", "too many connections for role")
    allow("ALTER ROLE {role} CONNECTION LIMIT -1; ALTER ROLE {role} SET default_transaction_read_only = on")
    refuses("the target database takes no writes", "default_transaction_read_only")
    allow("ALTER ROLE {role} RESET default_transaction_read_only; ALTER ROLE {role} SET statement_timeout = '1ms'")
    assert not has_table(source)
    assert server.paid.total() == 0
    report = succeeded(rowvec("sync", file))
    assert (report["embedded"], report["consistent"]) == (50, True)
    assert set(server.paid.values()) == {1}
    assert_in_step(source)


@pytest.mark.parametrize("table", ["paintings", "vectors.paintings"])
@pytest.mark.soak
def test_a_lock_held_for_long_is_waited_for_and_held_for_ever_ends_the_run(
    source: Connection, direct_url: str, server: OpenAIServer, file: Path, rowvec: Rowvec, table: LiteralString
) -> None:
    succeeded(rowvec("sync", file))
    paintings.fill(source, 10, start=51)
    lock = sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(sql.SQL(table))
    with psycopg.connect(direct_url) as keeper:
        keeper.execute(lock)
        running = rowvec.start("sync", file).when(lambda: waits(source, "rowvec extract"))
        # The command gives up once, and tries again.
        running.when(lambda: not waits(source, "rowvec extract"))
        running.when(lambda: waits(source, "rowvec extract"))
        keeper.rollback()
        assert succeeded(running.wait())["new"] == 10
    paintings.fill(source, 10, start=61)
    with psycopg.connect(direct_url) as keeper:
        keeper.execute(lock)
        ended = rowvec.start("sync", file).wait(600)
    failed(source, ended, "the database kept us waiting", "lock timeout", "pg_locks")
    assert succeeded(rowvec("sync", file))["new"] == 10
    assert set(server.paid.values()) == {1}
    assert_in_step(source)
