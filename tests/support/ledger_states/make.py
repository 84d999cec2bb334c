"""Makes the archives of earlier states: ``python -m tests.support.ledger_states.make [NUMBER ...]``.

Each one is made by the code of its own commit, checked out as a worktree of this repository, with the libraries that
are installed today. It plays ``scene.py`` on a Postgres of its own and with an embedder of the tests, and is killed in
its last run. Then the database is dumped and packed with the store. Without numbers, the archives that are missing are
made. A new migration needs one more: of the commit before it, in ``states.COMMITS``.
"""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from tests.support.ledger_states import scene
from tests.support.ledger_states.states import COMMITS, FOLDER, archive
from tests.support.servers.disposable import own_postgres
from tests.support.servers.openai_server import KEY, Fault, OpenAIServer, serve
from tests.support.waiting import wait_for

_REPOSITORY = Path(__file__).parents[3]
# Settings of a session that older servers lack, what only psql reads, and the schema that each database has.
_UNREADABLE = re.compile(
    r"^(?:\\|SET (?!check_function_bodies)|(?:CREATE|COMMENT ON) SCHEMA public\b).*\n", re.MULTILINE
)


@contextmanager
def _worktree(commit: str) -> Generator[Path]:
    with tempfile.TemporaryDirectory(prefix="rvstate") as folder:
        tree = Path(folder) / "tree"
        _git("add", "--quiet", "--detach", str(tree), commit)
        try:
            yield tree
        finally:
            _git("remove", "--force", str(tree))


def _git(*words: str) -> None:
    subprocess.run(["git", "worktree", *words], cwd=_REPOSITORY, check=True)  # noqa: S603, S607 # ours


def make(number: int, server: str) -> None:
    """Make one archive. ``server``: the DSN of the database ``postgres``, as superuser."""
    url = make_conninfo(server, dbname=f"state_{number}")
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(f"state_{number}")))
    with (
        tempfile.TemporaryDirectory(prefix="rvstate") as folder,
        _worktree(COMMITS[number]) as tree,
        serve(key=KEY) as embedder,
    ):
        environment = {
            **os.environ,
            scene.STORE: f"{folder}/store",
            scene.EMBEDDER: embedder.url,
            "OPENAI_API_KEY": KEY,
            "PYTHONPATH": str(tree),
            "ROWVEC_DATABASE_URL": url,
            "ROWVEC_HOME": f"{folder}/home",
        }
        _play(number, url, tree, environment, embedder)
        facts = {
            "commit": COMMITS[number],
            "in_flight": sorted(text for request in embedder.requests if not request.status for text in request.texts),
        }
        _pack(number, _dump(url), facts, Path(folder) / "store")
    print(f"state {number}: {archive(number).stat().st_size:,} bytes, {facts}")


def _play(number: int, url: str, tree: Path, environment: dict[str, str], embedder: OpenAIServer) -> None:
    command = [sys.executable, str(Path(scene.__file__)), str(number)]
    with subprocess.Popen(  # noqa: S603 # ours
        command, cwd=tree, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin
        assert process.stdout
        try:
            said = process.stdout.readline()
            assert said, f"the program of state {number} has ended before its last run"
            embedder.add(Fault(after=1, shape="hang", seconds=10))
            process.stdin.write("\n")
            process.stdin.flush()
            with psycopg.connect(url, autocommit=True) as connection:
                kept = "SELECT count(*) FROM rowvec.answers"
                wait_for(lambda: connection.execute(kept).fetchone() == (scene.TEXTS_PER_REQUEST,))
                wait_for(lambda: any(not request.status for request in embedder.requests))
                newest = connection.execute("SELECT max(number) FROM rowvec.migrations").fetchone()
                assert newest == (number,), f"{COMMITS[number]} has the state {newest}"
        finally:
            process.kill()


def _dump(url: str) -> bytes:
    with psycopg.connect(url) as connection:
        found = connection.execute("SELECT setting FROM pg_config() WHERE name = 'BINDIR'").fetchone()
    assert found
    schemas = [f"--schema={name}" for name in ("public", "rowvec", "vectors", "rowvec_changes")]
    options = ["--no-owner", "--no-privileges", "--inserts", "--rows-per-insert=100", *schemas]
    dump = subprocess.run([f"{found[0]}/pg_dump", *options, url], check=True, capture_output=True, text=True)  # noqa: S603
    kept = _UNREADABLE.sub("", dump.stdout)
    return re.sub(r"^--.*\n|^\n", "", kept, flags=re.MULTILINE).encode()


def _pack(number: int, dump: bytes, facts: Mapping[str, object], store: Path) -> None:
    files = {"dump.sql": dump, "facts.json": json.dumps(facts).encode()}
    files |= {f"store/{p.relative_to(store)}": p.read_bytes() for p in sorted(store.rglob("*")) if p.is_file()}
    with tarfile.open(archive(number), "w:xz", preset=9) as packed:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            packed.addfile(entry, io.BytesIO(content))


def main(numbers: list[int]) -> None:
    """Make these archives, or those that are missing."""
    FOLDER.mkdir(exist_ok=True)
    with own_postgres() as server:
        for number in numbers or [number for number in COMMITS if not archive(number).exists()]:
            make(number, server.url)


if __name__ == "__main__":
    main([int(number) for number in sys.argv[1:]])
