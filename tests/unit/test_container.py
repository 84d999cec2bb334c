"""The Dockerfile and the compose file, checked as far as that is possible without Docker."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from rowvec.pipeline.file import load
from rowvec.pipeline.references import resolve

REPOSITORY = Path(__file__).parents[2]
DOCKERFILE = REPOSITORY / "deployments/Dockerfile"
COMPOSE = REPOSITORY / "deployments/compose.yaml"
BIN = Path(sys.executable).parent


@pytest.mark.parametrize(
    "command",
    [
        ["hadolint", str(DOCKERFILE)],
        ["check-jsonschema", "--builtin-schema", "vendor.compose-spec", str(COMPOSE)],
    ],
)
def test_the_linters_find_nothing(command: list[str]) -> None:
    ended = subprocess.run([BIN / command[0], *command[1:]], capture_output=True, text=True, timeout=120)  # noqa: S603 # ours
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_the_image_holds_the_packages_and_does_not_run_as_root() -> None:
    recipe = DOCKERFILE.read_text()
    copied = " ".join(re.findall(r"^COPY (?!--)(.*) \S+$", recipe, re.MULTILINE)).replace(
        "${LOCK}", "requirements.lock"
    )
    assert all((REPOSITORY / name).exists() for name in copied.split())
    project: dict[str, Any] = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    assert {"setup.py", "pyproject.toml", "rowvec", "flows", "tasks"} <= set(copied.split())
    let_in = {line[1:] for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert {name.partition("/")[0] for name in copied.split()} <= let_in | {"requirements.lock"}
    users = re.findall(r"^USER (\S+)$", recipe, re.MULTILINE)
    assert users == ["10001"]
    assert "--require-hashes" in recipe
    assert "--only-binary :all:" in recipe
    version = project["project"]["version"]
    assert yaml.safe_load(COMPOSE.read_text())["services"]["worker"]["image"] == f"rowvec:{version}"


def test_the_worker_has_what_the_deployed_pipeline_names(monkeypatch: pytest.MonkeyPatch) -> None:
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    deployed = yaml.safe_load((REPOSITORY / "deployments/compose.prefect.yaml").read_text())
    for name, value in services["worker"]["environment"].items():
        # ${NAME:-default}, as compose reads it; the key ends in padding.
        monkeypatch.setenv(name, re.sub(r"\$\{\w+(?::-([^}]*))?\}", r"\1", value))
    for deployment in deployed["deployments"]:
        # The image's working directory has the folder deployments of the tree.
        place = Path(deployment["parameters"]["pipeline"]).relative_to("/app")
        assert str(place) in DOCKERFILE.read_text()
        pipeline = resolve(load(REPOSITORY / place))
        assert pipeline.artifacts.url == "http://azurite:10000/devstoreaccount1/rowvec"
        assert pipeline.artifacts.credential is not None
    waits = services["worker"]["depends_on"]
    assert waits["deploy"]["condition"] == "service_completed_successfully"
    healthy = {name for name, how in waits.items() if how["condition"] == "service_healthy"}
    assert all("healthcheck" in services[name] for name in healthy)
