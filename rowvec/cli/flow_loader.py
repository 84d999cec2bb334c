"""How the command line finds and runs the flows: by their entry points, because the core imports nothing of Prefect."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import wraps
from importlib.metadata import entry_points
from typing import Any

from rowvec.cli.collector import collector_paused
from rowvec.cli.output import err
from rowvec.cli.progress_bars import shown_progress
from rowvec.errors import UsageError, raise_if_awaiting

_SETTINGS = {
    # If no server is configured, Prefect starts one for the command: 6 to 18 s on a small machine, and its default
    # limit is 20 s.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "90",
    # Prefect logs each task and the traceback of each failure. On the terminal the command's own messages are enough;
    # the run's logs in the UI still have all of it.
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
}


def run_flow(name: str, **parameters: Any) -> Any:
    """Run the flow of this name and show its progress on stderr; returns its result.

    The run then appears in the Prefect UI and sends its alarms. This costs 2 s if ``PREFECT_API_URL`` names a server,
    and 10 s if Prefect has to start one. Raises what the flow raises, and what ``load_flow`` raises.
    """
    flow = load_flow(name)
    with shown_progress(err):
        return flow(**parameters)


def load_flow(name: str) -> Callable[..., Any]:
    """The flow that is registered under this name, with Prefect's settings for a command.

    The flow raises ``AwaitingJobs`` if it leaves work to a later run. Raises ``UsageError`` if the installed package
    has no such flow.
    """
    for key, value in _SETTINGS.items():
        os.environ.setdefault(key, value)
    for point in entry_points(group="rowvec.flows", name=name):
        with collector_paused():
            flow: Callable[..., Any] = point.load()

        @wraps(flow)
        def run(*arguments: Any, flow: Callable[..., Any] = flow, **named: Any) -> Any:
            return raise_if_awaiting(flow(*arguments, **named))

        return run
    raise UsageError(f"the flow {name!r} is not installed; install rowvec again")
