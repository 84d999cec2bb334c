"""Plug-ins as their authors make them: the files of the how-to pages, installed, and used by real commands."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from rowvec.postgres.connection import Connection
from tests.support import wheel
from tests.support.cli_process import PrefectServer

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/how-to/bring-your-own-embedder.md").read_text("utf-8")
INDEX_PAGE = (ROOT / "docs/how-to/bring-your-own-index.md").read_text("utf-8")
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
    """A folder for Python's path, with the distributions of the two pages and one that cannot be imported."""
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
    _install_index(target)
    return target


def _install_index(target: Path) -> None:
    """What pip leaves of a distribution: its module, and what it declares. Another build takes a second."""
    (code,) = re.findall(r"```python\n(.*?)```", INDEX_PAGE, re.DOTALL)
    (project,) = (tomllib.loads(text)["project"] for text in re.findall(r"```toml\n(.*?)```", INDEX_PAGE, re.DOTALL))
    (target / "rowvec_graph.py").write_text(code, "utf-8")
    declared = target / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    declared.mkdir()
    metadata = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    (declared / "METADATA").write_text(metadata, "utf-8")
    ((group, points),) = project["entry-points"].items()
    lines = [f"[{group}]", *(f"{name} = {value}" for name, value in points.items())]
    (declared / "entry_points.txt").write_text("\n".join(lines), "utf-8")


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


def write(folder: Path, file: str, **parts: object) -> None:
    """The files of a small pipeline."""
    (folder / "birds.csv").write_text("id,text\n1,The emu runs\n2,The Owl flies\n3,the owl flies\n", "utf-8")
    pipeline = {
        "name": "birds",
        "source": {"kind": "csv", "path": "birds.csv", "key": ["id"], "content": "{text}"},
        "target": {"table": "vectors.birds"},
    }
    (folder / file).write_text(yaml.safe_dump(pipeline | parts), "utf-8")


def write_many(folder: Path, **index: object) -> None:
    """A pipeline of 300 rows with an index of the page's kind."""
    rows = (f"{number},bird {number} of flock {number % 7} nests {number % 31}" for number in range(300))
    (folder / "many.csv").write_text("\n".join(["id,text", *rows]), "utf-8")
    source = {"kind": "csv", "path": "many.csv", "key": ["id"], "content": "{text}"}
    embedder = {"kind": "local", "dimensions": 64}
    parts = {"name": "many", "source": source, "embedder": embedder, "target": {"table": "vectors.many"}}
    write(folder, "many.yaml", **parts, index=index)


def test_a_sync_and_a_search_use_the_plug_ins(
    plugins: Path, tmp_path: Path, database_url: str, connection: Connection, prefect_server: PrefectServer
) -> None:
    write(tmp_path, "birds.yaml", embedder={"kind": "hashing", "dimensions": 256, "lower": False})
    write_many(tmp_path, kind="graph", neighbours=8)
    variables = {
        "PREFECT_API_URL": prefect_server.api,
        "ROWVEC_DATABASE_URL": database_url,
        "ROWVEC_HOME": str(tmp_path / "home"),
    }
    # Another value of a key of its own is another model: the sync says so and changes nothing.
    write(tmp_path, "other.yaml", embedder={"kind": "hashing", "dimensions": 256})
    birds = [["sync", "birds.yaml"], ["search", "birds.yaml", "the owl flies"], ["sync", "other.yaml"]]
    # Without its access method, a pipeline with an index of this kind ends in a sentence; then it has one.
    commands = [*birds, ["sync", "many.yaml"]]
    done = run(plugins, "-c", ROWVEC, json.dumps(commands), cwd=tmp_path, **variables)
    report, synced, found, searched, refused, other, lacking, many = map(json.loads, done.stdout.splitlines())
    assert [one["status"] for one in (synced, searched, other, many)] == [0, 0, 2, 1], done
    assert (report["new"], report["embedded"], report["consistent"], report["cost_usd"]) == (3, 3, True, 0)
    assert found["results"][0]["id"] == "3"
    assert "rowvec rebuild" in refused["error"]
    assert "no operator class vector_cosine_ops of the access method graph" in lacking["error"]

    (made,) = re.findall(r"```sql\n(.*?)```", INDEX_PAGE, re.DOTALL)
    connection.execute(made)
    words = ["search", "many.yaml", "bird 7 of flock 0", "--mode", "ann"]
    commands = [["sync", "many.yaml"], words, ["audit", "many.yaml"], ["index", "many.yaml", "--rebuild"]]
    done = run(plugins, "-c", ROWVEC, json.dumps(commands), cwd=tmp_path, **variables)
    report, synced, found, searched, audited, sound, _, rebuilt = map(json.loads, done.stdout.splitlines())
    assert [one["status"] for one in (synced, searched, sound, rebuilt)] == [0, 0, 0, 0], done
    assert (report["embedded"], report["consistent"], audited["consistent"]) == (0, True, True)
    assert report["recall_at_k"] > 0.95
    assert len(found["results"]) == 10
    shown = "SELECT kind, held, valid, why, recall > 0.95, definition LIKE '%USING graph%m=%8%' FROM rowvec.indexes"
    rows = connection.execute(f"{shown} WHERE index_name IS NOT NULL").fetchall()
    assert rows == [("graph", "float", True, "asked", True, True)]
    # Any client has the settings of the kind, and its own ones again after the call.
    body = connection.execute("SELECT prosrc FROM pg_proc WHERE proname = 'many_search'").fetchone()
    assert body is not None
    assert "hnsw.ef_search" in body[0]
    assert "ivfflat" not in body[0]
    connection.execute("SET hnsw.ef_search = 33")
    connection.execute("SELECT count(*) FROM vectors.many_search((SELECT embedding FROM vectors.many LIMIT 1))")
    assert connection.execute("SHOW hnsw.ef_search").fetchone() == ("33",)


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
    "{kind: broken}", "{kind: xyz}", "{dimensions: 3}",
    "{kind: hashing}\\nindex: {kind: graph, neighbours: 1}", "{kind: hashing}\\nindex: {kind: grahp}",
    "{kind: hashing}\\nindex: {kind: graph, m: 3}")]]))
"""
    done = run(plugins, "-c", program, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found, messages = json.loads(done.stdout)
    assert found.keys() == {"plugin embedder hashing", "plugin index graph"}
    assert found["plugin embedder hashing"]["properties"]["kind"]["const"] == "hashing"
    assert found["plugin embedder hashing"]["properties"]["lower"]["description"].startswith("Whether capital")
    assert found["plugin index graph"]["properties"]["neighbours"]["description"] == "Links per node."
    works, wrong_type, unknown_key, close, broken, unknown, without, *of_index = messages
    assert works is None
    assert wrong_type.startswith("p.yaml:4: embedder.lower: ")
    assert unknown_key.startswith("p.yaml:4: embedder.uper: ")
    assert "did you mean hashing?" in close
    assert "of the distribution rowvec-broken cannot be imported (ModuleNotFoundError: No module named" in broken
    assert "Installed are azure_openai" in unknown
    assert "hashing" in unknown
    assert without.startswith("p.yaml:4: embedder: kind is missing; write one of local, ")
    assert of_index == [
        "p.yaml:5: index.neighbours: is 1, and should be at least 2",
        "p.yaml:5: index.kind: there is no kind of index 'grahp'; did you mean graph? Installed are auto, graph, hnsw, "
        "ivfflat, none; docs/how-to/bring-your-own-index.md says how to add one",
        "p.yaml:5: index.m: unknown key; `rowvec schema` lists the known ones",
    ]
    # The schema leaves out a plug-in that cannot be used, and says so.
    assert "rowvec-broken" in done.stderr
