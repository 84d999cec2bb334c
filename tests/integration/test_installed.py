"""An installed rowvec works next to a user's own ``flows`` package and ``tasks`` module."""

from __future__ import annotations

import json
import os
import subprocess
import sysconfig
import venv
from pathlib import Path

import pytest
import yaml

from tests.support import wheel
from tests.support.cli_process import PrefectServer

_SYNC_AND_IMPORTS = """
import runpy, sys

script = sys.argv.pop(1)
try:
    runpy.run_path(script, run_name="__main__")
except SystemExit as ended:
    assert not ended.code, ended.code
import flows, rowvec, tasks
from prefect.flows import load_flow_from_entrypoint
from prefect.utilities.importtools import import_object

print(rowvec.__file__)
print(flows.__file__)
print(tasks.__file__)
print(import_object("rowvec_flows.sync.sync").name)
print(load_flow_from_entrypoint("rowvec_flows.sync:sync").name)
"""
"""Runs the script of a command, as its interpreter does, and then imports what Prefect imports for a deployment."""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts' folder of an environment with the wheel, and with the dependencies of this environment."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder / "env", symlinks=True)
    scripts = folder / "env" / "bin"
    wheel.pip(scripts / "python", "install", "--no-deps", "--no-compile", wheel.build(folder))
    (site_packages,) = (folder / "env").glob("lib/*/site-packages")
    # Python reads no .pth file of a folder that is added like this, so the editable rowvec of this one stays out.
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"), "utf-8")
    return scripts


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A user's folder with modules of the names that our folders have."""
    (tmp_path / "flows").mkdir()
    (tmp_path / "flows" / "__init__.py").write_text("", "utf-8")
    (tmp_path / "tasks.py").write_text("", "utf-8")
    return tmp_path


def _run(project: Path, command: list[str | Path], **environment: str) -> str:
    """Run a command in the user's folder, which is on Python's path; returns its stdout."""
    done = subprocess.run(  # noqa: S603 # our own commands
        command,
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(project), **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_sync_runs_and_prefect_imports_the_flow_in_a_folder_with_flows_and_tasks_of_its_own(
    installed: Path, project: Path, database_url: str, prefect_server: PrefectServer
) -> None:
    (project / "birds.csv").write_text("id,text\n1,The emu runs\n2,The owl flies\n", "utf-8")
    pipeline = {
        "name": "birds",
        "source": {"kind": "csv", "path": "birds.csv", "key": ["id"], "content": "{text}"},
        "embedder": {"kind": "local", "dimensions": 64},
        "target": {"table": "vectors.birds"},
        "artifacts": {"url": "./artifacts"},
    }
    (project / "birds.yaml").write_text(yaml.safe_dump(pipeline), "utf-8")
    printed = _run(
        project,
        [installed / "python", "-c", _SYNC_AND_IMPORTS, installed / "rowvec", "sync", "birds.yaml", "--json"],
        PREFECT_API_URL=prefect_server.api,
        ROWVEC_DATABASE_URL=database_url,
        ROWVEC_HOME=str(project / "home"),
    )
    report, ours, flows, tasks, *names = printed.splitlines()
    report = json.loads(report)
    assert (report["new"], report["embedded"], report["consistent"]) == (2, 2, True)
    assert Path(ours).is_relative_to(installed.parent)
    assert Path(flows) == project / "flows" / "__init__.py"
    assert Path(tasks) == project / "tasks.py"
    assert names == ["sync", "sync"]
