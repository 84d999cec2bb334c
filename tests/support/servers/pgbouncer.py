"""PgBouncer in transaction mode: the machine's own, or Debian's package, unpacked without being installed."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests.support.servers.debian import unpacked
from tests.support.waiting import wait_for

_PACKAGES = ("pgbouncer", "libevent-2.1-7", "libc-ares2")
_CONFIG = """
[databases]
* = host={host} port={server_port} user=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 3
max_client_conn = 200
server_login_retry = 0.2
"""


@dataclass(frozen=True, slots=True)
class Program:
    """The program and where its libraries are."""

    path: Path
    libraries: Path | None


def program() -> Program:
    """PgBouncer; skips the test where there is neither the program nor Debian's package of it."""
    if found := shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin"):
        return Program(Path(found), None)
    folder = unpacked("pgbouncer", *_PACKAGES)
    (libraries,) = (folder / "usr" / "lib").glob("*-linux-gnu")
    return Program(folder / "usr" / "sbin" / "pgbouncer", libraries)


class PgBouncer:
    """One that a test may restart, and lead to another server."""

    def __init__(self, url: str) -> None:
        """``url``: the DSN of a database, on a socket that the owner of its folder may use."""
        found = program()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self._folder = Path(tempfile.mkdtemp(prefix="rvpool"))
        self._folder.chmod(0o755)
        self._environment, self._binary = dict(os.environ), found.path
        if found.libraries:
            # Another user may not enter the folder of the tests.
            self._binary = Path(shutil.copy(found.path, self._folder))
            self._environment["LD_LIBRARY_PATH"] = str(shutil.copytree(found.libraries, self._folder / "lib"))
        self._configure(url)
        self.start()

    @property
    def url(self) -> str:
        """The DSN of the database through PgBouncer; the same after a restart, and for another server."""
        return make_conninfo(host="127.0.0.1", port=self._port, user="postgres", dbname=self._database)

    def start(self) -> None:
        """Start it, the first time or again."""
        # PgBouncer does not run as root; the owner of the socket's folder may enter it.
        owner = Path(self._host).stat() if os.geteuid() == 0 else None
        self._process = subprocess.Popen(  # noqa: S603 # Debian's own program
            [self._binary, "-q", self._config],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            user=owner.st_uid if owner else None,
            group=owner.st_gid if owner else None,
            extra_groups=[] if owner else None,
        )
        wait_for(self._answers)

    def restart(self) -> None:
        """Cut all clients off, and start again."""
        self._process.kill()
        self._process.wait()
        self.start()

    def lead_to(self, url: str) -> None:
        """Lead to another server from now on, without cutting clients off that wait between two transactions."""
        self._configure(url)
        self._process.send_signal(signal.SIGHUP)

    def remove(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _configure(self, url: str) -> None:
        server = conninfo_to_dict(url)
        self._host, self._database = str(server["host"]), str(server["dbname"])
        self._config = self._folder / "pgbouncer.ini"
        written = _CONFIG.format(host=self._host, server_port=server.get("port", 5432), port=self._port)
        self._config.write_text(written, "utf-8")
        self._config.chmod(0o644)

    def _answers(self) -> bool:
        status = self._process.poll()
        assert status is None, f"PgBouncer ended at once with status {status}"
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", self._port), 1).close()
            return True
        return False


@contextmanager
def pooling(url: str) -> Generator[PgBouncer]:
    """A PgBouncer before the database that the DSN names."""
    opened = PgBouncer(url)
    try:
        yield opened
    finally:
        opened.remove()
