"""Plots of what the benchmarks measured: bars against a goal, and lines over sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

_INCHES_A_PANEL = (6.0, 4.6)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bars:
    """One bar per name."""

    title: str
    label: str
    values: Mapping[str, float]
    goal: float | None = None
    """Drawn as a dotted line."""
    log: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Lines:
    """One line per name, over x."""

    title: str
    x_label: str
    label: str
    values: Mapping[str, Sequence[tuple[float, float]]]
    goal: float | None = None
    log: bool = True


def draw(into: Path | None, title: str, panels: Sequence[Bars | Lines]) -> None:
    """Draw panels side by side into a file; its suffix decides the format. Without a file it does nothing."""
    if into is None:
        return
    width, height = _INCHES_A_PANEL
    figure = Figure(figsize=(width * len(panels), height), layout="constrained")
    # A canvas of its own: no window is opened.
    FigureCanvasAgg(figure)
    places = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, panel in zip(places, panels, strict=True):
        _bars(axes, panel) if isinstance(panel, Bars) else _lines(axes, panel)
        axes.set_title(panel.title, fontsize="medium")
        if panel.goal is not None:
            axes.axhline(panel.goal, linestyle=":", color="black")
        axes.grid(visible=True, axis="y", alpha=0.3)
    figure.suptitle(title)
    into.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(into, dpi=120)


def _bars(axes: Axes, panel: Bars) -> None:
    names = list(panel.values)
    bars = axes.bar(range(len(names)), [panel.values[name] for name in names], color="tab:blue", width=0.7)
    axes.bar_label(bars, fmt="{:.3g}", fontsize="small")
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right", fontsize="small")
    axes.set_ylabel(panel.label)
    if panel.log:
        axes.set_yscale("log")


def _lines(axes: Axes, panel: Lines) -> None:
    for name, points in panel.values.items():
        axes.plot([x for x, _ in points], [y for _, y in points], marker="o", markersize=4, label=name)
    axes.set_xlabel(panel.x_label)
    axes.set_ylabel(panel.label)
    if panel.log:
        axes.set_xscale("log")
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.legend(fontsize="small")
