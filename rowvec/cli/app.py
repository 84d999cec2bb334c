"""The commands, and the exit status with which each ends."""

from __future__ import annotations

import sys
from typing import Any

import typer

from rowvec.cli import render
from rowvec.cli.commands.demo import demo
from rowvec.cli.commands.index import index
from rowvec.cli.commands.names import adopt, rename
from rowvec.cli.commands.pipeline_file import schema
from rowvec.cli.commands.search import search_rows
from rowvec.cli.commands.stack import down, up
from rowvec.cli.commands.sync import plan, sync
from rowvec.cli.commands.upkeep import audit, list_rejects, prune_store, rebuild, restore
from rowvec.cli.ending import ENDING
from rowvec.cli.output import emit, err, fail
from rowvec.cli.terminal import stderr_shown
from rowvec.errors import AwaitingJobs, Inconsistent, RowvecError, UsageError
from rowvec.operations.audit import AuditReport
from rowvec.runtime.display import one_line
from rowvec.runtime.home import local_faults
from rowvec.runtime.private import private_files
from rowvec.stages.report import RestoreReport, SyncReport

app = typer.Typer(
    name="rowvec",
    help="Keeps vectors in Postgres (pgvector) consistent with the rows they were computed from.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

# Neither done nor failed: a script that goes on to read the vector table must be able to tell this apart.
_AWAITING = 3

app.command("sync")(sync)
app.command("plan")(plan)
app.command("search")(search_rows)
app.command("audit")(audit)
app.command("restore")(restore)
app.command("prune")(prune_store)
app.command("index")(index)
app.command("rebuild")(rebuild)
app.command("rename")(rename)
app.command("adopt")(adopt)
app.command("rejects")(list_rejects)
app.command("schema")(schema)
app.command("demo")(demo)
app.command("up")(up)
app.command("down")(down)


def main() -> None:
    """Run the command line and exit with its status. Typer explains wrong arguments, with status 2."""
    as_json = "--json" in sys.argv
    ENDING.watch_signals(as_json=as_json)
    try:
        with private_files(), stderr_shown():
            _run(as_json)
    finally:
        # Whatever a command that was interrupted raises on its way out.
        if ENDING.begun:
            ENDING.finish()


def _run(as_json: bool) -> None:
    try:
        with local_faults():
            app()
    except Inconsistent as error:
        _show_inconsistent(error, as_json)
        sys.exit(1)
    except AwaitingJobs as pause:
        found: dict[str, Any] = {"awaiting": {"jobs": pause.jobs, "texts": pause.texts}, "message": str(pause)}
        emit(found, as_json, lambda: render.awaiting(found["message"]))
        sys.exit(_AWAITING)
    except RowvecError as error:
        fail(str(error), as_json)
        sys.exit(2 if isinstance(error, UsageError) else 1)


def _show_inconsistent(error: Inconsistent, as_json: bool) -> None:
    """Print the report that the error carries, or its message if it has none."""
    report = error.report
    if isinstance(report, AuditReport):
        # An audit's report names all that is wrong; the error would only repeat it.
        emit(report.as_json(), as_json, lambda: render.audit(report.as_json()))
        return
    if isinstance(report, SyncReport):
        emit(report.as_json(), as_json, lambda: render.sync(report))
    elif isinstance(report, RestoreReport):
        emit(report.as_json(), as_json, lambda: render.restore(report))
    else:
        fail(str(error), as_json)
        return
    err.print(f"rowvec: {one_line(str(error))}", style="red", soft_wrap=True)
