"""A command that is printed works as it is printed, where it is printed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from rowvec.cli.output import as_typed

BESIDE = Path(sys.executable).parent


@pytest.mark.parametrize(
    ("path", "called"),
    [(f"{BESIDE}:/usr/bin", "rowvec"), ("/usr/bin", str(BESIDE / "rowvec"))],
    ids=["in an environment that is active", "without one"],
)
def test_a_program_is_called_by_its_name_only_where_the_shell_finds_it(
    path: str, called: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", path)
    assert as_typed("rowvec") == called
