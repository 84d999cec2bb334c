"""Draws what a tuner measured: recall against latency, and recall against size."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from rowvec.errors import UsageError
from rowvec.index.tuning.results import Tuning

_INCHES = (12.0, 5.2)
_MIB = 2**20


def plot(tuning: Tuning, into: Path) -> None:
    """Draw into a file; its suffix is the format. Raises ``UsageError`` if the file cannot be written."""
    figure = Figure(figsize=_INCHES, layout="constrained")
    # A canvas of its own opens no window and shares no state with other figures.
    FigureCanvasAgg(figure)
    by_latency, by_size = figure.subplots(1, 2, sharey=True)
    for name, points in groupby(tuning.measured, key=lambda m: m.name.rpartition(", ")[0]):
        measured = list(points)
        recalls = [m.recall for m in measured]
        by_latency.plot([m.median_ms for m in measured], recalls, marker="o", label=name)
        by_size.plot([m.bytes / _MIB for m in measured], recalls, marker="o", label=name)
    _mark_choice(tuning, by_latency, by_size)
    by_latency.set_xlabel("median of a search, ms")
    by_latency.set_ylabel(f"recall@{tuning.k}")
    by_size.set_xlabel("size of the index, MiB")
    for axes in (by_latency, by_size):
        axes.set_xscale("log")
        # Plain numbers such as 0.9 and 2, not powers of ten.
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(StrMethodFormatter("{x:g}"))
        axes.axhline(tuning.at_least, linestyle=":", color="gray")
        axes.grid(visible=True, alpha=0.3)
    # One legend for both, because the curves are the same.
    figure.legend(*by_latency.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize="small")
    rows = (
        f"{tuning.sampled_rows:,} of {tuning.rows:,} rows"
        if tuning.sampled_rows < tuning.rows
        else f"{tuning.rows:,} rows"
    )
    figure.suptitle(f"{rows}, {tuning.queries} queries; the dotted line is the required recall")
    try:
        figure.savefig(into, dpi=120)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"--plot {into} cannot be written ({error}); name a .png or .svg in an existing folder"
        ) from error


def _mark_choice(tuning: Tuning, by_latency: Axes, by_size: Axes) -> None:
    chosen = next((m for m in tuning.measured if tuning.is_choice(m)), None)
    if chosen is None:
        return
    for axes, at in ((by_latency, chosen.median_ms), (by_size, chosen.bytes / _MIB)):
        axes.scatter([at], [chosen.recall], s=220, facecolors="none", edgecolors="black", linewidths=1.5, zorder=5)
        axes.annotate("chosen", (at, chosen.recall), textcoords="offset points", xytext=(10, -14))
