"""How tests of faults run the command, and what must be true when it has succeeded or failed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from rowvec.pipeline import Pipeline
from rowvec.pipeline.model import Artifacts
from rowvec.postgres.connection import Connection
from tests.support import paintings
from tests.support.cli_process import Command, Ended, PrefectServer, start, start_within
from tests.support.forked_commands import Mounts
from tests.support.servers.openai_server import OpenAIServer


class Rowvec:
    """The command, against the session's Prefect server, in the environment of the test."""

    def __init__(self, server: PrefectServer) -> None:
        self._api = server.api

    def __call__(self, *words: str | Path, **environment: str) -> Ended:
        return self.start(*words, **environment).wait()

    def start(self, *words: str | Path, **environment: str) -> Command:
        """Start the command."""
        return start(self._api, *words, "--json", **environment)

    def within(self, mounts: Mounts, *words: str | Path, **environment: str) -> Ended:
        """Run it to its end, with mounts of its own; skips the test where nothing can be mounted."""
        if not can_mount():
            pytest.skip("nothing can be mounted here")
        return start_within(self._api, mounts, *words, "--json", **environment).wait()


@cache
def can_mount() -> bool:
    """Whether a process may have mounts of its own here."""
    unshare = shutil.which("unshare")
    user = [] if os.geteuid() == 0 else ["--map-root-user"]
    words = [unshare or "", "--mount", *user, "sh", "-c", "mount -t tmpfs none /mnt"]
    return bool(unshare) and subprocess.run(words, capture_output=True, check=False).returncode == 0  # noqa: S603 # ours


def paid(server: OpenAIServer, artifacts: str | Artifacts) -> Pipeline:
    """The gallery with an embedder that costs money: four texts per request, two requests at once."""
    embedder = {
        "kind": "openai",
        "model": "text-embedding-3-small",
        "dimensions": 96,
        "base_url": server.url,
        "max_batch_inputs": 4,
        "concurrency": 2,
    }
    place = Artifacts(url=artifacts) if isinstance(artifacts, str) else artifacts
    return paintings.pipeline("./unused", embedder=embedder).model_copy(update={"artifacts": place})


def last_line(ended: Ended) -> str:
    """The last line on stderr, for people; the lines before it may only report progress."""
    *before, last = ended.stderr.splitlines() or [""]
    assert all(map(_is_progress, before)), ended
    return last


def _is_progress(line: str) -> bool:
    return bool(
        re.match(r"(start|extract|images|embed|load|merge|index|validate|restore) .*: (\d+ of \d+|done)$", line)
    )


def succeeded(ended: Ended) -> dict[str, Any]:
    """The report of a command that succeeded, and printed nothing but progress and warnings on stderr."""
    assert ended.status == 0, f"{ended.stdout}\n{ended.stderr}"
    assert all(_is_progress(line) or line.startswith("rowvec: ") for line in ended.stderr.splitlines()), ended
    return ended.json


def refused(ended: Ended, *words: str) -> str:
    """The one sentence that the command failed with; it must contain the words."""
    assert ended.status == 1, f"{ended.stdout}\n{ended.stderr}"
    sentence = last_line(ended)
    assert sentence.startswith("rowvec: "), ended
    sentence = sentence.removeprefix("rowvec: ")
    assert all(word in sentence for word in words), ended
    assert ended.json == {"error": sentence}
    return sentence


def failed(connection: Connection, ended: Ended, *words: str) -> None:
    """The command failed with one sentence that contains the words, and the ledger has the same error for the run."""
    sentence = refused(ended, *words)
    row = connection.execute("SELECT state, error FROM rowvec.runs ORDER BY run_id DESC LIMIT 1").fetchone()
    assert row == ("failed", sentence)


def has_table(connection: Connection) -> bool:
    """Whether there is a vector table."""
    return connection.execute("SELECT to_regclass('vectors.paintings')").fetchone() != (None,)


def waits(connection: Connection, application: str) -> bool:
    """Whether a session of this database waits for a lock."""
    statement = (
        "SELECT FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name = %s AND wait_event_type = 'Lock'"
    )
    return connection.execute(statement, (application,)).fetchone() is not None


def build_waits(connection: Connection) -> bool:
    """Whether the build of an index in this database waits for other transactions.

    A concurrent build is in no transaction, and so the pooler's session that runs it does not have the stage's name.
    """
    statement = (
        "SELECT FROM pg_stat_progress_create_index WHERE datname = current_database() AND phase LIKE 'waiting for %'"
    )
    return connection.execute(statement).fetchone() is not None
