"""The options --grid and --html of `rowvec search`: the images that were found, as a picture and as a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rowvec.errors import UsageError
from rowvec.pipeline import Pipeline
from rowvec.pipeline.references import resolve
from rowvec.searches.query import Hit
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
    query: str | Path,
    hits: Sequence[Hit],
    *,
    where: str | None = None,
    grid: Path | None = None,
    page: Path | None = None,
) -> None:
    """Write the images that a search has found into files; reads the store, and no database.

    Args:
        pipeline: The pipeline of images that was searched.
        query: The text, or the path of the image, that was searched for.
        hits: What ``search`` has returned, up to 200.
        where: The filter of the search, for the title.
        grid: A picture with all images side by side: .png, .jpg, .svg or .pdf.
        page: A page of HTML with all images: .html or .htm.

    Raises ``UsageError`` if the pipeline has no images or a file cannot be written, ``StoreUnavailable`` and
    ``StoreRefused`` if the store cannot be read.
    """
    check_outputs(pipeline, grid, page)
    if grid is None and page is None:
        return
    # Late: matplotlib and Azure's client take a second each.
    from rowvec.images.found import found_pictures, picture_of_query
    from rowvec.images.grid import draw_grid
    from rowvec.images.page import write_page
    from rowvec.store.signed_links import links

    store = open_store(resolve(pipeline).artifacts)
    # A picture file has no links, and signing may cost a request.
    pictures = found_pictures(store, pipeline.name, [hit.as_json() for hit in hits], *([links(store)] if page else []))
    title = f"Like {query.name}" if isinstance(query, Path) else query
    if isinstance(query, Path):
        pictures.insert(0, picture_of_query(query))
    subtitle = f"{len(hits):,} found in {pipeline.name}" + (f", where {where}" if where else "")
    if grid:
        draw_grid(title if where is None else f"{title}, where {where}", pictures, grid)
    if page:
        write_page(title, subtitle, pictures, page)
