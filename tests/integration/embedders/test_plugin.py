"""A plug-in as its author makes it: the tutorial's files, built as a wheel, installed, and used by a real sync."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.support import wheel
from tests.support.cli_process import PrefectServer

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/how-to/bring-your-own-embedder.md").read_text("utf-8")
ROWVEC = """
import json, sys
from rowvec.cli import main
for words in json.loads(sys.argv[1]):
    sys.argv = ["rowvec", *words, "--json"]
    try:
        main()
    except SystemExit as ended:
        print(json.dumps({"status": ended.code or 0}), flush=True)
"""
"""Runs commands one after the other; after what each has printed comes its exit status."""
PYTHON = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for Python's path, with the tutorial's distribution and one that cannot be imported."""
    folder = tmp_path_factory.mktemp("plugins")
    (project,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    broken = project.replace("hashing", "broken").replace("Hashing", "Broken")
    for name, settings, code in (("hashing", project, PYTHON[0]), ("broken", broken, "import not_there\n")):
        tree = folder / name
        tree.mkdir()
        (tree / "pyproject.toml").write_text(settings, "utf-8")
        (tree / f"rowvec_{name}.py").write_text(code, "utf-8")
    target = folder / "installed"
    # It builds the two wheels and installs them.
    trees = folder / "hashing", folder / "broken"
    wheel.pip(sys.executable, "install", "--no-deps", "--no-build-isolation", "--target", target, *trees)
    return target


def run(plugins: Path, *command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python with the plug-ins on its path."""
    return subprocess.run(  # noqa: S603 # our own commands
        [sys.executable, *command],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(plugins), **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )


def write(folder: Path, file: str, **embedder: object) -> None:
    """The files of a small pipeline."""
    (folder / "birds.csv").write_text("id,text\n1,The emu runs\n2,The Owl flies\n3,the owl flies\n", "utf-8")
    (folder / file).write_text(
        yaml.safe_dump(
            {
                "name": "birds",
                "source": {"kind": "csv", "path": "birds.csv", "key": ["id"], "content": "{text}"},
                "embedder": embedder,
                "target": {"table": "vectors.birds"},
            }
        ),
        "utf-8",
    )


def test_a_sync_and_a_search_use_the_plug_in(
    plugins: Path, tmp_path: Path, database_url: str, prefect_server: PrefectServer
) -> None:
    write(tmp_path, "birds.yaml", kind="hashing", dimensions=256, lower=False)
    variables = {
        "PREFECT_API_URL": prefect_server.api,
        "ROWVEC_DATABASE_URL": database_url,
        "ROWVEC_HOME": str(tmp_path / "home"),
    }
    # Another value of a key of its own is another model: the sync says so and changes nothing.
    write(tmp_path, "other.yaml", kind="hashing", dimensions=256)
    commands = [["sync", "birds.yaml"], ["search", "birds.yaml", "the owl flies"], ["sync", "other.yaml"]]
    done = run(plugins, "-c", ROWVEC, json.dumps(commands), cwd=tmp_path, **variables)
    report, synced, found, searched, refused, other = map(json.loads, done.stdout.splitlines())
    assert [one["status"] for one in (synced, searched, other)] == [0, 0, 2], done
    assert (report["new"], report["embedded"], report["consistent"], report["cost_usd"]) == (3, 3, True, 0)
    assert found["results"][0]["id"] == "3"
    assert "rowvec rebuild" in refused["error"]


def test_the_tutorials_check_passes(plugins: Path, tmp_path: Path) -> None:
    done = run(plugins, "-c", PYTHON[2], cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_schema_and_the_messages_name_the_plug_ins(plugins: Path, tmp_path: Path) -> None:
    program = """
import json, sys
from pathlib import Path
from rowvec.errors import UsageError
from rowvec.pipeline import json_schema
from rowvec.pipeline.file import load
kinds = {k["title"]: k for k in json_schema()["properties"]["embedder"]["anyOf"] if "title" in k}
plugins = {n: d for n, d in json_schema()["$defs"].items() if n.startswith("plugin ")}
def message(text):
    Path("p.yaml").write_text(text)
    try:
        load(Path("p.yaml"))
    except UsageError as error:
        return str(error)
base = "name: p\\nsource: {kind: csv, path: x, key: [id], content: '{t}'}\\ntarget: {table: v.p}\\nembedder: "
print(json.dumps([plugins, [message(base + e) for e in (
    "{kind: hashing}", "{kind: hashing, lower: perhaps}", "{kind: hashing, uper: true}", "{kind: hasing}",
    "{kind: broken}", "{kind: xyz}", "{dimensions: 3}")]]))
"""
    done = run(plugins, "-c", program, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found, messages = json.loads(done.stdout)
    assert found.keys() == {"plugin hashing"}
    assert found["plugin hashing"]["properties"]["kind"]["const"] == "hashing"
    assert found["plugin hashing"]["properties"]["lower"]["description"].startswith("Whether capital")
    works, wrong_type, unknown_key, close, broken, unknown, without = messages
    assert works is None
    assert wrong_type.startswith("p.yaml:4: embedder.lower: ")
    assert unknown_key.startswith("p.yaml:4: embedder.uper: ")
    assert "did you mean hashing?" in close
    assert "of the distribution rowvec-broken cannot be imported (ModuleNotFoundError: No module named" in broken
    assert "Installed are azure_openai" in unknown
    assert "hashing" in unknown
    assert without.startswith("p.yaml:4: embedder: kind is missing; write one of local, ")
    # The schema leaves out a plug-in that cannot be used, and says so.
    assert "rowvec-broken" in done.stderr
