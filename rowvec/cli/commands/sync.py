"""The commands ``rowvec sync`` and ``rowvec plan``."""

from __future__ import annotations

import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import psutil
import typer

from rowvec.cli import render
from rowvec.cli.commands.options import AsJson, Files, load
from rowvec.cli.failures import each
from rowvec.cli.flow_loader import one_server, run_flow
from rowvec.cli.output import emit

if TYPE_CHECKING:
    from rowvec.stages.report import SyncReport


def sync(
    files: Files,
    as_json: AsJson = False,
    max_delete_fraction: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Replaces the pipeline's own limit, in this run only."),
    ] = None,
    wait: Annotated[
        float, typer.Option("--wait", min=0, help="Minutes to wait if another run of the pipeline is at work.")
    ] = 0,
) -> None:
    """Bring the vector table in step with its source: the main command."""

    def one(file: Path) -> None:
        began = time.time()
        pipeline = load(file).with_delete_limit(max_delete_fraction)
        when_busy = "wait" if wait else "fail"
        report: SyncReport = run_flow(
            "sync", pipeline=pipeline, cause="command", when_busy=when_busy, wait_minutes=wait
        )
        wall = time.time() - (began if len(files) > 1 else psutil.Process().create_time())
        emit({**report.as_json(), "wall_seconds": wall}, as_json, lambda: render.sync(report, wall))

    with one_server("sync") if len(files) > 1 else nullcontext():
        each(files, as_json, one)


def plan(
    files: Files,
    show: Annotated[int, typer.Option(min=0, help="Show so many of the rows too, with their old and new text.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Show what a sync would do: rows, tokens, cost. Spends nothing."""

    from rowvec.stages import dry_run

    def one(file: Path) -> None:
        found = dry_run.plan(load(file), show)
        emit(found.as_json(), as_json, lambda: render.plan(found))

    each(files, as_json, one)
