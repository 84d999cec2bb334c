"""``rowvec --help`` starts fast: it imports none of the libraries that only some commands need."""

from __future__ import annotations

import subprocess
import sys

import pytest

from rowvec.cli.commands.whole import command_of, in_front

# Code that needs one of these imports it inside a function: each takes 0.1 to 2 seconds. pyarrow itself is not one of
# them, because all of the core passes Arrow data on, but its CSV reader and its dataset module are.
LATE = {
    "prefect",
    "openai",
    "matplotlib",
    "azure",
    "wordllama",
    "PIL",
    "httpx",
    "httpx2",
    "requests",
    "pyarrow.csv",
    "pyarrow.dataset",
}

SCRIPT = """
import sys
from rowvec.cli import main
try:
    main()
finally:
    print(*sys.modules, file=sys.stderr)
"""


@pytest.mark.parametrize("arguments", [("--help",), ("sync", "--help"), ("schema", "--json")])
def test_no_library_is_imported_before_a_command_needs_it(arguments: tuple[str, ...]) -> None:
    done = subprocess.run(  # noqa: S603 # our own command
        [sys.executable, "-c", SCRIPT, *arguments], capture_output=True, text=True, check=True, timeout=120
    )
    imported = set(done.stderr.split())
    assert "rowvec.cli.app" in imported
    assert imported.isdisjoint(LATE)
    if "--help" in arguments:
        assert imported.isdisjoint({"pyarrow", "numpy", "psycopg", "rowvec.pipeline.model", "tenacity"})


@pytest.mark.parametrize(
    ("words", "command"),
    [
        ("plan a.yaml", "plan"),
        ("plan sync -q", "plan"),
        ("--env-file sync plan a.yaml", "plan"),
        ("plan a.yaml --env-file=sync", "plan"),
        ("--help", None),
        ("-q --help plan", None),
        ("-v", None),
    ],
)
def test_the_command_is_found_whose_options_alone_are_made(words: str, command: str | None) -> None:
    assert command_of(in_front(words.split())) == command
