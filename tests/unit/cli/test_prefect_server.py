"""A command starts a Prefect server before its own imports only if it is certain that it needs one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rowvec.cli.prefect_server import needs_own_server

LOCAL = """
active = "local"
[profiles.local]
PREFECT_API_URL = "http://127.0.0.1:4200/api"
[profiles.none]
PREFECT_LOGGING_LEVEL = "DEBUG"
"""


@pytest.fixture(autouse=True)
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user who has configured nothing, in an empty folder."""
    for name in ("PREFECT_API_URL", "PREFECT_HOME", "PREFECT_PROFILES_PATH", "PREFECT_PROFILE", "ROWVEC_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    (tmp_path / "user/.prefect").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("words", ["sync a.yaml", "-q sync a.yaml", "audit a.yaml --repair", "demo", "prune --apply a"])
def test_a_flow_run_without_a_server_needs_one(words: str) -> None:
    assert needs_own_server(words.split())


@pytest.mark.parametrize(
    "words", ["", "--help", "sync --help", "audit a.yaml", "plan a.yaml", "prune a.yaml", "sync a --env-file b", "up"]
)
def test_no_other_command_does(words: str) -> None:
    assert not needs_own_server(words.split())


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("user/.prefect/profiles.toml", LOCAL),
        ("user/.prefect/profiles.toml", "no toml"),
        ("prefect.toml", ""),
        (".env", "export PREFECT_API_URL=http://127.0.0.1:4200/api"),
        ("pyproject.toml", "[tool.prefect.api]\nurl = 'http://127.0.0.1:4200/api'"),
    ],
)
def test_none_is_started_if_a_file_may_name_a_server(empty: Path, file: str, content: str) -> None:
    (empty / file).write_text(content, "utf-8")
    assert not needs_own_server(["sync", "a.yaml"])


def test_none_is_started_if_the_environment_names_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:4200/api")
    assert not needs_own_server(["sync", "a.yaml"])


def test_a_profile_without_a_server_names_none(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (empty / "user/.prefect/profiles.toml").write_text(LOCAL, "utf-8")
    (empty / "pyproject.toml").write_text("[project]\ndependencies = ['prefect']", "utf-8")
    monkeypatch.setenv("PREFECT_PROFILE", "none")
    assert needs_own_server(["sync", "a.yaml"])


def test_a_stack_that_has_ended_is_no_server(empty: Path) -> None:
    folder = empty / ".rowvec/stack"
    folder.mkdir(parents=True)
    (folder / "state.json").write_text(
        json.dumps({"phase": "ready", "port": 4200, "pipelines": [], "children": {}}), "utf-8"
    )
    assert needs_own_server(["sync", "a.yaml"])
