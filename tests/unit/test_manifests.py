"""The files for Kubernetes and Azure Container Instances, checked as far as that is possible without either."""

from __future__ import annotations

import re
import shutil
import sys
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

REPOSITORY = Path(__file__).parents[2]
FOLDER = REPOSITORY / "deployments"
MANIFESTS = sorted((FOLDER / "kubernetes").glob("*.yaml"))
GROUP: dict[str, Any] = yaml.safe_load((FOLDER / "azure-container-instances/worker.yaml").read_text("utf-8"))
VERSION = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]["version"]
IMAGE_USER = 10001
OLDEST, NEWEST = "1.30", "1.37"


def _pod(manifest: dict[str, Any]) -> dict[str, Any]:
    spec = manifest["spec"]
    return (spec["jobTemplate"]["spec"] if manifest["kind"] == "CronJob" else spec)["template"]["spec"]


@pytest.mark.parametrize("file", MANIFESTS, ids=lambda file: file.stem)
@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_kubernetes_accepts_the_manifest(file: Path, version: str) -> None:
    """Strictly: a key that the schema does not have is an error."""
    kubernetes_validate.validate(yaml.safe_load(file.read_text("utf-8")), version, strict=True)


@pytest.mark.parametrize("file", MANIFESTS, ids=lambda file: file.stem)
def test_a_pod_can_write_to_its_volumes_alone_and_has_no_rights(file: Path) -> None:
    pod = _pod(yaml.safe_load(file.read_text("utf-8")))
    (container,) = pod["containers"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == IMAGE_USER
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert set(mounted) == {volume["name"] for volume in pod["volumes"]}
    recipe = (FOLDER / "Dockerfile").read_text("utf-8")
    (home,) = re.findall(r"ROWVEC_HOME=(\S+)", recipe)
    assert mounted["home"] == home
    assert {"name": "HOME", "value": home} in container["env"]
    assert mounted["tmp"] == "/tmp"  # noqa: S108 # the container's
    assert container["resources"]["limits"]["memory"] == container["resources"]["requests"]["memory"]


def test_a_container_of_azure_has_no_rights_and_its_volumes() -> None:
    """Azure has no schema in a package; these are the keys of its API of this version that the group relies on."""
    assert GROUP["apiVersion"] == "2023-05-01"
    properties = GROUP["properties"]
    (container,) = (container["properties"] for container in properties["containers"])
    assert container["securityContext"]["runAsUser"] == IMAGE_USER
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert {mount["name"] for mount in container["volumeMounts"]} == {
        volume["name"] for volume in properties["volumes"]
    }
    (identity,) = GROUP["identity"]["userAssignedIdentities"]
    assert properties["imageRegistryCredentials"][0]["identity"] == identity
    for variable in container["environmentVariables"]:
        secret = any(word in variable["name"] for word in ("KEY", "DATABASE_URL"))
        assert set(variable) == {"name", "secureValue" if secret else "value"}


def _commands() -> list[tuple[str, list[str]]]:
    kubernetes = [_pod(yaml.safe_load(file.read_text("utf-8")))["containers"][0] for file in MANIFESTS]
    azure = GROUP["properties"]["containers"][0]["properties"]
    return [(one["image"], one.get("args") or one["command"]) for one in [*kubernetes, azure]]


@pytest.mark.parametrize(("image", "command"), _commands())
def test_a_container_runs_a_program_of_the_image_of_this_version(image: str, command: list[str]) -> None:
    assert image.endswith(f"/rowvec:{VERSION}")
    assert command[0] in {"rowvec", "prefect"}
    assert shutil.which(command[0], path=str(Path(sys.executable).parent))
