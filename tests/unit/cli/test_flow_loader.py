"""The command line finds every flow by its entry point."""

from __future__ import annotations

import os
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from rowvec.cli.flow_loader import load_flow
from rowvec.errors import UsageError

FLOWS = Path(__file__).parents[3] / "flows"


def test_every_flow_is_registered() -> None:
    registered = {point.name: point.value for point in entry_points(group="rowvec.flows")}
    names = {file.stem for file in FLOWS.glob("[!_]*.py")}
    assert registered == {name: f"rowvec_flows.{name}:{name}" for name in names}


def test_a_flow_that_is_not_registered_is_one_sentence() -> None:
    with pytest.raises(UsageError, match="the flow 'nonsense' is not installed"):
        load_flow("nonsense")


@pytest.mark.parametrize(
    ("file", "content", "named"),
    [
        (".env", "PREFECT_PROFILES_PATH=other.toml", True),
        (".env", "# PREFECT_PROFILES_PATH=other.toml", False),
        ("prefect.toml", "profiles_path = 'other.toml'", True),
        ("prefect.toml", "# profiles_path", False),
        ("pyproject.toml", "[tool.prefect]\nprofiles_path = 'other.toml'", True),
        ("pyproject.toml", "[tool.other]\nprofiles_path = 'other.toml'", False),
    ],
)
def test_profiles_that_a_file_of_settings_names_are_left_to_prefect(
    file: str, content: str, named: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only Prefect's default place for them is replaced, because its home is ours."""
    monkeypatch.setattr(os, "environ", {"HOME": str(tmp_path)})
    monkeypatch.chdir(tmp_path)
    (tmp_path / file).write_text(content, "utf-8")
    with pytest.raises(UsageError):
        load_flow("nonsense")
    assert os.environ["PREFECT_HOME"] == str(tmp_path / ".rowvec/prefect")
    assert os.environ.get("PREFECT_PROFILES_PATH") == (None if named else str(tmp_path / ".prefect/profiles.toml"))
