"""Arguments and options that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rowvec.cli.collector import collector_paused

if TYPE_CHECKING:
    from rowvec.pipeline import Pipeline

File = Annotated[Path, typer.Argument(help="The pipeline file.", show_default=False)]
Files = Annotated[
    list[Path],
    typer.Argument(help="Pipeline files; each is worked on in turn, also after one that fails.", show_default=False),
]
AsJson = Annotated[
    bool,
    typer.Option(
        "--json", help="Print one JSON object on stdout (a list of them, of several files), and nothing else."
    ),
]


def load(file: Path) -> Pipeline:
    """The pipeline of a file; see ``rowvec.pipeline.file.load``."""
    # Late, like all that a command needs of the core: each imports what it needs itself, and its help needs nothing.
    with collector_paused():
        from rowvec.pipeline.file import load as read
    return read(file)
