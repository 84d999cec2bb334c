"""One real Postgres cluster per session, and one database per test, cloned from a template."""

from __future__ import annotations

import gc
import itertools
import shutil
import tempfile
from collections.abc import Generator
from pathlib import Path

import hypothesis
import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from rowvec.pipeline import Pipeline
from rowvec.postgres.connection import Connection, connect
from rowvec.postgres.embedded import start_postgres
from rowvec.postgres.migrations import install
from tests.support import cli_process
from tests.support import paintings as gallery
from tests.support.examples import PROFILE
from tests.support.servers import azurite as blob_server
from tests.support.servers import postgres_16 as old_postgres

# One blob server and one Prefect server per session; the first test that needs one starts it.
azurite, container = blob_server.azurite, blob_server.container
prefect_database, prefect_server = cli_process.prefect_database, cli_process.prefect_server

# `make test` tries the same cases each time, so that it never fails by luck. `make soak` draws new ones, and more.
hypothesis.settings.register_profile("fixed", deadline=None, derandomize=True)
hypothesis.settings.register_profile("random", deadline=None, derandomize=False, max_examples=1_000)
hypothesis.settings.load_profile(PROFILE)

postgres_16 = old_postgres.postgres_16

_FLOWS = Path(__file__).parent / "flows"
_numbers = itertools.count(1)
_to_drop: list[str] = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of flows first: they are the longest, and the run must not end with one process waiting for them.

    They share servers, so one process should run them all. The others take over what comes after them.
    """
    items.sort(key=lambda item: not item.path.is_relative_to(_FLOWS))
    # What is imported and collected by now stays to the end: the garbage collector need not look at it again.
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture(scope="session")
def cluster() -> Generator[str]:
    """The DSN of a fresh cluster's ``postgres`` database; its ``template_rowvec`` has pgvector and rowvec's schema."""
    # A short path: a Unix socket's may have 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="rv"))
    server = start_postgres(folder / "pg")
    url = server.get_uri()
    with psycopg.connect(url, autocommit=True) as connection:
        # The cluster is thrown away after the tests: it need not survive a power cut, and fsync is slow.
        connection.execute("ALTER SYSTEM SET fsync = off")
        connection.execute("SELECT pg_reload_conf()")
        connection.execute("CREATE DATABASE template_rowvec")
    with connect(server.get_uri("template_rowvec")) as connection:
        install(connection)
    yield url
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def database_url(cluster: str) -> Generator[str]:
    """The DSN of this test's own database."""
    name = f"test_{next(_numbers)}"
    with psycopg.connect(cluster, autocommit=True) as connection:
        # Copying the files takes half of the time that the default strategy takes, which writes each page to the log.
        create = sql.SQL("CREATE DATABASE {} TEMPLATE template_rowvec STRATEGY file_copy")
        connection.execute(create.format(sql.Identifier(name)))
    yield make_conninfo(cluster, dbname=name)
    with psycopg.connect(cluster, autocommit=True) as connection:
        connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,))
        # A session takes a moment to end, and DROP DATABASE then sleeps for 100 ms: only the database of the test
        # before, whose sessions have ended by now, is dropped.
        for earlier in _to_drop:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(earlier)))
    _to_drop[:] = [name]


@pytest.fixture
def connection(database_url: str) -> Generator[Connection]:
    """An autocommit connection to this test's database."""
    with connect(database_url) as opened:
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
