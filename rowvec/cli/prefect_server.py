"""Which Prefect server a command reports to: the user's, that of ``rowvec up``, or one of its own."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from rowvec.errors import RowvecError
from rowvec.runtime.prefect_server import (
    PrefectServer,
    may_be_named,
    named_server,
    one_authority,
    prefect_module,
)

if TYPE_CHECKING:
    from rowvec.cli.own_server import OwnServer

# Commands whose main work is a flow run, and the option without which they are none.
_RUNS = {
    "sync": "",
    "restore": "",
    "rebuild": "",
    "demo": "",
    "audit": "--repair",
    "prune": "--apply",
    "index": "--rebuild",
}

_early: OwnServer | None = None


def start_early(words: list[str]) -> None:
    """Start a server for a command with these arguments, if it is certain that it needs one of its own.

    The server takes some seconds until it answers, and in these the command imports what it needs. If it is not
    certain, ``prefect_api`` decides, which knows Prefect's settings.
    """
    global _early
    if needs_own_server(words):
        from rowvec.cli.own_server import OwnServer  # late: most commands start none

        # Whatever is wrong here, `prefect_api` meets it again, where it can be said.
        with suppress(OSError, RowvecError):
            _early = OwnServer()


def needs_own_server(words: list[str]) -> bool:
    """Whether a command with these arguments runs a flow, and certainly has no server that it can report to."""
    command = next((word for word in words if not word.startswith("-")), "")
    runs_flow = command in _RUNS and _RUNS[command] in ("", *words) and "--help" not in words
    return runs_flow and not _may_be_configured(words) and _server_of_stack() is None


def end_early() -> None:
    """End the server of ``start_early`` if the command has ended without it, as after a wrong argument."""
    if _early is not None:
        _early.stop()


@contextmanager
def prefect_api() -> Generator[None]:
    """Within this context, flows report to a Prefect server.

    It is the one that the environment or the user's profile configures; or the one of ``rowvec up``, if it runs in this
    ROWVEC_HOME; or one that this command starts for itself. Raises ``MachineError`` if it does not answer. If it
    ends by itself later, so does the command.
    """
    tasks = prefect_module()
    if tasks.is_configured():
        with tasks.reporting():
            yield
        return
    stack = _server_of_stack()
    if stack is not None:
        with (
            tempfile.TemporaryDirectory(prefix="rowvec") as folder,
            tasks.reporting_to(stack.api, stack.login, authority=one_authority(Path(folder)), ends_with_command=False),
        ):
            yield
        return
    from rowvec.cli.ending import ENDING  # late: it imports more than the start of a server needs
    from rowvec.cli.own_server import OwnServer  # late: as above

    server = _early or OwnServer()
    ENDING.at_end(server.kill)
    try:
        server.wait()
        server.watch(
            lambda words: ENDING.because(
                f"the Prefect server that this command started has ended: {words}; what was paid for is kept: run again"
            )
        )
        with tasks.reporting_to(server.api, server.secret, authority=server.authority, ends_with_command=True):
            yield
    finally:
        server.stop()


def known_server() -> PrefectServer | None:
    """The server that a command would report to, if it would not start one of its own."""
    return named_server() or _server_of_stack()


def _may_be_configured(words: list[str]) -> bool:
    return any(word.startswith("--env-file") for word in words) or may_be_named()


def _server_of_stack() -> PrefectServer | None:
    """The server of ``rowvec up``; None if it does not run here."""
    if not (Path(os.environ.get("ROWVEC_HOME") or ".rowvec") / "stack/state.json").exists():
        return None
    from rowvec.cli.stack.state import login, read_state, supervisor_pid  # late: most commands have no stack

    state = read_state()
    if state is None or state.phase != "ready" or supervisor_pid() is None:
        return None
    return PrefectServer(api=state.api, named_by="rowvec up", login=login())
