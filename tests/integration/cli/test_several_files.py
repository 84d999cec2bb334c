"""Several files in one command, the options of rowvec itself, and how results are chosen and printed."""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Generator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from rowvec.cli import app
from rowvec.cli.commands.whole import in_front
from rowvec.cli.failures import AWAITING, DONE, FAILED, WRONG_USE, worst
from rowvec.cli.output import err
from rowvec.cli.schedule import next_syncs
from rowvec.pipeline import Pipeline
from rowvec.postgres.connection import Connection
from tests.support.cli_process import PrefectServer, write_pipeline
from tests.support.paintings import sync
from tests.support.prefect_api import answered


@pytest.fixture(autouse=True)
def manner() -> Generator[None]:
    """What a command sets for its process is set back."""
    yield
    err.quiet = err.as_json = False
    logging.getLogger("rowvec").handlers.clear()


def ran(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a command in this process."""
    status = app.run([str(word) for word in words], as_json="--json" in words)
    said = capsys.readouterr()
    return status, said.out, said.err


def test_one_that_fails_does_not_stop_the_others_and_json_is_a_list(
    source: Connection, paintings: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = write_pipeline(paintings, tmp_path), tmp_path / "nothing.yaml"
    status, out, _ = ran(capsys, "plan", bad, good, "--json")
    first, second = json.loads(out)
    assert (status, first["file"], second["file"], second["new"]) == (WRONG_USE, str(bad), str(good), 50)
    assert "cannot be read" in first["error"]
    status, out, _ = ran(capsys, "plan", good, "--json")
    assert (status, json.loads(out)["new"]) == (DONE, 50)
    status, out, said = ran(capsys, "plan", good, bad)
    assert status == WRONG_USE
    assert f"{good}:\n" in out
    assert "cannot be read" in said
    sync(paintings)
    source.execute("UPDATE vectors.paintings SET content = 'other' WHERE id = 3")
    status, out, _ = ran(capsys, "audit", bad, good, "--json")
    assert (status, json.loads(out)[1]["consistent"]) == (FAILED, False)


def test_a_failure_is_worse_than_wrong_use_and_that_than_waiting() -> None:
    assert worst([DONE, AWAITING, WRONG_USE, FAILED, DONE]) == FAILED
    assert worst([AWAITING, WRONG_USE]) == WRONG_USE
    assert worst([DONE, AWAITING]) == AWAITING
    assert worst([]) == DONE


@pytest.mark.parametrize(
    ("words", "moved"),
    [
        ("sync a.yaml -q", "-q sync a.yaml"),
        ("sync a.yaml --env-file .env --json", "--env-file .env sync a.yaml --json"),
        ("sync a.yaml --log-format=json -v", "--log-format=json -v sync a.yaml"),
        ("search a.yaml -- -q", "search a.yaml -- -q"),
        ("psql -q -c x", "psql -q -c x"),
        ("-q psql -q", "-q psql -q"),
        ("plan --env-file", "--env-file plan"),
    ],
)
def test_the_options_of_rowvec_may_stand_after_the_command(words: str, moved: str) -> None:
    assert in_front(words.split()) == moved.split()


def test_variables_come_from_a_file_and_set_ones_win(
    paintings: Pipeline,
    source: Connection,
    database_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    target = paintings.target.model_copy(update={"url": "${MY_TARGET}"})
    file = write_pipeline(paintings.model_copy(update={"target": target}), tmp_path)
    env = tmp_path / "my.env"
    env.write_text(f"# a comment\nexport MY_TARGET='{database_url}'\nMY_OTHER=from the file\n", "utf-8")
    monkeypatch.setenv("MY_TARGET", "")  # so that it is set back at the end
    monkeypatch.delenv("MY_TARGET")
    monkeypatch.setenv("MY_OTHER", "set")
    assert ran(capsys, "plan", file)[0] == WRONG_USE
    assert ran(capsys, "plan", file, "--env-file", env)[0] == DONE
    env.write_text("MY_TARGET=x\nno variable\n", "utf-8")
    status, _, said = ran(capsys, "plan", file, "--env-file", env)
    assert (status, said) == (WRONG_USE, f"rowvec: {env}:2: no variable; write NAME=value, or # before a comment\n")


def test_logs_as_json_are_one_object_per_line_and_quiet_keeps_errors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (("--log-format", "json"), ("--log-format", "json", "-q")):
        _, out, said = ran(capsys, "plan", tmp_path / "none\x1b.yaml", *words)
        (line,) = said.splitlines()
        found = json.loads(line)
        assert (out, found["level"]) == ("", "error")
        assert set(found) == {"time", "level", "message"}
        assert "\x1b" not in said
    err.print("embed batch 0: done")
    assert capsys.readouterr().err == ""


def test_a_plan_shows_rows_with_their_old_and_new_text(
    source: Connection, paintings: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_pipeline(paintings, tmp_path)
    sync(paintings)
    source.execute(
        "UPDATE paintings SET title = E'new \x1b[31m title' WHERE id = 3; DELETE FROM paintings WHERE id = 4"
    )
    source.execute("INSERT INTO paintings VALUES (90, 'added', 'a row', 'Author 1', 1990)")
    _, out, _ = ran(capsys, "plan", file, "--show", "10", "--json")
    rows = {row["action"]: row for row in json.loads(out)["rows"]}
    assert set(rows) == {"changed", "deleted", "new"}
    assert rows["changed"]["key"] == ["3"]
    assert rows["changed"]["old"].startswith("Painting 3")
    assert rows["changed"]["new"].startswith("new \x1b[31m title")
    assert (rows["new"]["old"], rows["new"]["new"]) == (None, "added\na row")
    assert rows["deleted"]["new"] is None
    _, out, _ = ran(capsys, "plan", file, "--show", "1")
    assert "\x1b" not in out
    assert "Painting 3" in out


def test_a_search_names_its_columns_and_gives_those_that_are_asked_for(
    source: Connection, paintings: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sync(paintings)
    file = write_pipeline(paintings, tmp_path)
    words: tuple[Any, ...] = ("search", file, "the number 7", "-k", "2")
    _, out, _ = ran(capsys, *words)
    for name in ("id", "author", "year", "content", "distance"):
        assert name in out
    _, out, _ = ran(capsys, *words, "--columns", "year,id", "--json")
    assert [list(result) for result in json.loads(out)["results"]] == [["year", "id"]] * 2
    _, out, _ = ran(capsys, *words, "--csv")
    header, *rows = csv.reader(io.StringIO(out))
    assert (header, len(rows)) == (["id", "author", "year", "content", "distance"], 2)
    for wrong in (("--columns", "yaer"), ("--where", "yaer > 1900")):
        status, _, said = ran(capsys, *words, *wrong)
        assert status == WRONG_USE
        assert "did you mean 'year'?" in said


def test_status_of_files_and_of_all_pipelines(
    source: Connection, paintings: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_pipeline(paintings, tmp_path)
    _, out, _ = ran(capsys, "status")
    assert "No pipeline has run" in out
    _, out, _ = ran(capsys, "status", file, "--json")
    assert json.loads(out)["verdict"] == "never run"
    sync(paintings)
    status, out, _ = ran(capsys, "status", "--json")
    (found,) = json.loads(out)
    assert (status, found["pipeline"], found["verdict"], found["rows"]) == (DONE, "paintings", "consistent", 50)
    assert found["next_sync"] is None
    status, out, said = ran(capsys, "status", file, tmp_path / "none.yaml")
    assert status == WRONG_USE
    assert "paintings" in out
    assert "none.yaml: cannot be read" in said


def test_check_asks_the_server_of_the_active_profile(
    prefect_server: PrefectServer,
    paintings: Pipeline,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    profiles = tmp_path / "profiles.toml"
    profiles.write_text(f'active = "a"\n[profiles.a]\nPREFECT_API_URL = "{prefect_server.api}"\n', "utf-8")
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("PREFECT_PROFILES_PATH", str(profiles))
    _, out, _ = ran(capsys, "check", write_pipeline(paintings, tmp_path), "--no-embedder", "--json")
    (told,) = [one for one in json.loads(out)["checks"] if one["name"] == "prefect"]
    assert told["state"] == "ok"
    assert "the server of the active Prefect profile or settings is" in told["detail"]


def test_the_next_sync_is_the_first_of_those_that_prefect_has_planned(
    prefect_server: PrefectServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", prefect_server.api)
    soon = datetime.now(UTC) + timedelta(hours=2)
    deployments = f"{prefect_server.api}/deployments"
    flow = answered("POST", f"{prefect_server.api}/flows/", {"name": "sync"})
    deployment = answered("POST", f"{deployments}/", {"name": "planned-paintings", "flow_id": flow["id"]})["id"]
    for time in (soon + timedelta(hours=1), soon):
        state = {"type": "SCHEDULED", "state_details": {"scheduled_time": time.isoformat()}}
        answered("POST", f"{deployments}/{deployment}/create_flow_run", {"state": state})
    found = next_syncs(["planned-paintings", "other"])
    answered("DELETE", f"{deployments}/{deployment}")
    assert {name: datetime.fromisoformat(time) for name, time in found.items()} == {"planned-paintings": soon}
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:1/api")
    assert next_syncs(["planned-paintings"]) == {}
    assert "does not answer" in capsys.readouterr().err
