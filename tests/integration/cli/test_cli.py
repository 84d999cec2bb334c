"""The command line: one JSON object on stdout, exit statuses 0, 1 and 2, and never a traceback."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from rowvec.pipeline import Pipeline
from rowvec.postgres.connection import Connection
from tests.support.cli_process import CLI, Ended, PrefectServer, start
from tests.support.paintings import sync

Rowvec = Callable[..., Ended]


def shell(*arguments: object, **environment: str) -> Ended:
    """Run the real command as a shell does, with an interpreter of its own."""
    done = subprocess.run(  # noqa: S603 # our own command
        [CLI, *map(str, arguments)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    return Ended(status=done.returncode, stdout=done.stdout, stderr=done.stderr)


@pytest.fixture
def rowvec(prefect_server: PrefectServer) -> Rowvec:
    """Run the command, forked from a process that has imported it."""

    def run(*arguments: object, **environment: str) -> Ended:
        return start(prefect_server.api, *map(str, arguments), **environment).wait()

    return run


def write(pipeline: Pipeline, folder: Path) -> Path:
    file = folder / "paintings.yaml"
    file.write_text(yaml.safe_dump(pipeline.model_dump(mode="json", exclude_none=True)), "utf-8")
    return file


def only_json(done: Ended) -> dict[str, Any]:
    """The one JSON object on stdout."""
    assert "Traceback" not in done.stderr
    assert done.stdout.count("\n") == 1
    return json.loads(done.stdout)


def test_schema_is_a_json_schema(rowvec: Rowvec) -> None:
    done = rowvec("schema", "--json")
    assert done.status == 0
    assert only_json(done)["title"] == "Pipeline"
    assert json.loads(rowvec("schema").stdout) == json.loads(done.stdout)


@pytest.mark.parametrize(
    "arguments",
    [[], ["nonsense"], ["sync"], ["search", "x.yaml"], ["search", "x.yaml", "q", "-k", "0"], ["plan", "--bad"]],
)
def test_wrong_use_is_status_two(rowvec: Rowvec, arguments: list[str]) -> None:
    done = rowvec(*arguments)
    assert done.status == 2
    assert "Traceback" not in done.stderr


def test_a_bad_pipeline_file_is_status_two_with_one_sentence(rowvec: Rowvec, tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text("name: x\nsource: {kind: csv}\n", "utf-8")
    for command in ("sync", "plan", "audit", "rejects"):
        done = rowvec(command, file, "--json")
        assert done.status == 2
        assert f"{file}:2: source.path: is missing" in only_json(done)["error"]


def test_a_database_that_is_not_there_is_status_one(rowvec: Rowvec, paintings: Pipeline, tmp_path: Path) -> None:
    file = write(paintings, tmp_path)
    done = rowvec("plan", file, "--json", ROWVEC_DATABASE_URL="postgresql://nobody:hunter2@127.0.0.1:1/none")
    assert done.status == 1
    assert "the database does not answer" in only_json(done)["error"]
    assert "hunter2" not in done.stdout + done.stderr


def test_the_whole_job(source: Connection, rowvec: Rowvec, paintings: Pipeline, tmp_path: Path) -> None:
    file = write(paintings, tmp_path)
    planned = only_json(rowvec("plan", file, "--json"))
    assert (planned["new"], planned["cost_usd"]) == (50, 0.0)
    done = rowvec("sync", file, "--json")
    report = only_json(done)
    assert done.status == 0
    names = "run_id new changed metadata_only deleted unchanged rejected embedded reused tokens cost_usd consistent"
    assert set(names.split()) | {"recall_at_k", "seconds"} <= set(report)
    assert (report["new"], report["consistent"]) == (50, True)
    assert report["seconds"]["total"] > 0
    found = only_json(rowvec("search", file, "the number 7", "-k", 3, "--where", "year > 1905", "--json"))["results"]
    assert len(found) == 3
    assert {"id", "author", "year", "content", "distance"} == set(found[0])
    audited = only_json(rowvec("audit", file, "--json"))
    assert audited == {
        "consistent": True,
        "missing": 0,
        "stale": 0,
        "orphaned": 0,
        "corrupt": 0,
        "repaired": 0,
        "rows": [],
        "objects": [],
        "notes": [],
    }
    source.execute("UPDATE vectors.paintings SET embedding_bits = ~embedding_bits WHERE id = 3")
    broken = rowvec("audit", file, "--json")
    assert broken.status == 1
    assert only_json(broken)["rows"][0]["key"] == ["3"]
    failed = rowvec("sync", file, "--json")
    assert failed.status == 1
    assert only_json(failed)["consistent"] is False
    repaired = rowvec("audit", file, "--repair", "--json")
    assert (repaired.status, only_json(repaired)["repaired"]) == (0, 1)


def test_a_filter_that_is_none_is_status_two(
    source: Connection, rowvec: Rowvec, paintings: Pipeline, tmp_path: Path
) -> None:
    sync(paintings)
    done = rowvec("search", write(paintings, tmp_path), "x", "--where", "1; DROP TABLE paintings", "--json")
    assert done.status == 2
    assert source.execute("SELECT count(*) FROM paintings").fetchone() == (50,)


def test_piped_output_is_plain_lines(source: Connection, paintings: Pipeline, tmp_path: Path, rowvec: Rowvec) -> None:
    done = rowvec("sync", write(paintings, tmp_path))
    assert done.status == 0
    assert "\x1b" not in done.stdout + done.stderr
    assert "embed batch 0: 50 of 50" in done.stderr
    assert done.stdout.startswith("Consistent: 50 vectors agree with the source.")
