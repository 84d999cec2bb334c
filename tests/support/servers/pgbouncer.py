"""PgBouncer in transaction mode: the machine's own, or Debian's package, unpacked without being installed."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import FileLock
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests.support.waiting import PATIENCE_SECONDS, wait_for

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
"""


@dataclass(frozen=True, slots=True)
class Program:
    """The program and where its libraries are."""

    path: Path
    libraries: Path | None


def program(cache: Path) -> Program:
    """PgBouncer; skips the test where there is neither the program nor Debian's package of it."""
    if found := shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin"):
        return Program(Path(found), None)
    unpacked = cache / "pgbouncer"
    with FileLock(cache / "pgbouncer.lock", timeout=PATIENCE_SECONDS):
        if not unpacked.exists():
            if not (apt := shutil.which("apt-get")) or not (dpkg := shutil.which("dpkg")):
                pytest.skip("there is no PgBouncer here, and no apt-get to download it")
            part = cache / "pgbouncer.part"
            part.mkdir(exist_ok=True)
            got = subprocess.run(  # noqa: S603 # Debian's own program
                [apt, "download", *_PACKAGES], cwd=part, capture_output=True, text=True, check=False
            )
            if got.returncode:
                pytest.skip(f"Debian's package of PgBouncer cannot be downloaded here: {got.stderr.strip()[-200:]}")
            for package in part.glob("*.deb"):
                subprocess.run([dpkg, "-x", package, part], check=True, capture_output=True)  # noqa: S603
            part.rename(unpacked)
    (libraries,) = (unpacked / "usr" / "lib").glob("*-linux-gnu")
    return Program(unpacked / "usr" / "sbin" / "pgbouncer", libraries)


@contextmanager
def pooling(url: str, cache: Path) -> Generator[str]:
    """The DSN of the same database through a PgBouncer of its own."""
    found, server = program(cache), conninfo_to_dict(url)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    host = str(server["host"])
    folder = Path(tempfile.mkdtemp(prefix="rvpool"))
    config = folder / "pgbouncer.ini"
    config.write_text(_CONFIG.format(host=host, server_port=server.get("port", 5432), port=port), "utf-8")
    environment, binary = dict(os.environ), found.path
    if found.libraries:
        # Another user may not enter the folder of the tests.
        binary = Path(shutil.copy(found.path, folder))
        environment["LD_LIBRARY_PATH"] = str(shutil.copytree(found.libraries, folder / "lib"))
    # PgBouncer does not run as root; the owner of the socket's folder may enter it.
    owner = Path(host).stat() if os.geteuid() == 0 else None
    for path in (folder, config):
        path.chmod(0o755)
    process = subprocess.Popen(  # noqa: S603 # Debian's own program
        [binary, "-q", config],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        user=owner.st_uid if owner else None,
        group=owner.st_gid if owner else None,
        extra_groups=[] if owner else None,
    )
    try:
        wait_for(lambda: _answers(port, process))
        database = make_conninfo(host="127.0.0.1", port=port, user="postgres", dbname=str(server["dbname"]))
        yield database
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _answers(port: int, process: subprocess.Popen[bytes]) -> bool:
    assert process.poll() is None, f"PgBouncer ended at once with status {process.returncode}"
    with suppress(OSError):
        socket.create_connection(("127.0.0.1", port), 1).close()
        return True
    return False
