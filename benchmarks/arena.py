"""One Postgres, one Prefect server and one embedding service for all syncers; a database and a folder for each."""

from __future__ import annotations

import shutil
import signal
import sys
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from psycopg import sql

from benchmarks.provider import Account, Provider
from benchmarks.syncers import Place, Syncer
from benchmarks.texts import TEMPLATE, fill
from rowvec.postgres.connection import Connection, connect
from rowvec.postgres.embedded import EmbeddedPostgres, start_postgres
from tests.support import cli_process


@dataclass(frozen=True, slots=True, kw_only=True)
class Arena:
    """What all syncers of one benchmark share."""

    folder: Path
    postgres: EmbeddedPostgres
    prefect_api: str

    def connect(self, database: str = "postgres") -> Connection:
        """Connect as the superuser; the default database is the one that holds no data."""
        return connect(self.postgres.get_uri(database))

    def fill(self, texts: list[str], dimensions: int, later: Sequence[str] = ()) -> None:
        """Create the template database that all other databases are copied from; an older template is dropped."""
        self._create(TEMPLATE, "template0")
        with self.connect(TEMPLATE) as connection:
            fill(connection, texts, dimensions, later)

    def enter(self, syncer: Syncer, provider: Provider, account: Account, dimensions: int, *, to: str) -> Place:
        """Create a database and a folder, and run the syncer's own setup; ``to`` distinguishes the entries."""
        name = f"{to}_{syncer.name}"
        self._create(name, TEMPLATE)
        place = Place(
            database=self.postgres.get_uri(name),
            base_url=provider.url,
            account=account,
            dimensions=dimensions,
            state=self.folder / name,
            prefect_api=self.prefect_api,
        )
        syncer.prepare(place)
        return place

    def leave(self, syncer: Syncer, *, to: str) -> None:
        """Drop the entry's database and folder; only its log is left."""
        name = f"{to}_{syncer.name}"
        with self.connect() as connection:
            connection.execute_alone(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)), {})
        shutil.rmtree(self.folder / name, ignore_errors=True)

    def _create(self, name: str, template: str) -> None:
        with self.connect() as connection:
            connection.execute_alone(
                sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)), {}
            )
            connection.execute_alone(
                sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template)), {}
            )


@contextmanager
def open_arena(keep: Path | None = None) -> Generator[Arena]:
    """An arena in a temporary folder; the syncers' logs are copied to ``keep`` before the folder is deleted."""
    # If a time limit ends the benchmark, the servers are stopped and the folder is deleted too.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    folder = Path(tempfile.mkdtemp(prefix="rvcontest", dir="/tmp"))
    postgres = start_postgres(folder / "pg")
    try:
        with cli_process.serving(folder / "prefect") as prefect:
            yield Arena(folder=folder, postgres=postgres, prefect_api=prefect.api)
    finally:
        if keep is not None:
            keep.mkdir(parents=True, exist_ok=True)
            for log in folder.glob("*.log"):
                shutil.copy(log, keep)
        postgres.cleanup()
        shutil.rmtree(folder, ignore_errors=True)
