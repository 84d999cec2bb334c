"""Which Prefect server a command reports to: the user's, that of ``rowvec up``, or one of its own."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from rowvec.cli.own_server import OwnServer
from rowvec.errors import MachineError, RowvecError

# Commands whose main work is a flow run, and the option without which they are none.
_RUNS = {
    "sync": "",
    "restore": "",
    "rebuild": "",
    "demo": "",
    "watch": "",
    "audit": "--repair",
    "prune": "--apply",
    "index": "--rebuild",
}
# Files that can name a server too, and what they then contain. Only Prefect itself can read them, in 0.7 s.
_SETTINGS = {".env": b"prefect_", "pyproject.toml": b"[tool.prefect"}

_early: OwnServer | None = None


def start_early(words: list[str]) -> None:
    """Start a server for a command with these arguments, if it is certain that it needs one of its own.

    The server takes some seconds until it answers, and in these the command imports what it needs. If it is not
    certain, ``prefect_api`` decides, which knows Prefect's settings.
    """
    global _early
    if needs_own_server(words):
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
    tasks = _tasks()
    if tasks.is_configured():
        if (fault := tasks.unreachable()) is not None:
            raise MachineError(fault)
        yield
        return
    stack = _server_of_stack()
    if stack is not None:
        with tasks.reporting_to(stack):
            yield
        return
    from rowvec.cli.ending import ENDING  # late: it imports more than the start of a server needs

    server = _early or OwnServer()
    ENDING.at_end(server.kill)
    try:
        server.wait()
        server.watch(
            lambda words: ENDING.because(
                f"the Prefect server that this command started has ended: {words}; what was paid for is kept: run again"
            )
        )
        with tasks.reporting_to(server.api, server.secret):
            yield
    finally:
        server.stop()


def _tasks() -> Any:
    """The module that knows Prefect's settings; the core knows nothing of Prefect."""
    for point in entry_points(group="rowvec.server", name="prefect"):
        return point.load()
    raise MachineError("the tasks of rowvec are not installed; install rowvec again")


def _may_be_configured(words: list[str]) -> bool:
    """Whether the environment or a file may name a server."""
    if "PREFECT_API_URL" in os.environ or any(word.startswith("--env-file") for word in words):
        return True
    home = Path(os.environ.get("PREFECT_HOME", "~/.prefect")).expanduser()
    profiles = Path(os.environ.get("PREFECT_PROFILES_PATH", home / "profiles.toml"))
    return (
        Path("prefect.toml").exists()
        or any(Path(name).is_file() and sign in Path(name).read_bytes().lower() for name, sign in _SETTINGS.items())
        or (profiles.exists() and _profile_names_server(profiles))
    )


def _profile_names_server(file: Path) -> bool:
    import tomllib  # late: most users have no profile

    try:
        found = tomllib.loads(file.read_text("utf-8"))
        profile = os.environ.get("PREFECT_PROFILE", found.get("active"))
        return "PREFECT_API_URL" in found["profiles"][profile]
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, KeyError, TypeError):
        return True


def _server_of_stack() -> str | None:
    """The address of the server of ``rowvec up``; None if it does not run here."""
    if not (Path(os.environ.get("ROWVEC_HOME") or ".rowvec") / "stack/state.json").exists():
        return None
    from rowvec.cli.stack.state import read_state, supervisor_pid  # late: most commands have no stack

    state = read_state()
    return state.api if state is not None and state.phase == "ready" and supervisor_pid() is not None else None
