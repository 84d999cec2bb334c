"""A command starts a Prefect server before its own imports only if it is certain that it needs one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rowvec.cli.prefect_server import known_server, needs_own_server
from rowvec.runtime import prefect_server
from rowvec.runtime.prefect_server import PrefectServer, named_server

LOCAL = """
active = "local"
[profiles.local]
PREFECT_API_URL = "http://127.0.0.1:4200/api"
PREFECT_API_AUTH_STRING = "me:secret"
[profiles.none]
PREFECT_LOGGING_LEVEL = "DEBUG"
"""


@pytest.fixture(autouse=True)
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user who has configured nothing, in an empty folder."""
    for name in ("API_URL", "API_KEY", "API_AUTH_STRING", "HOME", "PROFILES_PATH", "PROFILE"):
        monkeypatch.delenv(f"PREFECT_{name}", raising=False)
    monkeypatch.delenv("ROWVEC_HOME", raising=False)
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


def test_the_server_of_the_active_profile_is_found_as_prefect_finds_it(
    empty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profiles = empty / "user/.prefect/profiles.toml"
    profiles.write_text(LOCAL, "utf-8")
    # Prefect has looked for the home of this process's user already.
    monkeypatch.setenv("PREFECT_PROFILES_PATH", str(profiles))
    found = named_server()
    assert found == PrefectServer(
        api="http://127.0.0.1:4200/api", named_by="the active Prefect profile or settings", login="me:secret"
    )
    assert found is not None
    assert found.headers == {"Authorization": "Basic bWU6c2VjcmV0"}
    assert "secret" not in repr(found)
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:4201/api")
    by_both = named_server()
    assert by_both is not None
    assert (by_both.api, by_both.login, by_both.named_by) == (
        "http://127.0.0.1:4201/api",
        "me:secret",
        "PREFECT_API_URL",
    )
    monkeypatch.delenv("PREFECT_API_URL")
    monkeypatch.setenv("PREFECT_PROFILE", "none")
    assert known_server() is None


def test_prefect_is_not_imported_to_find_a_server_that_the_environment_names_or_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(prefect_server, "prefect_module", lambda: pytest.fail("Prefect was asked"))
    assert named_server() is None
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:4200/api")
    assert named_server() == PrefectServer(api="http://127.0.0.1:4200/api", named_by="PREFECT_API_URL")
    monkeypatch.setenv("PREFECT_API_KEY", "pnu_1")
    found = named_server()
    assert found is not None
    assert found.headers == {"Authorization": "Bearer pnu_1"}


def test_a_stack_that_has_ended_is_no_server(empty: Path) -> None:
    folder = empty / ".rowvec/stack"
    folder.mkdir(parents=True)
    (folder / "state.json").write_text(
        json.dumps({"phase": "ready", "port": 4200, "pipelines": [], "children": {}}), "utf-8"
    )
    assert needs_own_server(["sync", "a.yaml"])
