"""The commands about a pipeline file before its first run: ``rowvec init``, ``check`` and ``schema``."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rowvec.cli import render
from rowvec.cli.commands.options import AsJson, Files
from rowvec.cli.failures import DONE, FAILED, each
from rowvec.cli.output import emit, err
from rowvec.cli.prefect_server import known_server
from rowvec.cli.progress_bars import shown_progress

if TYPE_CHECKING:
    from rowvec.operations.setup.finding import Finding


def check(
    files: Files,
    offline: Annotated[bool, typer.Option("--offline", help="Look at the file alone, and ask no server.")] = False,
    no_embedder: Annotated[
        bool,
        typer.Option("--no-embedder", help="Do not let the embedder embed one tiny text, which its provider bills."),
    ] = False,
    row: Annotated[
        bool,
        typer.Option("--row", help="Take one row through all stages, into a scratch table that is dropped afterwards."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check everything that a pipeline file names, before a sync relies on it.

    It looks at the file itself, the variables, the databases, pgvector, privileges, settings, the source's columns, the
    store (it writes and removes one small object), the embedder (it asks for one tiny text, and says what that costs)
    and the Prefect server. A warning can wait; a fault would make a sync fail, and makes the exit status 1.
    """
    from rowvec.operations.setup.check import Scope  # late: of all commands, only this one needs all stages
    from rowvec.operations.setup.check import check as look

    server = None if offline else known_server()
    scope = Scope(online=not offline, embedder=not no_embedder, row=row, server=server)
    each(files, as_json, lambda file: _show_findings(look(file, scope), as_json))


def _show_findings(findings: Iterator[Finding], as_json: bool) -> int:
    found: list[Finding] = []
    with shown_progress(err):
        for finding in findings:
            found.append(finding)
            if not as_json:
                render.finding(finding)
    faults = sum(finding.state == "fault" for finding in found)
    warnings = sum(finding.state == "warning" for finding in found)
    report = {
        "ok": not faults,
        "faults": faults,
        "warnings": warnings,
        "checks": [finding.as_json() for finding in found],
    }
    emit(report, as_json, lambda: render.checked(faults, warnings))
    return FAILED if faults else DONE


def init(
    source: Annotated[
        str,
        typer.Argument(
            help="A database's URL, a table of the target's database, a CSV or Parquet file, or a folder of images.",
            show_default=False,
        ),
    ],
    table: Annotated[
        str | None, typer.Argument(help="With a URL: the table, as public.articles.", show_default=False)
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The file to write; left out: NAME.yaml in this folder.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a commented pipeline file for a table, a file or a folder of images.

    It guesses the key, the columns to embed and the metadata, and says in the file what it guessed and why. No password
    is written: the file names the variable ROWVEC_DATABASE_URL. An existing file is never replaced.
    """
    from rowvec.operations.setup.init import write_draft  # late: only this command needs it

    written = write_draft(source, table, output)
    found = {"file": str(written.file), "pipeline": written.draft.name, "guesses": list(written.draft.guesses)}
    emit({**found, "set": written.sets}, as_json, lambda: render.drafted(written))


def schema(as_json: AsJson = False) -> None:
    """Print the JSON Schema of the pipeline file."""
    from rowvec.pipeline import json_schema

    sys.stdout.write(json.dumps(json_schema(), indent=None if as_json else 2, ensure_ascii=False) + "\n")
