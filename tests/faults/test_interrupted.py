"""Ctrl-C, SIGTERM and the end of a command's own Prefect server: one sentence, in seconds; the next run is right."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import psutil
import pytest

from rowvec.cli.prefect_server import prefect_api
from rowvec.errors import MachineError
from rowvec.pipeline import Pipeline
from rowvec.postgres.connection import Connection
from rowvec.runtime.home import home_folder
from tests.support.cli_process import CLI, Command, Ended, PrefectServer, give_empty_database, start, write_pipeline
from tests.support.fault_outcomes import last_line, paid
from tests.support.paintings import assert_in_step
from tests.support.servers.openai_server import KEY, OpenAIServer, serve
from tests.support.waiting import wait_for

SECONDS = 20.0
"""Within these a command has ended."""


class Queue(threading.Event):
    """An event that counts the requests that have waited for it."""

    length = 0

    def wait(self, timeout: float | None = None) -> bool:
        """See ``threading.Event``."""
        self.length += 1
        return super().wait(timeout)


@dataclass(slots=True)
class Held:
    """A sync whose provider does not answer until it is told to."""

    source: Connection
    pipeline: Pipeline
    server: OpenAIServer
    answers: Queue
    folder: Path
    file: Path = field(init=False)

    def __post_init__(self) -> None:
        self.file = write_pipeline(self.pipeline, self.folder)

    def embedding(self, api: str, *words: str, **environment: str) -> Command:
        """The command, once it waits for the provider."""
        command = start(api, "sync", self.file, *words, OPENAI_API_KEY=KEY, **environment)
        return command.when(lambda: self.answers.length)

    def then_in_step(self, api: str) -> None:
        """The next run goes on at once, and pays for no text that was answered."""
        self.answers.set()
        ended = start(api, "sync", self.file, "--json", OPENAI_API_KEY=KEY).wait()
        assert ended.status == 0, ended.stderr
        assert ended.json["consistent"]
        assert_in_step(self.source)


@pytest.fixture
def held(source: Connection, tmp_path: Path) -> Generator[Held]:
    """50 texts at a provider that holds its answers."""
    answers = Queue()
    with serve() as server:
        server.hold = answers
        yield Held(source, paid(server, str(tmp_path / "artifacts")), server, answers, tmp_path)
        answers.set()


def ended_within(command: Command, number: int) -> Ended:
    """How the command ends after a signal to its whole process group, as a terminal sends it."""
    began = time.monotonic()
    ended = command.kill(number)
    assert time.monotonic() - began < SECONDS
    return ended


def one_sentence(ended: Ended, *words: str) -> None:
    """The command says one sentence, which has these words, and nothing else about its end."""
    sentence = last_line(ended)
    assert sentence.startswith("rowvec: ")
    assert all(word in sentence for word in words), sentence


def left_behind(home: Path) -> list[int]:
    """Processes that work on a home."""
    found: list[int] = []
    for process in psutil.process_iter():
        try:
            ours = process.environ().get("ROWVEC_HOME") == str(home) and process.pid != os.getpid()
            if ours and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_run_in_seconds_with_one_sentence(
    held: Held, prefect_server: PrefectServer, number: int, status: int
) -> None:
    command = held.embedding(prefect_server.api, "--json")
    ended = ended_within(command, number)
    assert ended.status == status
    assert "the next run goes on" in ended.json["error"]
    one_sentence(ended, "what was paid for is kept")
    states = held.source.execute("SELECT state FROM rowvec.runs").fetchall()
    assert states == [("failed",)], states
    held.then_in_step(prefect_server.api)


def test_ctrl_c_ends_a_command_and_its_own_server_and_touches_no_other_prefect(
    held: Held, tmp_path: Path, prefect_database: Path
) -> None:
    user = tmp_path / "user"
    (user / ".prefect").mkdir(parents=True)
    # What another version of Prefect has left: a revision that ours does not know.
    database = user / ".prefect/prefect.db"
    with sqlite3.connect(database) as other:
        other.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
        other.execute("INSERT INTO alembic_version VALUES ('ffffffffffff')")
    other.close()
    before = {path: path.stat().st_mtime_ns for path in user.rglob("*")}
    home = tmp_path / "own home"
    give_empty_database(home, prefect_database)
    command = held.embedding("", HOME=str(user), ROWVEC_HOME=str(home))
    servers = [pid for pid in left_behind(home) if "uvicorn" in " ".join(psutil.Process(pid).cmdline())]
    assert len(servers) == 1
    address = psutil.Process(servers[0]).net_connections()[0].laddr
    assert b"401" in answer_to_another_user(address.port)
    ended = ended_within(command, signal.SIGINT)
    assert ended.status == 130
    one_sentence(ended, "interrupted")
    wait_for(lambda: not left_behind(home), SECONDS)
    assert {path: path.stat().st_mtime_ns for path in user.rglob("*")} == before


def answer_to_another_user(port: int) -> bytes:
    """What another user of the machine hears from the server: it holds keys of rows."""
    with socket.create_connection(("127.0.0.1", port), 10) as connection:
        connection.sendall(b"POST /api/artifacts/filter HTTP/1.0\r\nContent-Length: 2\r\n\r\n{}")
        return connection.recv(100)


def test_the_end_of_its_own_server_ends_a_command_at_once_and_a_kill_of_the_command_ends_its_server(
    held: Held, tmp_path: Path, prefect_database: Path
) -> None:
    home = tmp_path / "own home"
    give_empty_database(home, prefect_database)
    command = held.embedding("", ROWVEC_HOME=str(home))
    (server,) = [pid for pid in left_behind(home) if "uvicorn" in " ".join(psutil.Process(pid).cmdline())]
    began = time.monotonic()
    os.kill(server, signal.SIGKILL)
    ended = command.wait()
    assert time.monotonic() - began < SECONDS
    assert ended.status == 1
    one_sentence(ended, "the Prefect server that this command started has ended: killed by signal 9", "run again")
    wait_for(lambda: not left_behind(home), SECONDS)


def test_a_server_ends_with_the_process_that_started_it_however_that_ends(tmp_path: Path) -> None:
    code = (
        "import os, subprocess, sys, time\n"
        "words = [sys.executable, '-m', 'rowvec.runtime.tethered', 'http.server', '0']\n"
        "child = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True)\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=tmp_path)  # noqa: S603 # ours
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    wait_for(lambda: child.net_connections())
    parent.kill()
    parent.communicate()
    wait_for(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, SECONDS)


def test_a_server_that_the_users_profile_names_is_used(
    held: Held, prefect_server: PrefectServer, tmp_path: Path
) -> None:
    profiles = tmp_path / "user/.prefect/profiles.toml"
    profiles.parent.mkdir(parents=True)
    profiles.write_text(f'active = "ours"\n[profiles.ours]\nPREFECT_API_URL = "{prefect_server.api}"\n', "utf-8")
    held.answers.set()
    environment = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    ended = subprocess.run(  # noqa: S603 # our own command
        [CLI, "sync", held.file, "--json"],
        env={**environment, "OPENAI_API_KEY": KEY, "HOME": str(tmp_path / "user")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert not list((tmp_path / "home").glob("prefect/server-*"))
    assert [path.name for path in profiles.parent.iterdir()] == ["profiles.toml"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An own ROWVEC_HOME, and no server that the environment names."""
    monkeypatch.setenv("ROWVEC_HOME", str(tmp_path))
    return home_folder("prefect")


def test_a_server_that_does_not_start_says_why_in_the_commands_sentence(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "uvicorn.py").write_text("raise ValueError('not today')", "utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    sentence = r"has ended: ValueError: not today; .*PREFECT_API_URL"
    with pytest.raises(MachineError, match=sentence), prefect_api():
        pytest.fail("a server that has ended was used")
    assert left_behind(tmp_path) == []
    assert list(home.glob("server-*")) == []


@pytest.mark.soak
def test_a_server_keeps_nothing_but_an_empty_database_and_heals_one_that_it_cannot_use(
    home: Path, tmp_path: Path
) -> None:
    empty = home / f"empty-{version('prefect')}.db"
    empty.write_bytes(b"no database")
    killed = home / "server-killed"
    killed.mkdir()
    (killed / "lock").touch()
    with prefect_api():
        (used,) = home.glob("server-*")
        assert used != killed
    assert [path.name for path in home.iterdir()] == [empty.name]
    with sqlite3.connect(empty) as kept:
        assert kept.execute("SELECT count(*) FROM flow_run").fetchall() == [(0,)]
        assert kept.execute("SELECT count(*) > 0 FROM block_type").fetchall() == [(1,)]
    kept.close()
    assert left_behind(tmp_path) == []
