"""``rowvec up`` and ``rowvec down`` as a new user meets them: real Postgres, Prefect server and worker."""

from __future__ import annotations

import io
import os
import shutil
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Callable, Generator
from contextlib import closing, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import psycopg
import pytest

from rowvec.cli import app
from rowvec.cli.stack.state import login, read_state, supervisor_pid
from tests.support.cli_process import Ended, start_interpreter
from tests.support.prefect_api import answered

pytestmark = [pytest.mark.flow]


@dataclass(frozen=True, slots=True)
class Home:
    """A ``ROWVEC_HOME`` and its commands."""

    folder: Path

    def up(self, *words: str) -> Ended:
        """Run ``rowvec up`` to its end, in an interpreter of its own: what it starts goes on without it."""
        return start_interpreter("", "up", *words).wait(300)

    def rowvec(self, *words: str) -> Ended:
        """Run a command that starts no process, in this one."""
        with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
            status = app.run(list(words), as_json="--json" in words)
        return Ended(status=status, stdout=out.getvalue(), stderr=err.getvalue())

    def processes(self) -> list[int]:
        """All processes that work on this home."""
        found: list[int] = []
        for process in psutil.process_iter():
            try:
                ours = process.environ().get("ROWVEC_HOME") == str(self.folder)
                postgres = process.cwd() == str(self.folder / "postgres")
                if process.status() != psutil.STATUS_ZOMBIE and process.pid != os.getpid() and (ours or postgres):
                    found.append(process.pid)
            except psutil.Error:
                continue
        return found


@pytest.fixture
def stack(tmp_path: Path, prefect_database: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[Home]:
    """A home with a Prefect database, which takes long to make; after the test no process of it runs."""
    monkeypatch.setenv("ROWVEC_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ROWVEC_DATABASE_URL", "")
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("PREFECT_WORKER_QUERY_SECONDS", "1")
    home = Home(tmp_path / "home")
    (home.folder / "prefect").mkdir(mode=0o700, parents=True)
    shutil.copyfile(prefect_database, home.folder / "prefect" / "prefect.db")
    yield home
    home.rowvec("down")
    wait_for(lambda: not home.processes())


@pytest.fixture
def bystander() -> Generator[subprocess.Popen[bytes]]:
    """A process that does not belong to the stack."""
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as process:  # noqa: S607 # any program
        yield process
        process.kill()


def wait_for(holds: Callable[[], object], seconds: float = 180) -> None:
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "that never came to hold"
        time.sleep(0.3)


def runs_at_work(home: Home) -> list[int]:
    """Processes of flow runs."""
    found: list[int] = []
    for pid in home.processes():
        with suppress(psutil.Error):
            if "PREFECT__FLOW_RUN_ID" in psutil.Process(pid).environ():
                found.append(pid)
    return found


def asked(api: str, what: str, wanted: dict[str, Any]) -> Any:
    """What the server of the stack answers to somebody who may read its login."""
    user, _, password = login().partition(":")
    return answered("POST", f"{api}/{what}", wanted, (user, password))


def synced(api: str, *names: str) -> set[str]:
    """The ids of completed syncs of these names."""
    wanted = {"name": {"any_": names}, "state": {"type": {"any_": ["COMPLETED"]}}}
    # A server that starts again has runs to catch up with, and may answer slowly.
    found = asked(api, "flow_runs/filter", {"flow_runs": wanted})
    return {run["id"] for run in found}


def test_up_starts_all_of_it_once_and_down_ends_all_of_it_and_nothing_else(
    bystander: subprocess.Popen[bytes],
    stack: Home,  # in this order: the bystander must not inherit the home
) -> None:
    up = stack.up("--json")
    assert up.status == 0, up.stderr
    started = up.json
    assert (started["phase"], started["started"], started["pipelines"]) == ("ready", True, ["paintings"])
    assert "<html" in httpx.get(started["ui"], timeout=60, follow_redirects=True).text
    again = stack.rowvec("up", "--json").json
    assert (again["started"], again["ui"]) == (False, started["ui"])
    assert stat.S_IMODE(Path(started["login"]).stat().st_mode) == 0o600
    for stranger in (None, ("rowvec", "guess")):
        refused = httpx.post(f"{started['api']}/deployments/filter", json={}, auth=stranger, timeout=60)
        assert refused.status_code == httpx.codes.UNAUTHORIZED
    deployed = asked(started["api"], "deployments/filter", {})
    assert all({"rowvec", "pipeline:paintings"} < set(one["tags"]) for one in deployed)
    jobs = ["audit", "index", "prune", "rebuild", "restore", "sync"]
    assert sorted(tag for one in deployed for tag in set(one["tags"]) - {"rowvec", "pipeline:paintings"}) == jobs
    with psycopg.connect(started["database"]) as connection:
        assert connection.execute("SELECT count(*) FROM paintings").fetchone() == (240,)
    with closing(psycopg.connect(started["database"])) as holder:
        # A run in the middle of its work, in a session of its own that the worker gave it.
        holder.execute("LOCK TABLE paintings IN ACCESS EXCLUSIVE MODE")
        (sync,) = [one["id"] for one in deployed if "sync" in one["tags"]]
        asked(started["api"], f"deployments/{sync}/create_flow_run", {})
        wait_for(lambda: runs_at_work(stack))
        # The supervisor is killed, as by the kernel: `down` ends what it had started all the same.
        supervisor = supervisor_pid()
        assert supervisor is not None
        os.kill(supervisor, signal.SIGKILL)
        assert stack.rowvec("down", "--json").json == {"ended": True}
    wait_for(lambda: not stack.processes())
    assert bystander.poll() is None
    written = [
        up.stdout,
        up.stderr,
        *(file.read_text("utf-8") for file in Path(started["logs"]).iterdir() if file.name != "login"),
    ]
    assert [text for text in written if login().partition(":")[2] in text] == []
    assert stack.rowvec("down", "--json").json == {"ended": False}
    state = read_state()
    assert state is not None
    assert state.phase == "ended"


def test_a_port_that_is_taken_is_named_and_nothing_is_started(stack: Home) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ended = stack.rowvec("up", "--port", str(port))
    assert ended.status == 2
    assert f"port {port} is taken by another program; give another one with --port" in ended.stderr
    assert read_state() is None


@pytest.mark.soak
def test_its_data_survives_and_the_schedule_goes_on(stack: Home) -> None:
    first = stack.up("--every", "1", "--json").json
    wait_for(lambda: synced(first["api"], "paintings-up"))
    wait_for(lambda: synced(first["api"], "paintings-schedule"))
    before = synced(first["api"], "paintings-up", "paintings-schedule")
    assert stack.rowvec("down").status == 0
    wait_for(lambda: not stack.processes())
    second = stack.up("--every", "1", "--json").json
    assert before <= synced(second["api"], "paintings-up", "paintings-schedule")
    wait_for(lambda: synced(second["api"], "paintings-schedule") - before)
    with psycopg.connect(second["database"]) as connection:
        assert connection.execute("SELECT count(*) FROM vectors.paintings").fetchone() == (240,)
