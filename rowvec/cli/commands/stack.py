"""The commands ``rowvec up`` and ``rowvec down``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from rowvec.cli.commands.options import AsJson
from rowvec.cli.output import emit, err, out
from rowvec.cli.stack.state import StackState, login_file, stack_folder
from rowvec.runtime.figures import counted


def up(
    files: Annotated[
        list[Path] | None, typer.Argument(help="Pipeline files; left out: the demo's gallery.", show_default=False)
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="Port of the UI; left out: 4200, or the next free one."),
    ] = None,
    every: Annotated[int, typer.Option(min=1, help="Minutes between two syncs of a pipeline.")] = 60,
    as_json: AsJson = False,
) -> None:
    """Start Postgres, a Prefect server with its UI and a worker here, with the pipelines deployed and scheduled."""
    from rowvec.cli.stack import up as stack  # late: only these two commands need it

    state, started = stack.up(files or [], port, every, _say)
    emit({**state.as_json(), "started": started}, as_json, lambda: _show(state, started))


def down(as_json: AsJson = False) -> None:
    """End what `rowvec up` has started. The data stays: the next `up` goes on with it."""
    from rowvec.cli.stack import up as stack  # late, as above

    done = stack.down(_say)
    emit(done, as_json, lambda: out.print("Ended." if done["ended"] else "Nothing was running."))


def _say(sentence: str) -> None:
    err.print(f"{sentence} …", style="dim", markup=False, highlight=False)


def _show(state: StackState, started: bool) -> None:
    out.print("Running." if started else "Already running.", style="bold green")
    every = counted(state.every_minutes, "minutes")
    rows = [
        ("Prefect UI", state.ui),
        (
            "Pipelines",
            f"{', '.join(state.pipelines)}: synced every {every}, audited daily",
        ),
        ("Postgres", state.database or "yours, by ROWVEC_DATABASE_URL"),
        ("Logs", str(stack_folder())),
        ("Login", f"the line in {login_file()}; the UI asks for it once"),
        (
            "Run one now",
            f'PREFECT_API_AUTH_STRING="$(cat {shlex.quote(str(login_file()))})" PREFECT_API_URL={state.api} '
            f"prefect deployment run sync/{state.pipelines[0]} --watch",
        ),
        ("End it", "rowvec down"),
    ]
    for name, value in rows:
        out.print(f"{name:<12} {value}", markup=False, highlight=False, soft_wrap=True)
