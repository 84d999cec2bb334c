"""The commands, and the exit status with which each ends."""

from __future__ import annotations

import sys

import typer

from rowvec.cli.commands.demo import demo
from rowvec.cli.commands.index import index
from rowvec.cli.commands.names import adopt, rename
from rowvec.cli.commands.pipeline_file import check, schema
from rowvec.cli.commands.search import search_rows
from rowvec.cli.commands.stack import down, up
from rowvec.cli.commands.sync import plan, sync
from rowvec.cli.commands.upkeep import audit, list_rejects, prune_store, rebuild, restore
from rowvec.cli.ending import ENDING
from rowvec.cli.failures import status_of
from rowvec.cli.terminal import stderr_shown
from rowvec.runtime.private import private_files

app = typer.Typer(
    name="rowvec",
    help="Keeps vectors in Postgres (pgvector) consistent with the rows they were computed from.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

app.command("check")(check)
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
            sys.exit(status_of(app, as_json))
    finally:
        # Whatever a command that was interrupted raises on its way out.
        if ENDING.begun:
            ENDING.finish()
