"""``rowvec --help`` starts fast: it imports none of the libraries that take half a second each."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Whoever needs one of these imports it where it is needed, inside a function.
HEAVY = ("prefect", "pyarrow", "openai", "matplotlib", "azure")

SCRIPT = """
import sys
from rowvec.cli import main
sys.argv = ["rowvec", *sys.argv[1:]]
try:
    main()
finally:
    print(*sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr)
"""


@pytest.mark.parametrize("arguments", [("--help",), ("sync", "--help"), ("schema", "--json")])
def test_no_heavy_library_is_imported_before_a_command_needs_it(arguments: tuple[str, ...]) -> None:
    done = subprocess.run(  # noqa: S603 # our own command
        [sys.executable, "-c", SCRIPT, *arguments], capture_output=True, text=True, check=True, timeout=120
    )
    imported = set(done.stderr.split())
    assert "rowvec" in imported
    assert imported.isdisjoint(HEAVY)
