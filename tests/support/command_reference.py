"""Writes ``docs/reference/command-line.md`` from the commands: ``python -m tests.support.command_reference``."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any, get_args

import typer.main

from rowvec.cli.app import app

PAGE = Path(__file__).parents[2] / "docs/reference/command-line.md"

_HEAD = """\
# Command line

This page is made from the commands themselves; `rowvec COMMAND --help` prints the same.

- **Exit status:** 0 done; 1 the job failed, or it found an inconsistency; 2 wrong use; 3 the run awaits jobs at a
  provider's Batch API; 130, 143 and 129 after Ctrl-C, SIGTERM and the end of the terminal.
- **`--json`** prints one JSON object on stdout and nothing else there. An error is `{"error": "..."}`.
- **Several files** (`sync`, `plan`, `audit`, `check`, `status`): each is worked on in turn, also after one that fails.
  With `--json` the result is one list with one object per file, which has its name as `file`. The exit status is the
  worst one: 1, then 2, then 3, then 0.
- **Output:** results are on stdout; progress, warnings and errors on stderr. A terminal obeys nothing that a row holds.
"""


def written_page() -> str:
    """The page as it should be."""
    whole: Any = typer.main.get_command(app)
    parts = [_HEAD, _section("rowvec", whole)]
    parts += [_section(f"rowvec {name}", command) for name, command in whole.commands.items()]
    return "\n".join(parts)


def _section(name: str, command: Any) -> str:
    shown = [parameter for parameter in command.params if not getattr(parameter, "hidden", False)]
    arguments = [parameter for parameter in shown if parameter.param_type_name == "argument"]
    options = [parameter for parameter in shown if parameter.param_type_name == "option"]
    words = [name, *(["[OPTIONS]"] if options else []), *(_argument(one) for one in arguments)]
    words += ["COMMAND"] if hasattr(command, "commands") else []
    lines = [f"## {name}", "", f"`{' '.join(words)}`", "", inspect.cleandoc(command.help or ""), ""]
    rows = [(f"`{_argument(one)}`", one.help or "") for one in arguments]
    rows += [(_names(one), _explained(one)) for one in options]
    if rows:
        lines += ["| | |", "|---|---|", *(f"| {left} | {_cell(right)} |" for left, right in rows), ""]
    return "\n".join(lines)


def _argument(parameter: Any) -> str:
    # The one argument of several values.
    name = "FILE..." if parameter.name == "files" else parameter.name.upper()
    return name if parameter.required else f"[{name}]"


def _names(parameter: Any) -> str:
    written = ", ".join(f"`{name}`" for name in sorted(parameter.opts, key=len))
    kind = "" if parameter.is_flag else f" {_kind(parameter)}"
    return written + kind


def _kind(parameter: Any) -> str:
    annotation = parameter.type_descriptor.annotation
    words: dict[Any, str] = {int: "NUMBER", float: "NUMBER", Path: "PATH"}
    return f"*{parameter.metavar or ' or '.join(map(str, get_args(annotation))) or words.get(annotation, 'TEXT')}*"


def _explained(parameter: Any) -> str:
    default = parameter.default
    shown = default is not None and default is not False and default != "" and not callable(default) and default != 0
    return f"{parameter.help or ''}{f' Default: {default}.' if shown else ''}"


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "\\|")


if __name__ == "__main__":
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(written_page(), "utf-8")
