"""Arguments and options that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
