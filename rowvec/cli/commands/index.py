"""The command ``rowvec index``: maintain the index, or measure which one suits the vectors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rowvec.cli import render
from rowvec.cli.commands.options import AsJson, File, load
from rowvec.cli.flow_loader import run_flow
from rowvec.cli.output import emit, err
from rowvec.cli.progress_bars import shown_progress
from rowvec.errors import UsageError
from rowvec.runtime.private import files_for_others

if TYPE_CHECKING:
    from rowvec.index.tuning.results import Tuning

_PICTURES = (".png", ".svg", ".pdf")


def index(
    file: File,
    tune: Annotated[
        bool, typer.Option("--tune", help="Measure which index suits these vectors, and keep the choice for syncs.")
    ] = False,
    seconds: Annotated[
        float | None, typer.Option(min=1, help="With --tune: how long it may measure; default 600.")
    ] = None,
    memory: Annotated[
        int | None, typer.Option(min=64, help="With --tune: MiB that one build may take; default 2,048.")
    ] = None,
    rows: Annotated[
        int | None, typer.Option(min=1000, help="With --tune: rows to measure on, at most; default 200,000.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="With --tune: draw recall against latency and size into this file (.png, .svg).")
    ] = None,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Build the index again even if nothing is wrong with it.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Build the index if it is missing, worn or wrong, and show its state; or measure which index is best.

    With --tune or --rebuild it is a flow run, which the Prefect UI shows. Without them the command runs without
    Prefect: it mostly only shows the state of a sound index, and Prefect would make it 2 to 10 seconds slower.
    """
    pipeline = load(file)
    limits = {"seconds": seconds, "memory_mib": memory, "rows": rows}
    given = {"--seconds": seconds, "--memory": memory, "--rows": rows, "--plot": plot}
    check_options(tune=tune, rebuild=rebuild, given=[name for name, value in given.items() if value])
    if plot:
        check_plot(plot)
    if tune:
        chosen = {name: value for name, value in limits.items() if value}
        tuning: Tuning = run_flow("index", pipeline=pipeline, tune=True, **chosen)
        emit(tuning.as_json(), as_json, lambda: render.tuning(tuning))
        if plot:
            draw(tuning, plot)
        return
    if rebuild:
        found = run_flow("index", pipeline=pipeline, rebuild=True)
    else:
        with shown_progress(err):
            from rowvec.operations.index import maintain

            found = maintain(pipeline)
    emit(found, as_json, lambda: render.index(found))


def check_options(*, tune: bool, rebuild: bool, given: list[str]) -> None:
    """Raise ``UsageError`` for options that would have no effect."""
    if given and not tune:
        raise UsageError(f"{given[0]} is for --tune: give both, or neither")
    if tune and rebuild:
        raise UsageError("--tune measures and --rebuild builds: tune first, then run rowvec index --rebuild")


def check_plot(into: Path) -> None:
    """Raise ``UsageError`` if the picture could not be written: before the tuner works for minutes, not after."""
    if into.suffix not in _PICTURES or not into.parent.is_dir():
        raise UsageError(
            f"--plot {into} cannot be written; name a file that ends in {', '.join(_PICTURES)}, in an existing folder"
        )


def draw(tuning: Tuning, into: Path) -> None:
    """Draw recall against latency and size. Raises ``UsageError`` if the picture cannot be written."""
    from rowvec.cli.tuning_plot import plot  # late: matplotlib takes a second

    with files_for_others():
        plot(tuning, into)
