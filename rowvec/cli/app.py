"""The commands, and the exit status with which each ends."""

from __future__ import annotations

import re
import sys
from copy import copy
from functools import partial

import typer
from typer.exceptions import TyperException

from rowvec.cli.commands.changes import changes, watch
from rowvec.cli.commands.demo import demo
from rowvec.cli.commands.deploy import automations, deploy
from rowvec.cli.commands.evaluate import evaluate_searches
from rowvec.cli.commands.forget import forget_rows
from rowvec.cli.commands.index import index
from rowvec.cli.commands.names import adopt, rename
from rowvec.cli.commands.pipeline_file import check, init, schema
from rowvec.cli.commands.psql import psql
from rowvec.cli.commands.search import search_rows
from rowvec.cli.commands.stack import down, up
from rowvec.cli.commands.status import status
from rowvec.cli.commands.sync import plan, sync
from rowvec.cli.commands.upkeep import audit, list_rejects, prune_store, rebuild, restore
from rowvec.cli.commands.verify import verify
from rowvec.cli.commands.whole import command_of, in_front, options
from rowvec.cli.ending import ENDING
from rowvec.cli.failures import DONE, WRONG_USE, status_of
from rowvec.cli.output import err
from rowvec.cli.terminal import stderr_shown
from rowvec.errors import UsageError
from rowvec.runtime.private import private_files

app = typer.Typer(
    name="rowvec",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
app.callback()(options)

app.command("init")(init)
app.command("check")(check)
app.command("sync")(sync)
app.command("plan")(plan)
app.command("status")(status)
app.command("search")(search_rows)
app.command("evaluate")(evaluate_searches)
app.command("audit")(audit)
app.command("verify")(verify)
app.command("restore")(restore)
app.command("prune")(prune_store)
app.command("forget")(forget_rows)
app.command("index")(index)
app.command("rebuild")(rebuild)
app.command("changes")(changes)
app.command("watch")(watch)
app.command("rename")(rename)
app.command("adopt")(adopt)
app.command("rejects")(list_rejects)
_PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True}
app.command("psql", context_settings=_PASSED_ON)(psql)
app.command("schema")(schema)
app.command("demo")(demo)
app.command("deploy")(deploy)
app.command("automations")(automations)
app.command("up")(up)
app.command("down")(down)


def main() -> None:
    """Run the command line and exit with its status. Typer explains wrong arguments, with status 2."""
    as_json = "--json" in sys.argv
    ENDING.watch_signals(as_json=as_json)
    try:
        with private_files(), stderr_shown(err):
            sys.exit(run(sys.argv[1:], as_json))
    finally:
        # Whatever a command that was interrupted raises on its way out.
        if ENDING.begun:
            ENDING.finish()


def run(words: list[str], as_json: bool) -> int:
    """Run a command and return its exit status; each error is shown as one sentence."""
    return status_of(partial(_command, words), as_json)


def _command(words: list[str]) -> int:
    if not words:
        _click(["--help"])
        return WRONG_USE
    return _click(in_front(words))


def _click(words: list[str]) -> int:
    try:
        return typer.main.get_command(_app_for(words)).main(words, prog_name="rowvec", standalone_mode=False) or DONE
    except TyperException as error:
        raise UsageError(_in_our_words(error)) from None


def _app_for(words: list[str]) -> typer.Typer:
    """The app with the command that the words call, or with all of them if they call none that it has.

    Typer makes the options of every command that it knows, in 0.06 s.
    """
    called = [command for command in app.registered_commands if command.name == command_of(words)]
    if not called:
        return app
    one = copy(app)
    one.registered_commands = called
    return one


# What the parser of words says, and what we say: it checks values by pydantic, whose words are not for people.
_WORDS = (
    (r"Value error, ", ""),
    (r"Input should be a valid integer.*", "it should be a whole number"),
    (r"Input should be a valid number.*", "it should be a number"),
    (r"Input should be ", "it should be "),
    (r" \(Possible options: ([^,)]+).*\)$", r"; did you mean \1?"),
    (r"\. Did you mean (.+)\?$", r"; did you mean \1?"),
)


def _in_our_words(error: TyperException) -> str:
    """One sentence on a wrong word of the command line."""
    told = str(getattr(error, "format_message", error.__str__)()).strip().rstrip(".")
    for theirs, ours in _WORDS:
        told = re.sub(theirs, ours, told)
    context = getattr(error, "ctx", None)
    where = "rowvec" if context is None else context.command_path
    return f"{told[:1].lower()}{told[1:]}{'' if told.endswith('?') else ';'} `{where} --help` lists what it takes"
