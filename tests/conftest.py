"""One real Postgres server per session, and one database per test, cloned from a template."""

from __future__ import annotations

import gc
import itertools
import os
import signal
from collections.abc import Generator
from pathlib import Path

import hypothesis
import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from rowvec.pipeline import Pipeline
from rowvec.postgres.connection import Connection, connect
from rowvec.postgres.migrations import install
from tests.support import cli_process, run_folder
from tests.support import paintings as gallery
from tests.support.databases import administrator, database
from tests.support.examples import PROFILE
from tests.support.servers import azurite as blob_server
from tests.support.servers import lines
from tests.support.servers.lines import Server

# One blob server and one Prefect server per session; the first test that needs one starts it.
azurite, container = blob_server.azurite, blob_server.container
prefect_database, prefect_server = cli_process.prefect_database, cli_process.prefect_server

# `make test` tries the same cases each time, so that it never fails by luck. `make soak` draws new ones, and more.
hypothesis.settings.register_profile("fixed", deadline=None, derandomize=True)
hypothesis.settings.register_profile("random", deadline=None, derandomize=False, max_examples=1_000)
hypothesis.settings.load_profile(PROFILE)

# The server that the tests run on; `make test-matrix` names another one for each of its lines.
LINE = lines.chosen()
LINE.use_programs()

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A script that starts the tests in the background has SIGINT ignored for them and for all that they start. Such a
    # command rightly goes on at Ctrl-C, so a test that interrupts it would wait in vain.
    signal.signal(signal.SIGINT, signal.default_int_handler)

_FLOWS = Path(__file__).parent / "flows"
_numbers = itertools.count(1)
_to_drop: list[str] = []

_END_SESSIONS = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s"


def pytest_configure() -> None:
    """Begin what the processes of the run share."""
    run_folder.begin()


def pytest_unconfigure() -> None:
    """End it."""
    run_folder.end()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the tests of flows first: they are the longest, and the run must not end with one process waiting for them.

    They share servers, so one process should run them all. The others take over what comes after them. On the server of
    a line, the tests that do not use it are left out, and those that need what it lacks are skipped.
    """
    items.sort(key=lambda item: not item.path.is_relative_to(_FLOWS))
    if "ROWVEC_TEST_SERVER" in os.environ:
        others = [item for item in items if "cluster" not in getattr(item, "fixturenames", ())]
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if item not in set(others)]
    for item in items:
        for marker in item.iter_markers("needs"):
            what, why = marker.args
            if what in LINE.lacks:
                item.add_marker(pytest.mark.skip(reason=f"needs {what}: {why}"))
    # What is imported and collected by now stays to the end: the garbage collector need not look at it again.
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture(scope="session")
def line_server() -> Generator[Server]:
    """A fresh server of the chosen line; its ``template_rowvec`` has pgvector and rowvec's schema."""
    with LINE.serving() as server:
        with psycopg.connect(server.url, autocommit=True) as connection:
            connection.execute("CREATE DATABASE template_rowvec")
        server.prepare("template_rowvec")
        with connect(server.for_rowvec("template_rowvec")) as connection:
            install(connection)
        # A pooler's session would keep the template from being copied.
        with psycopg.connect(server.url, autocommit=True) as connection:
            connection.execute(_END_SESSIONS, ("template_rowvec",))
        yield server
        if LINE.url:
            _drop(server, ["template_rowvec", *_to_drop])


def _drop(server: Server, databases: list[str]) -> None:
    """What the tests have made on a server that goes on running."""
    with psycopg.connect(server.url, autocommit=True) as connection:
        for name in databases:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture(scope="session")
def cluster(line_server: Server) -> str:
    """The DSN of its database ``postgres``, as superuser, by no pooler."""
    return line_server.url


@pytest.fixture(scope="session")
def postgres_16() -> Generator[str]:
    """The DSN of the database ``postgres`` of a PostgreSQL 16; it has no pgvector yet."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PGSERVER_POSTGRES_VERSION", "16")
        with lines.LINES["pg16"].serving() as server:
            yield server.url


@pytest.fixture
def direct_url(cluster: str) -> Generator[str]:
    """The DSN of this test's own database, as superuser, by no pooler."""
    name = f"test_{next(_numbers)}"
    # Copying the files takes half of the time that the default strategy takes, which writes each page to the log.
    create = sql.SQL("CREATE DATABASE {} TEMPLATE template_rowvec STRATEGY file_copy")
    administrator(cluster).execute(create.format(sql.Identifier(name)))
    yield make_conninfo(cluster, dbname=name)
    administrator(cluster).execute(_END_SESSIONS, (name,))
    # A session takes a moment to end, and DROP DATABASE then sleeps for 100 ms: only the database of the test
    # before, whose sessions have ended by now, is dropped.
    for earlier in _to_drop:
        drop = sql.SQL("DROP DATABASE {} WITH (FORCE)")
        administrator(cluster).execute(drop.format(sql.Identifier(earlier)))
    _to_drop[:] = [name]


@pytest.fixture
def another_url(cluster: str) -> Generator[str]:
    """The DSN of a second database, empty and without pgvector, as superuser, by no pooler."""
    with database(cluster) as url:
        yield url


@pytest.fixture
def database_url(line_server: Server, direct_url: str) -> str:
    """The DSN of this test's own database, as rowvec is given it."""
    return line_server.for_rowvec(str(conninfo_to_dict(direct_url)["dbname"]))


@pytest.fixture
def connection(direct_url: str) -> Generator[Connection]:
    """An autocommit connection to this test's database, as superuser, by no pooler."""
    with connect(direct_url) as opened:
        yield opened


@pytest.fixture
def source(connection: Connection, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Connection:
    """A connection to a database with 50 paintings; pipelines without a URL use this database."""
    monkeypatch.setenv("ROWVEC_DATABASE_URL", database_url)
    monkeypatch.setenv("ROWVEC_HOME", str(tmp_path / "home"))
    connection.execute(gallery.SOURCE)
    gallery.fill(connection, 50)
    return connection


@pytest.fixture
def paintings(tmp_path: Path) -> Pipeline:
    """The pipeline over the paintings, with a folder as its blob store."""
    return gallery.pipeline(str(tmp_path / "artifacts"))
