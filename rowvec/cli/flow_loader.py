"""How the command line finds and runs the flows: by their entry points, because the core imports nothing of Prefect."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

from rowvec.cli.collector import collector_paused
from rowvec.cli.output import err
from rowvec.cli.prefect_server import prefect_api
from rowvec.cli.progress_bars import shown_progress
from rowvec.errors import UsageError, raise_if_awaiting
from rowvec.runtime.home import home_folder
from rowvec.runtime.prefect_server import names_profiles, own_entry_points
from rowvec.runtime.progress import under_way

_SETTINGS = {
    # Prefect logs each task and the traceback of each failure. On the terminal the command's own messages are enough;
    # the run's logs in the UI still have all of it.
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
}


def run_flow(name: str, **parameters: Any) -> Any:
    """Run the flow of this name and show its progress on stderr; returns its result.

    The run then appears in the UI of the server that ``prefect_api`` finds, and sends its alarms. Raises what the flow
    raises, and what ``load_flow`` and ``prefect_api`` raise.
    """
    with shown_progress(err), ExitStack() as until_the_end:
        with under_way("start", "Prefect"):
            flow = load_flow(name)
            until_the_end.enter_context(prefect_api())
        return flow(**parameters)


@contextmanager
def one_server(name: str) -> Generator[None]:
    """Within this context, all runs of the flow of this name report to one server, which is started at most once."""
    load_flow(name)
    with prefect_api():
        yield


def load_flow(name: str) -> Callable[..., Any]:
    """The flow that is registered under this name, with Prefect's settings for a command.

    The flow raises ``AwaitingJobs`` if it leaves work to a later run. Raises ``UsageError`` if the installed package
    has no such flow.
    """
    for key, value in (_SETTINGS | _own_home()).items():
        os.environ.setdefault(key, value)
    for point in own_entry_points("rowvec.flows", name):
        with collector_paused():
            flow: Callable[..., Any] = point.load()

        @wraps(flow)
        def run(*arguments: Any, flow: Callable[..., Any] = flow, **named: Any) -> Any:
            return raise_if_awaiting(flow(*arguments, **named))

        return run
    raise UsageError(f"the flow {name!r} is not installed; install rowvec again")


def _own_home() -> dict[str, str]:
    """A home for Prefect in ours, if the user has not set one: Prefect creates its home, and only the profile in the
    user's own is read, or the one that a file of settings names."""
    if "PREFECT_HOME" in os.environ:
        return {}
    profiles = Path("~/.prefect/profiles.toml").expanduser()
    ours = {"PREFECT_HOME": str(home_folder("prefect"))}
    return ours if names_profiles() else {**ours, "PREFECT_PROFILES_PATH": str(profiles)}
