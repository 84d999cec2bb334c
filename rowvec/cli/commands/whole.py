"""The options of ``rowvec`` itself, which every command takes, before its name or after it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import typer

from rowvec.cli.output import err, out
from rowvec.cli.terminal import Logs
from rowvec.errors import UsageError

_FLAGS = frozenset({"-q", "--quiet", "-v", "--verbose"})
_WITH_VALUE = frozenset({"--env-file", "--log-format"})


def in_front(words: list[str]) -> list[str]:
    """The words with the options of ``rowvec`` itself before the command, wherever they stand."""
    front: list[str] = []
    rest: list[str] = []
    waiting: Iterator[str] = iter(words)
    for word in waiting:
        if word == "--" or (word == "psql" and not rest):
            # What follows is passed on as it is.
            rest += [word, *waiting]
        elif word in _FLAGS or word.partition("=")[0] in _WITH_VALUE:
            front.append(word)
            front += [value for value in (next(waiting, None),) if value is not None] if word in _WITH_VALUE else []
        else:
            rest.append(word)
    return [*front, *rest]


def command_of(words: list[str]) -> str | None:
    """The command among words that ``in_front`` has ordered; None if a word like ``--help`` stands in its place."""
    waiting = iter(words)
    for word in waiting:
        if word in _WITH_VALUE:
            next(waiting, None)
        elif word not in _FLAGS and word.partition("=")[0] not in _WITH_VALUE:
            return None if word.startswith("-") else word
    return None


def _show_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version  # late: only this option needs it

        out.print(f"rowvec {version('rowvec')}")
        raise typer.Exit


def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and end.", is_eager=True, callback=_show_version)
    ] = False,
    env_file: Annotated[
        Path | None,
        typer.Option(
            "--env-file", help="Take variables from this file too (NAME=value); set ones win.", metavar="FILE"
        ),
    ] = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print results, warnings and errors, no progress.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Print what rowvec logs as information too.")
    ] = False,
    log_format: Annotated[
        Literal["text", "json"], typer.Option("--log-format", help="json: each line on stderr is one JSON object.")
    ] = "text",
) -> None:
    """Keeps vectors in Postgres (pgvector) consistent with the rows they were computed from.

    The options here work before a command and after it.
    """
    del version  # it has ended the command
    if quiet and verbose:
        raise UsageError("--quiet and --verbose exclude each other; give one of them")
    if env_file is not None:
        _read(env_file)
    err.quiet, err.as_json = quiet, log_format == "json"
    level = logging.INFO if verbose else logging.WARNING
    shown = Logs(err)
    # At the handler: a flow run takes the information of the same logger into its own log.
    shown.setLevel(level)
    ours = logging.getLogger("rowvec")
    ours.handlers = [shown]
    ours.setLevel(level)


def _read(file: Path) -> None:
    """Set the variables of a file that are not set. Raises ``UsageError`` for a line that is none."""
    from dotenv.parser import parse_stream  # late: most commands have no such file

    try:
        with file.open(encoding="utf-8") as opened:
            lines = list(parse_stream(opened))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise UsageError(f"--env-file {file}: cannot be read ({reason}); name a file with lines NAME=value") from None
    for line in lines:
        if line.error or (line.key is not None and line.value is None):
            raise UsageError(f"{file}:{line.original.line}: no variable; write NAME=value, or # before a comment")
        if line.key is not None and line.value is not None:
            os.environ.setdefault(line.key, line.value)
