"""When Prefect will start the next sync of each pipeline, if the environment names a server."""

from __future__ import annotations

import os
from typing import Any

from rowvec.cli.output import err
from rowvec.operations.setup.services import authorization

_SECONDS = 5.0
_MOST = 200


def next_syncs(names: list[str]) -> dict[str, str]:
    """The time of the next scheduled sync, as Prefect writes it, of each pipeline that has one.

    Empty if PREFECT_API_URL is not set. A server that does not answer is one sentence on stderr: what the ledger says
    does not depend on it.
    """
    api = os.environ.get("PREFECT_API_URL")
    if not api or not names:
        return {}
    import httpx  # late: most commands need no server

    try:
        with httpx.Client(base_url=f"{api.rstrip('/')}/", headers=authorization(), timeout=_SECONDS) as client:
            deployments = _found(client, "deployments", {"deployments": {"name": {"any_": names}}, "limit": _MOST})
            by_id = {one["id"]: one["name"] for one in deployments}
            wanted = {
                "deployments": {"id": {"any_": list(by_id)}},
                "flows": {"name": {"any_": ["sync"]}},
                "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}},
                "sort": "EXPECTED_START_TIME_ASC",
                "limit": _MOST,
            }
            runs = _found(client, "flow_runs", wanted) if by_id else []
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        err.print(
            f"rowvec: the Prefect server at PREFECT_API_URL does not answer ({type(error).__name__}), so the next "
            "schedules are not known",
            style="yellow",
            soft_wrap=True,
        )
        return {}
    found: dict[str, str] = {}
    for run in runs:
        found.setdefault(by_id[run["deployment_id"]], run["expected_start_time"])
    return found


def _found(client: Any, what: str, wanted: dict[str, Any]) -> list[dict[str, Any]]:
    return client.post(f"{what}/filter", json=wanted).raise_for_status().json()
