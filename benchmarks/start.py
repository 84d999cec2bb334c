"""How long does a command take before and beyond its work?

Each command runs as a person calls it, as a process of its own, against a table in which nothing has changed: from a
shell in which no Prefect server is configured, and with a server that runs already. The versions and commands take
turns, so that other work on the machine meets all of them. ``--other PROGRAM`` compares with another installed rowvec.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg

from benchmarks import plots
from benchmarks.outcome import conclude, options
from rowvec.postgres.embedded import start_postgres

_GOALS = {"sync from a shell, s": 6.0, "sync with a server, s": 3.5, "help, of the other's": 1.05}
_PORT = 4987
_PIPELINE = """
name: start
source: {kind: postgres, table: public.texts, key: [id], content: "{text}"}
embedder: {kind: local}
target: {table: vectors.start}
artifacts: {url: artifacts}
"""
_ROWS = """
CREATE TABLE IF NOT EXISTS public.texts AS
SELECT i AS id, 'text ' || i || ' about ' || md5(i::text) AS text FROM generate_series(1, %d) AS i;
"""
_SERVER = "sync with a server"
_COMMANDS = {
    "help": ("--help",),
    "plan": ("plan", "start.yaml"),
    "search": ("search", "start.yaml", "a text", "-k", "3"),
    "sync from a shell": ("sync", "start.yaml"),
    _SERVER: ("sync", "start.yaml"),
}


def main() -> None:
    """Measure, and print medians."""
    parser = options(__doc__, "three runs of each command over 3,000 rows")
    parser.add_argument("--rows", type=int, help="rows of the table; left out: 69,202")
    parser.add_argument("--runs", type=int, help="runs of each command; left out: ten")
    parser.add_argument("--other", help="the program rowvec of another version")
    given = parser.parse_args()
    rows, runs = given.rows or (3_000 if given.quick else 69_202), given.runs or (3 if given.quick else 10)
    programs = {"this": str(Path(sys.executable).parent / "rowvec")} | ({"other": given.other} if given.other else {})
    wall: dict[tuple[str, str], list[float]] = {}
    cpu: dict[tuple[str, str], list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="rvstart") as root, _prefect(Path(root)) as api:
        prepared = {name: _prepared(Path(root) / name, program, rows) for name, program in programs.items()}
        for _ in range(runs):
            for command, words in _COMMANDS.items():
                for name, program in programs.items():
                    took = _timed([program, *words], *prepared[name], api if command == _SERVER else None)
                    wall.setdefault((command, name), []).append(took[0])
                    cpu.setdefault((command, name), []).append(took[1])
    seconds = {key: statistics.median(found) for key, found in wall.items()}
    worked = {key: statistics.median(found) for key, found in cpu.items()}
    for command, name in seconds:
        print(f"{command:<20} {name:<6} {seconds[command, name]:6.2f} s, {worked[command, name]:6.2f} s of CPU")
    ratios = {f"{command}, s": seconds[command, "this"] for command in _COMMANDS}
    if "other" in programs:
        ratios |= {f"{one}, of the other's": seconds[one, "this"] / seconds[one, "other"] for one in _COMMANDS}
        ratios |= {f"{one}, CPU, of the other's": worked[one, "this"] / worked[one, "other"] for one in _COMMANDS}
    shown = {f"{command} ({name})": took for (command, name), took in seconds.items()}
    plots.draw(given.plot, "Commands", [plots.Bars(title=f"{rows:,} rows, nothing changed", label="s", values=shown)])
    conclude("start", ratios, _GOALS, {"rows": rows, "runs": runs})


def _environment(folder: Path, api: str | None) -> dict[str, str]:
    # An image of a container may forbid Python to keep what it has compiled; an installed wheel is compiled by pip.
    ours = ("PREFECT_", "ROWVEC_", "PYTHONDONTWRITEBYTECODE")
    others = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    named = {} if api is None else {"PREFECT_API_URL": api}
    return {**others, "HOME": str(folder), "ROWVEC_HOME": str(folder / "home"), "DO_NOT_TRACK": "1", **named}


def _timed(words: list[str], folder: Path, url: str, api: str | None) -> tuple[float, float]:
    """Seconds by the clock, and of CPU in the command and its children."""
    began, before = time.monotonic(), os.times()
    # By its DSN: an embedded Postgres of this version is none that an older one finds.
    environment = {**_environment(folder, api), "ROWVEC_DATABASE_URL": url}
    done = subprocess.run(  # noqa: S603 # ours
        words, cwd=folder, env=environment, check=False, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} ended with status {done.returncode}: {done.stderr}")
    after = os.times()
    worked = after.children_user + after.children_system - before.children_user - before.children_system
    return time.monotonic() - began, worked


def _prepared(folder: Path, program: str, rows: int) -> tuple[Path, str]:
    """A folder with a pipeline, and the DSN of its table and vectors; the Postgres runs until the benchmark ends."""
    folder.mkdir()
    (folder / "start.yaml").write_text(_PIPELINE, "utf-8")
    url = start_postgres(folder / "home/postgres").get_uri()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute((_ROWS % rows).encode())
        connection.execute("ALTER TABLE public.texts ADD PRIMARY KEY (id)")
    for _ in range(2):
        _timed([program, "sync", "start.yaml"], folder, url, None)
    return folder, url


@contextmanager
def _prefect(root: Path) -> Generator[str]:
    """A Prefect server of its own; yields its address."""
    environment = {**_environment(root, None), "PREFECT_HOME": str(root / "prefect")}
    words = [sys.executable, "-m", "prefect", "server", "start", "--port", str(_PORT), "--no-ui"]
    with subprocess.Popen(  # noqa: S603 # Prefect's own command
        words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL
    ) as server:
        api = f"http://127.0.0.1:{_PORT}/api"
        try:
            for _ in range(600):
                with suppress(OSError):
                    urllib.request.urlopen(f"{api}/health", timeout=5).close()  # noqa: S310 # this machine
                    break
                time.sleep(0.2)
            yield api
        finally:
            server.terminate()


if __name__ == "__main__":
    main()
