"""Where a case is played: a database, a folder and an embedder, brought back to the same state again and again."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Generator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from rowvec.vectors.fingerprint import Identity, fingerprint
from tests.support.crash_points.cases import EMBEDDER, FOLDER, SOURCE, Case
from tests.support.crash_points.points import At
from tests.support.crash_points.process import Ended, Part, run
from tests.support.crash_points.state import State, state_of
from tests.support.servers.openai_server import KEY, OpenAIServer, serve

Text = tuple[str, str]
"""A model and a text that it was asked for."""

_LEASE_SECONDS = 3
_LIVE = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s"
_END = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s"


@dataclass(slots=True)
class Scene:
    """A database, a folder and an embedder of one process of tests."""

    server_url: str
    """The DSN of the database ``postgres``, as superuser; ``template_rowvec`` is on the same server."""
    name: str
    """Of the databases: each scene on the server has another."""
    place: Path
    """A folder of the scene's own."""
    embedder: OpenAIServer
    case: Case
    _oids: dict[str, int] = field(default_factory=dict[str, int])

    @property
    def folder(self) -> Path:
        """The folder with store, home and files of the case."""
        return self.place / "case"

    @property
    def url(self) -> str:
        """The DSN of the vector table's database."""
        return make_conninfo(self.server_url, dbname=self.name)

    @property
    def _databases(self) -> list[str]:
        return [self.name, f"{self.name}_source"] if self.case.apart else [self.name]

    def prepare(self) -> None:
        """Bring about what was before the command, and keep it."""
        self.folder.mkdir(parents=True)
        for database in self._databases:
            self._copy("template_rowvec", database)
        self.must(self.run("before"))
        for database in self._databases:
            self._copy(database, f"{database}_kept")
        shutil.copytree(self.folder, self.place / "kept")
        self.embedder.reset()

    def reset(self) -> None:
        """Bring back what was before the command, under the same names and numbers: nothing is a copy to rowvec."""
        for database in self._databases:
            self._copy(f"{database}_kept", database)
        shutil.rmtree(self.folder)
        shutil.copytree(self.place / "kept", self.folder)
        self.embedder.reset()

    def drop(self) -> None:
        """Delete everything."""
        with self._administrator() as connection:
            for name in self._oids:
                connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))
        self._oids.clear()
        shutil.rmtree(self.place)

    def run(self, part: Part, *, watched: bool = False, at: At | None = None) -> Ended:
        """Run a part of the case in a process of its own."""
        environment = {
            FOLDER: str(self.folder),
            SOURCE: make_conninfo(self.server_url, dbname=self._databases[-1]),
            EMBEDDER: self.embedder.url,
            "OPENAI_API_KEY": KEY,
            "ROWVEC_DATABASE_URL": self.url,
            "ROWVEC_HOME": str(self.folder / "home"),
            "ROWVEC_LEASE_SECONDS": str(_LEASE_SECONDS),
            "TMPDIR": str(self.folder),
        }
        return run(self.case, part, environment, watched=watched, at=at)

    def state(self) -> State:
        """What is there now."""
        with closing(psycopg.connect(self.url, autocommit=True)) as connection:
            found = state_of(connection, self.folder)
        if self.case.apart:
            with closing(psycopg.connect(make_conninfo(self.url, dbname=self._databases[-1]))) as connection:
                found |= {f"source: {name}": value for name, value in state_of(connection, None).items()}
        return found

    def paid(self) -> Counter[Text]:
        """How often each text was paid for since the state was brought back."""
        requests = [request for request in self.embedder.requests if request.status == 200]
        return Counter((request.model, text) for request in requests for text in request.texts)

    def unkept(self) -> set[Text]:
        """The texts that were paid for and of which the database has no vector: they were in flight at the kill."""
        paid = self.paid()
        if not paid:
            return set()
        with closing(psycopg.connect(self.url, autocommit=True)) as connection:
            ((there,),) = connection.execute("SELECT to_regclass('rowvec.answers') IS NOT NULL").fetchall()
            if not there:
                return set(paid)
            identities = connection.execute("SELECT DISTINCT identity FROM rowvec.pipelines").fetchall()
            kept = {
                bytes(one)
                for table in ("answers", "embeddings")
                for (one,) in connection.execute(f"SELECT fingerprint FROM rowvec.{table}".encode())  # noqa: S608 # ours
            }
        digests = {identity["model"]: Identity(**identity).digest() for (identity,) in identities}
        return {
            (model, text)
            for model, text in paid
            if model not in digests or fingerprint(digests[model], text.encode()) not in kept
        }

    def must(self, ended: Ended) -> Ended:
        """The same, if it was not killed and did not fail; raises ``AssertionError`` with its log."""
        if ended.state != "done":
            log = (self.place / "log").read_text()[-3000:]
            raise AssertionError(f"{self.case.name}: {ended.state} {ended.message}\n{log}")
        return ended

    def _copy(self, source: str, into: str) -> None:
        """Make a database from another one; if it was there before, it gets the same number again."""
        with self._administrator() as connection:
            for database in (source, into):
                connection.execute(_END, (database,))
                end = time.monotonic() + 30
                while connection.execute(_LIVE, (database,)).fetchone() != (0,) and time.monotonic() < end:
                    time.sleep(0.002)
            drop = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(into))
            connection.execute(drop)
            oid = self._oids.get(into)
            number = sql.SQL(" OID {}").format(sql.Literal(oid)) if oid else sql.SQL("")
            create = sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy").format(
                sql.Identifier(into), sql.Identifier(source)
            )
            connection.execute(create + number)
            row = connection.execute("SELECT oid FROM pg_database WHERE datname = %s", (into,)).fetchone()
            assert row
            self._oids[into] = row[0]

    @contextmanager
    def _administrator(self) -> Generator[psycopg.Connection[tuple[Any, ...]]]:
        with closing(psycopg.connect(self.server_url, autocommit=True)) as connection:
            yield connection


@contextmanager
def scene(server_url: str, name: str, place: Path, case: Case) -> Generator[Scene]:
    """A scene in which the case has been prepared; it is deleted afterwards."""
    with serve(key=KEY) as embedder:
        made = Scene(server_url, name, place, embedder, case)
        try:
            made.prepare()
            yield made
        finally:
            made.drop()
