"""The options --grid and --html of `rowvec search`: the images that were found, as a picture and as a page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rowvec.errors import UsageError
from rowvec.pipeline import Pipeline
from rowvec.pipeline.references import resolve
from rowvec.store.open import open_store

_GRIDS = (".png", ".jpg", ".svg", ".pdf")
_PAGES = (".html", ".htm")


def check_outputs(pipeline: Pipeline, grid: Path | None, page: Path | None) -> None:
    """Raise ``UsageError`` if an output could not be written; called before the query is paid for."""
    for option, into, suffixes in (("--grid", grid, _GRIDS), ("--html", page, _PAGES)):
        if into is None:
            continue
        if pipeline.source.kind != "images":
            raise UsageError(f"{option} shows images, and the source is of kind {pipeline.source.kind}; leave it out")
        if into.suffix.lower() not in suffixes or not into.parent.is_dir():
            raise UsageError(
                f"{option} {into} cannot be written; name a file that ends in {', '.join(suffixes)}, in a folder "
                "that exists"
            )


def show_pictures(
    pipeline: Pipeline,
    question: str | Path,
    where: str | None,
    results: list[dict[str, Any]],
    grid: Path | None,
    page: Path | None,
) -> None:
    """Write the images of a search's ``results`` into the files ``grid`` and ``page``; reads the store, no database.

    Raises ``UsageError`` if a file cannot be written, and what the store raises.
    """
    if grid is None and page is None:
        return
    # Late: matplotlib and Azure's client take a second each.
    from rowvec.images.found import found_pictures, picture_of_query
    from rowvec.images.grid import draw_grid
    from rowvec.images.page import write_page
    from rowvec.store.signed_links import links

    store = open_store(resolve(pipeline).artifacts)
    # A picture file has no links, and signing may cost a request.
    pictures = found_pictures(store, pipeline.name, results, *([links(store)] if page else []))
    title = f"Like {question.name}" if isinstance(question, Path) else question
    if isinstance(question, Path):
        pictures.insert(0, picture_of_query(question))
    subtitle = f"{len(results):,} found in {pipeline.name}" + (f", where {where}" if where else "")
    if grid:
        draw_grid(title if where is None else f"{title}, where {where}", pictures, grid)
    if page:
        write_page(title, subtitle, pictures, page)
