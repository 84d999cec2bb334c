"""The command ``rowvec search``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from rowvec.cli import render
from rowvec.cli.commands.options import AsJson, File, load
from rowvec.cli.output import emit, write_csv
from rowvec.errors import UsageError
from rowvec.runtime.private import files_for_others
from rowvec.runtime.suggestion import did_you_mean


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
    group_by: Annotated[
        str,
        typer.Option(help="Of a source in chunks: row finds k rows, each by its nearest chunk; chunk finds k chunks."),
    ] = "chunk",
    neighbours: Annotated[
        int,
        typer.Option(min=0, max=10, help="Of a source in chunks: so many chunks before and behind each result."),
    ] = 0,
    grid: Annotated[
        Path | None, typer.Option(help="Draw the images found side by side into this file (.png, .svg).")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write the images found into this file, as a page.")] = None,
    columns: Annotated[
        str | None, typer.Option(help="Only these columns of the results, e.g. id,title,distance.")
    ] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print the results as CSV, with a header.")] = False,
    as_json: AsJson = False,
) -> None:
    """Search the vector table by meaning, or by similarity to an image."""
    if as_csv and as_json:
        raise UsageError("--csv and --json exclude each other; give one of them")
    from rowvec.operations import search_pictures
    from rowvec.operations.search import group_by_of, mode_of, search

    pipeline, question = load(file), _question(query, image)
    search_pictures.check_outputs(pipeline, grid, html)
    hits = search(
        pipeline,
        question,
        k,
        where=where,
        mode=mode_of(mode),
        words=words,
        group_by=group_by_of(group_by),
        neighbours=neighbours,
    )
    with files_for_others():
        search_pictures.show_pictures(pipeline, question, hits, where=where, grid=grid, page=html)
    results = [hit.as_json() for hit in hits]
    if columns:
        results = chosen_columns(results, columns)
    emit({"results": results}, as_json, lambda: _show(str(question), results, as_csv=as_csv))


def chosen_columns(results: list[dict[str, Any]], columns: str) -> list[dict[str, Any]]:
    """The results with these columns only, in this order. Raises ``UsageError`` for a column that they do not have."""
    names = [name.strip() for name in columns.split(",")]
    for name in names if results else ():
        if name not in results[0]:
            known = list(results[0])
            from rowvec.postgres.columns import listed

            raise UsageError(
                f"the results have no column {name!r}; they have {listed(known)}{did_you_mean(name, known)}"
            )
    return [{name: result[name] for name in names} for result in results]


def _show(question: str, results: list[dict[str, Any]], *, as_csv: bool) -> None:
    if as_csv:
        write_csv(results)
    else:
        render.search(question, results)


def _question(query: str | None, image: Path | None) -> str | Path:
    if query is not None and image is not None:
        raise UsageError("a search is by a text or by --image, not by both; leave one out")
    question = image if query is None else query
    if question is None:
        raise UsageError("write what to search for, or name an image with --image PATH")
    return question
