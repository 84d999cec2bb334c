"""`make test-matrix`: runs the tests that use a Postgres on each line's server, and prints a table in Markdown."""

from __future__ import annotations

import datetime
import os
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

from tests.support.servers.lines import LINES

_REPOSITORY = Path(__file__).parents[2]
_DEFAULT = ("tests/integration", "tests/flows", "tests/faults")
_HEAD = """
| Line | PostgreSQL | pgvector | Passed | Failed | Skipped | Date | Commit |
|---|---|---|---|---|---|---|---|"""


@dataclass(slots=True)
class Outcome:
    """What the tests of one line came to."""

    line: str
    postgres: str = "?"
    pgvector: str = "?"
    passed: int = 0
    failed: list[str] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)

    def row(self) -> str:
        """Its row of the table."""
        commit = _git("rev-parse", "--short", "HEAD") + (" with changes" if _git("status", "--porcelain") else "")
        today = datetime.datetime.now(tz=datetime.UTC).date()
        line = "a server at hand" if "://" in self.line else self.line
        cells = (line, self.postgres, self.pgvector, self.passed, len(self.failed), self.skipped.total(), today, commit)
        return f"| {' | '.join(map(str, cells))} |"


def main() -> int:
    """``python -m tests.support.matrix [--lines=A,B] PYTEST-ARGUMENTS``; the exit status is 1 if a test failed."""
    words = sys.argv[1:]
    names = [name for word in words if word.startswith("--lines=") for name in word[8:].split(",") if name]
    arguments = [word for word in words if not word.startswith("--lines=")]
    outcomes: list[Outcome] = []
    for name in names or LINES:
        outcomes.append(_run(name, arguments))
        print(outcomes[-1].row(), flush=True)
    print("\nTests:", " ".join(_tests(arguments)))
    print(_HEAD)
    for one in outcomes:
        print(one.row())
    for one in outcomes:
        for failure in one.failed:
            print(f"- failed on `{one.line}`: `{failure}`")
        for reason, count in one.skipped.most_common():
            print(f"- skipped on `{one.line}`, {count}: {reason}")
    return 1 if any(one.failed or not one.passed for one in outcomes) else 0


def _run(name: str, arguments: list[str]) -> Outcome:
    # A server that somebody runs is one for all processes, and they would make databases of the same names.
    alone = ["--numprocesses=0", "--dist=no"] if "://" in name else []
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.xml"
        print(f"== {name}", flush=True)
        subprocess.run(  # noqa: S603 # ours
            [sys.executable, "-m", "pytest", "-q", f"--junitxml={results}", *arguments, *_added(arguments), *alone],
            cwd=_REPOSITORY,
            env={**os.environ, "ROWVEC_TEST_SERVER": name},
            stdin=subprocess.DEVNULL,
            check=False,
        )
        # Without results, the tests could not even be collected: pytest has said why.
        return _read(name, results) if results.exists() else Outcome(name, failed=["the collection of the tests"])


def _tests(arguments: list[str]) -> list[str]:
    return [word for word in arguments if word.startswith("tests")] or list(_DEFAULT)


def _added(arguments: list[str]) -> list[str]:
    return [] if any(word.startswith("tests") for word in arguments) else list(_DEFAULT)


def _read(name: str, results: Path) -> Outcome:
    postgres, pgvector = _versions(name)
    outcome = Outcome(name, postgres, pgvector)
    root = ElementTree.parse(results).getroot()  # noqa: S314 # our own pytest has written it
    for case in root.iter("testcase"):
        if (skipped := case.find("skipped")) is not None:
            outcome.skipped[str(skipped.get("message"))] += 1
        elif case.find("failure") is not None or case.find("error") is not None:
            outcome.failed.append(f"{case.get('classname')}::{case.get('name')}")
        else:
            outcome.passed += 1
    return outcome


def _versions(name: str) -> tuple[str, str]:
    """Of PostgreSQL and pgvector, as the line's server says; a process of its own takes the line's programs."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.servers.lines"],
        cwd=_REPOSITORY,
        env={**os.environ, "ROWVEC_TEST_SERVER": name},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    postgres, pgvector = done.stdout.split()
    return postgres, pgvector


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=_REPOSITORY, capture_output=True, text=True, check=False)  # noqa: S603, S607 # git's own
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
