"""When Prefect will start the next sync of each pipeline, if there is a server."""

from __future__ import annotations

from typing import Any

from rowvec.cli.output import err
from rowvec.cli.prefect_server import known_server

_SECONDS = 5.0
_MOST = 200


def next_syncs(names: list[str]) -> dict[str, str]:
    """The time of the next scheduled sync, as Prefect writes it, of each pipeline that has one.

    Empty if no server is named and ``rowvec up`` does not run. A server that does not answer is one sentence on stderr:
    what the ledger says does not depend on it.
    """
    server = known_server() if names else None
    if server is None:
        return {}
    import httpx  # late: most commands need no server

    try:
        with httpx.Client(base_url=f"{server.api.rstrip('/')}/", headers=server.headers, timeout=_SECONDS) as client:
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
            f"rowvec: the Prefect server of {server.named_by} does not answer ({type(error).__name__}), so the next "
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
