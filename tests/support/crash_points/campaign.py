"""``make crash``: kills each command at each of its points, and writes one line per trial to a file of results.

A run that was stopped goes on where it was: what the file of results has is not tried again, but what has failed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from rowvec.postgres.connection import connect
from rowvec.postgres.migrations import install
from tests.support import run_folder
from tests.support.crash_points.cases import CASES, Case
from tests.support.crash_points.scene import scene
from tests.support.crash_points.trial import Tier, Trial, attempt, uninterrupted
from tests.support.servers import lines

_context = multiprocessing.get_context("spawn")


Name = tuple[str, str, str]
"""The case, the point and the fault of a trial."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Task:
    """What one process does until it takes the next task."""

    case: str
    tier: Tier


@dataclass(frozen=True, slots=True, kw_only=True)
class _Given:
    """What all processes have in common."""

    server_url: str
    results: Path
    commit: str
    passed: frozenset[Name]
    """What is not tried again."""
    alone: frozenset[Name] | None
    """What alone is tried; None: everything."""
    every: int
    """Of the faults of a case and tier, each one of this number is tried: a sample, the same each time."""
    until: float
    """No trial begins after this moment, by the monotonic clock."""

    def is_wanted(self, trial: Name) -> bool:
        """Whether the campaign runs the trial."""
        return trial not in self.passed and (self.alone is None or trial in self.alone)


def main() -> None:
    """Run."""
    parser = argparse.ArgumentParser(prog="make crash", description=__doc__)
    parser.add_argument("--results", type=Path, default=Path("build/crash.jsonl"))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--cases", default="", help="parts of the names of the cases to run, with commas between")
    parser.add_argument("--tiers", type=int, nargs="+", default=[1, 2, 3, 4, 5], help="which faults; see trial.py")
    parser.add_argument("--every", type=int, default=1, help="a sample: only each of so many faults of a case")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no trial after so many seconds")
    parser.add_argument("--failed", action="store_true", help="only try again what was not passed")
    parser.add_argument("--summary", action="store_true", help="only print the table of a file of results")
    options = parser.parse_args()
    if not options.summary:
        options.results.parent.mkdir(parents=True, exist_ok=True)
        _run_all(options)
    print(summary(_read(options.results)))


def _run_all(options: argparse.Namespace) -> None:
    last = _last(_read(options.results))
    passed = frozenset(trial for trial, line in last.items() if line["verdict"] == "same")
    alone = frozenset(last) - passed if options.failed else None
    parts = options.cases.split(",")
    cases = [case for case in CASES if any(part in case.name for part in parts)]
    if alone is not None:
        cases = [case for case in cases if any(case.name == name for name, _, _ in alone)]
    queue: Any = _context.Queue()
    for task in [_Task(case=case.name, tier=tier) for tier in options.tiers for case in cases]:
        queue.put(task)
    for _ in range(options.workers):
        queue.put(None)
    with _server() as url:
        given = _Given(
            server_url=url,
            results=options.results,
            commit=_commit(),
            passed=passed,
            alone=alone,
            every=options.every,
            until=time.monotonic() + options.seconds,
        )
        processes = [_context.Process(target=_work, args=(number, given, queue)) for number in range(options.workers)]
        for process in processes:
            process.start()
        try:
            for process in processes:
                process.join()
        finally:
            for process in processes:
                process.terminate()


@contextmanager
def _server() -> Generator[str]:
    """A server with a ``template_rowvec``, for as long as the context lasts."""
    run_folder.begin()
    line = lines.chosen()
    line.use_programs()
    try:
        with line.serving() as server:
            with psycopg.connect(server.url, autocommit=True) as connection:
                connection.execute("CREATE DATABASE template_rowvec")
            server.prepare("template_rowvec")
            with connect(server.direct("template_rowvec")) as connection:
                install(connection)
            yield server.url
    finally:
        run_folder.end()


def _work(number: int, given: _Given, queue: Any) -> None:
    cases = {case.name: case for case in CASES}
    while (task := queue.get()) is not None and time.monotonic() < given.until:
        case = cases[task.case]
        place = run_folder.short_folder(f"c{number}")
        try:
            with scene(given.server_url, f"crash_{number}", place / "scene", case) as played:
                wanted = uninterrupted(played)
                for at in wanted.faults(task.tier)[:: given.every]:
                    if given.is_wanted((case.name, str(at[0]), at[1])) and time.monotonic() < given.until:
                        _write(given, case, attempt(played, wanted, at))
        except AssertionError as error:
            print(f"{case.name}: {error}", file=sys.stderr, flush=True)


def _write(given: _Given, case: Case, trial: Trial) -> None:
    """Append one line: short enough to be written whole while other processes write too."""
    point, fault = trial.at
    line = {
        "commit": given.commit,
        "case": case.name,
        "command": case.command,
        "kind": point.kind,
        "point": str(point),
        "fault": fault,
        "outcome": trial.outcome[:200],
        "verdict": trial.verdict,
        "seconds": round(trial.seconds, 2),
        "findings": [finding[:300] for finding in trial.findings[:5]],
    }
    with given.results.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def _read(results: Path) -> list[dict[str, Any]]:
    if not results.exists():
        return []
    return [json.loads(line) for line in results.read_text("utf-8").splitlines()]


def summary(lines: list[dict[str, Any]]) -> str:
    """A table in Markdown: how many trials of each command, by kind of point, and how they ended."""
    last = _last(lines).values()
    counts = Counter((line["command"], _column(line)) for line in last)
    counts += Counter((line["command"], line["verdict"]) for line in last)
    columns = ["statement", "request", "file", "cut", "full", "same", "differs", "not reached"]
    rows = [f"| Command | {' | '.join(columns)} |", "|---|" + "---:|" * len(columns)]
    for command in dict.fromkeys(case.command for case in CASES):
        figures = [counts[command, column] for column in columns]
        if any(figures):
            rows.append(f"| {command} | " + " | ".join(f"{figure:,}" for figure in figures) + " |")
    return "\n".join(rows)


def _last(lines: list[dict[str, Any]]) -> dict[Name, dict[str, Any]]:
    """The last line of each trial."""
    return {(line["case"], line["point"], line["fault"]): line for line in lines}


def _column(line: dict[str, Any]) -> str:
    """A kill counts by the kind of its point."""
    return line["kind"] if line["fault"] in ("before", "after") else line["fault"]


def _commit() -> str:
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)  # noqa: S607
    return found.stdout.strip()


if __name__ == "__main__":
    main()
