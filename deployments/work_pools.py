"""Creates a work pool whose runs are containers: ``python deployments/work_pools.py kubernetes --image rowvec:1``.

The base job template is the server's own for that type of pool, with an image, a volume for ``ROWVEC_HOME`` and the
variables of rowvec added. A template kept here would be outdated with each release of Prefect.
"""

from __future__ import annotations

import argparse
import sys
from copy import deepcopy
from typing import Any

from prefect import get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.exceptions import ObjectNotFound

TYPES = ("docker", "kubernetes", "azure-container-instance")
_HOME = "/var/lib/rowvec"
_DEFAULTS: dict[str, dict[str, Any]] = {
    "docker": {"volumes": [f"rowvec-home:{_HOME}"], "auto_remove": True},
    # A day in which to look at a pod's output; the logs of the run are on the server.
    "kubernetes": {"namespace": "rowvec", "finished_job_ttl": 86_400},
    "azure-container-instance": {"cpu": 2, "memory": 4},
}


def template(kind: str, base: dict[str, Any], image: str) -> dict[str, Any]:
    """The server's template for a type of pool, with rowvec's image, volume and variables."""
    made = deepcopy(base)
    variables = made["variables"]["properties"]
    for name, value in {"image": image, "env": {"ROWVEC_HOME": _HOME}, **_DEFAULTS[kind]}.items():
        variables[name]["default"] = value
    if kind == "kubernetes":
        pod = made["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]
        container = pod["containers"][0]
        # DSNs and keys come from a Kubernetes secret, so that no template holds them.
        container["envFrom"] = [{"secretRef": {"name": "rowvec"}}]
        container["volumeMounts"] = [{"name": "home", "mountPath": _HOME}]
        pod["volumes"] = [{"name": "home", "emptyDir": {}}]
    return made


def make(kind: str, name: str, image: str) -> None:
    """Create the pool, or update the template of an existing one."""
    with get_client(sync_client=True) as client:
        collections = client.read_worker_metadata()
        found = [types[kind] for types in collections.values() if kind in types]
        if not found:
            sys.exit(f"this server knows no work pools of the type {kind}")
        made = template(kind, found[0]["default_base_job_configuration"], image)
        try:
            client.read_work_pool(name)
        except ObjectNotFound:
            client.create_work_pool(WorkPoolCreate(name=name, type=kind, base_job_template=made))
        else:
            client.update_work_pool(name, WorkPoolUpdate(base_job_template=made))


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Make a work pool for rowvec's image on the Prefect server.")
    parser.add_argument("type", choices=TYPES)
    parser.add_argument("--image", required=True, help="an image in which rowvec is installed")
    parser.add_argument("--name", help="the pool's name; left out: rowvec-TYPE")
    arguments = parser.parse_args()
    name = arguments.name or f"rowvec-{arguments.type}"
    make(arguments.type, name, arguments.image)
    sys.stdout.write(f"{name}: deploy with `pull: []` and `work_pool: {{name: {name}}}`, and start a worker for it\n")


if __name__ == "__main__":
    main()
