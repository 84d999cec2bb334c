"""The command ``rowvec status``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rowvec.cli import render
from rowvec.cli.commands.options import AsJson, load
from rowvec.cli.failures import each
from rowvec.cli.output import emit, gathered
from rowvec.cli.schedule import next_syncs

if TYPE_CHECKING:
    from rowvec.operations.status import PipelineStatus


def status(
    files: Annotated[
        list[Path] | None,
        typer.Argument(help="Pipeline files; left out: all pipelines of the database.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show how each pipeline stands: its last run and verdict, rows, what waits, and the cost of this month.

    It reads the ledger alone, so it takes the same time for every size of table. The next sync is shown if
    there is a Prefect server: that of PREFECT_API_URL, of a profile, or of `rowvec up`. The exit status says whether
    the ledger could be read, not what the verdicts are.
    """
    from rowvec.operations.status import status as status_of
    from rowvec.operations.status import status_of_ledger

    if not files:
        rows = list(status_of_ledger())
        planned = next_syncs([row.pipeline for row in rows])
        with gathered(as_json):
            for row in rows if as_json else ():
                emit(_shown(row, planned), as_json, lambda: None)
        if not as_json:
            render.statuses(rows, planned)
        return
    seen: list[PipelineStatus] = []

    def one(file: Path) -> None:
        (row,) = status_of([load(file)])
        seen.append(row)
        if as_json:
            emit(_shown(row, next_syncs([row.pipeline])), as_json, lambda: None)

    try:
        each(files, as_json, one, headings=False)
    finally:
        if seen and not as_json:
            render.statuses(seen, next_syncs([row.pipeline for row in seen]))


def _shown(row: PipelineStatus, planned: dict[str, str]) -> dict[str, Any]:
    return {**row.as_json(), "next_sync": planned.get(row.pipeline)}
