"""The command ``rowvec search``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rowvec.cli import render
from rowvec.cli.commands.options import AsJson, File
from rowvec.cli.output import emit
from rowvec.errors import UsageError
from rowvec.operations import search_pictures
from rowvec.operations.search import mode_of, search
from rowvec.pipeline.file import load
from rowvec.runtime.private import files_for_others


def search_rows(
    file: File,
    query: Annotated[
        str | None, typer.Argument(help="What to look for; leave it out with --image.", show_default=False)
    ] = None,
    image: Annotated[Path | None, typer.Option(help="Look for rows that are like the image in this file.")] = None,
    k: Annotated[int, typer.Option("-k", min=1, max=10_000, help="How many results.")] = 10,
    where: Annotated[
        str | None,
        typer.Option(help="A filter over key and metadata columns, e.g. \"year >= 1900 AND author = 'Klee'\"."),
    ] = None,
    mode: Annotated[
        str, typer.Option(help="adaptive (shortlist by the index, exact rerank), exact, ann, bits, hybrid.")
    ] = "adaptive",
    words: Annotated[
        str | None, typer.Option(help="With --mode hybrid: the words to look for, if they differ from the query.")
    ] = None,
    grid: Annotated[
        Path | None, typer.Option(help="Draw the images found side by side into this file (.png, .svg).")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write the images found into this file, as a page.")] = None,
    as_json: AsJson = False,
) -> None:
    """Search the vector table by meaning, or by similarity to an image."""
    pipeline, question = load(file), _question(query, image)
    search_pictures.check_outputs(pipeline, grid, html)
    hits = search(pipeline, question, k, where=where, mode=mode_of(mode), words=words)
    with files_for_others():
        search_pictures.show_pictures(pipeline, question, hits, where=where, grid=grid, page=html)
    found = {"results": [hit.as_json() for hit in hits]}
    emit(found, as_json, lambda: render.search(str(question), found))


def _question(query: str | None, image: Path | None) -> str | Path:
    if query is not None and image is not None:
        raise UsageError("a search is by a text or by --image, not by both; leave one out")
    question = image if query is None else query
    if question is None:
        raise UsageError("write what to search for, or name an image with --image PATH")
    return question
