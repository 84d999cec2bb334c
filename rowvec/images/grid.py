"""Pictures of search results in a grid, as one image file."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle

from rowvec.errors import UsageError
from rowvec.images.found import FoundPicture

_COLUMNS = 5
_CELL_INCHES = (2.3, 2.95)
_HEAD_INCHES = 0.55
_TITLE_CHARS, _DETAIL_CHARS = 30, 36
_GREY = "#666666"
_HAIRLINE = "#dddddd"
_QUERY = "#c2410c"


def draw_grid(question: str, pictures: Sequence[FoundPicture], into: Path) -> None:
    """Draw the pictures into a file, nearest first; the suffix decides the format, and the query has an orange frame.

    Raises ``UsageError`` if the file cannot be written.
    """
    columns = max(1, min(_COLUMNS, len(pictures)))
    rows = max(1, -(-len(pictures) // columns))
    size = columns * _CELL_INCHES[0], rows * _CELL_INCHES[1] + _HEAD_INCHES
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08), facecolor="white")
    # A canvas of its own needs no window and shares no state with other figures.
    FigureCanvasAgg(figure)
    head = textwrap.shorten(question, 30 * columns, placeholder=" …")
    figure.suptitle(head, fontsize=12, fontweight="bold", x=0.01, ha="left", parse_math=False)
    cells = figure.subplots(rows, columns, squeeze=False).ravel()
    for cell, picture in zip(cells, pictures, strict=False):
        _draw(cell, picture)
    for cell in cells[len(pictures) :]:
        cell.set_axis_off()
    try:
        with warnings.catch_warnings():
            # Letters that the font does not have are shown as boxes, which is acceptable in a title.
            warnings.filterwarnings("ignore", r"Glyph \d+", UserWarning)
            figure.savefig(into, dpi=110)
    except (OSError, ValueError) as error:
        raise UsageError(f"--grid {into} cannot be written ({error}); name a .png in an existing folder") from error


def _draw(cell: Axes, picture: FoundPicture) -> None:
    is_query = picture.distance is None
    cell.set_xticks([])
    cell.set_yticks([])
    if picture.thumbnail is None:
        cell.set_aspect("equal")
        cell.text(0.5, 0.5, "not in the store", ha="center", va="center", color=_GREY, fontsize=9)
    else:
        cell.add_patch(
            Rectangle((-0.5, -0.5), *picture.thumbnail.size, fill=False, color=_HAIRLINE, linewidth=0.8, clip_on=False)
        )
        cell.imshow(np.asarray(picture.thumbnail), interpolation="lanczos")
        # On a square of paper, so that titles and captions are aligned whatever the shapes of the pictures.
        width, height = picture.thumbnail.size
        side = max(width, height)
        cell.set_xlim((width - side) / 2 - 0.5, (width + side) / 2 - 0.5)
        cell.set_ylim((height + side) / 2 - 0.5, (height - side) / 2 - 0.5)
    for spine in cell.spines.values():
        spine.set_visible(is_query or picture.thumbnail is None)
        spine.set_color(_QUERY if is_query else _HAIRLINE)
        spine.set_linewidth(2.0 if is_query else 0.8)
    title = textwrap.shorten(picture.title, _TITLE_CHARS, placeholder=" …") or picture.title[:_TITLE_CHARS]
    cell.set_title(title, fontsize=9, loc="left", color=_QUERY if is_query else "black", parse_math=False)
    below = "searched by" if is_query else f"{picture.distance:.3f}"
    details = textwrap.shorten(picture.details, _DETAIL_CHARS, placeholder=" …")
    cell.set_xlabel("\n".join(filter(None, (below, details))), fontsize=8, loc="left", color=_GREY, parse_math=False)
