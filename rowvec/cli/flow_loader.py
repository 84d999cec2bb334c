"""Where the command line finds the flows: they register themselves, for the core imports nothing of Prefect."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import wraps
from importlib.metadata import entry_points
from typing import Any

from rowvec.errors import AwaitingJobs, UsageError

_SETTINGS = {
    # Without a server of its own Prefect starts one for the command: 6 to 18 s on a small machine, 20 by default.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "90",
    # Prefect logs each task and the traceback of each failure; here the command's own words are enough. All of it is
    # still in the run's logs in the UI.
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
}


def load_flow(name: str) -> Callable[..., Any]:
    """The flow registered under a name, with Prefect set up for a command.

    Raises ``UsageError`` where the installed package has no such flow.
    """
    for key, value in _SETTINGS.items():
        os.environ.setdefault(key, value)
    for point in entry_points(group="rowvec.flows", name=name):
        with uncollected():
            return _ended(point.load())
    raise UsageError(f"the flow {name!r} is not installed; install rowvec again")


def _ended(flow: Callable[..., Any]) -> Callable[..., Any]:
    """The flow, raising what it gives as its result where a later run is to go on with it."""

    @wraps(flow)
    def run(*arguments: Any, **named: Any) -> Any:
        result = flow(*arguments, **named)
        if isinstance(result, AwaitingJobs):
            raise result
        return result

    return run


@contextmanager
def uncollected() -> Generator[None]:
    """What is made in here is not looked through for garbage, now or later.

    Of the start of a command, nearly all of it imports, that is a tenth: docs/performance.md.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
