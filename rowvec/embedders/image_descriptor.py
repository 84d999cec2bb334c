"""What an image looks like in 256 numbers: its colour layout, its colour histogram, and the directions of its edges.

The parts are the classical ones: a colour layout as in MPEG-7, a histogram of hue, saturation and value, and oriented
gradients (Dalal and Triggs, 2005). None of them knows what the image shows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import PIL.Image as pillow

from rowvec.vectors.layout import Vectors

DIMENSIONS = 256

SIDE = 128
"""Every image is scaled to a square with this many pixels per side."""

_CELLS = 4
_HUES, _SATURATIONS, _VALUES, _GREYS = 8, 3, 3, 8
_DIRECTIONS = 8

# Below this share of full saturation or full brightness, a hue is noise.
_GREY_BELOW = 0.12

# Weights of the parts: colours distinguish pictures best, edges second best.
_LAYOUT_WEIGHT, _COLOUR_WEIGHT, _EDGE_WEIGHT = 1.0, 1.2, 0.8

Array = npt.NDArray[np.float32]


def describe(picture: pillow.Image) -> Vectors:
    """``(256,)``, of length 1: the descriptor of an RGB image. The same pixels give the same numbers."""
    small = picture.resize((SIDE, SIDE), pillow.Resampling.BOX, reducing_gap=2.0)
    pixels = np.asarray(small, np.float32) / np.float32(255)
    parts = (
        _LAYOUT_WEIGHT * _unit(_layout(pixels)),
        _COLOUR_WEIGHT * _unit(_colours(small)),
        _EDGE_WEIGHT * _unit(_edges(pixels)),
    )
    return _unit(np.concatenate(parts)).astype(np.float32)


def _layout(pixels: Array) -> Array:
    """``(48,)``: brightness and two opponent colours of each of 4 x 4 cells; mid-grey is 0."""
    cells = _by_cell(pixels).mean(axis=(1, 3))
    red, green, blue = cells[..., 0], cells[..., 1], cells[..., 2]
    return np.stack(((red + green + blue) / 3 - 0.5, red - green, (red + green) / 2 - blue), axis=-1).reshape(-1)


def _colours(small: pillow.Image) -> Array:
    """``(80,)``: how many pixels have which colour, in 72 bins of hue, saturation and value, and 8 of grey.

    Square roots, so that a small patch of a colour counts too. The value of an even distribution is subtracted, so that
    the sign of a component says whether the image has more or less of the colour than that.
    """
    hue, saturation, value = np.moveaxis(np.asarray(small.convert("HSV"), np.float32) / 256, -1, 0)
    grey = (saturation < _GREY_BELOW) | (value < _GREY_BELOW)
    coloured = ((hue * _HUES).astype(np.int64) * _SATURATIONS + (saturation * _SATURATIONS).astype(np.int64)) * _VALUES
    coloured += (value * _VALUES).astype(np.int64)
    bins = np.where(grey, _HUES * _SATURATIONS * _VALUES + (value * _GREYS).astype(np.int64), coloured)
    counted = np.bincount(bins.reshape(-1), minlength=_HUES * _SATURATIONS * _VALUES + _GREYS)
    return (np.sqrt(counted / counted.sum()) - 1 / np.sqrt(len(counted))).astype(np.float32)


def _edges(pixels: Array) -> Array:
    """``(128,)``: in each of 4 x 4 cells, how strong the gradients of brightness are in each of 8 directions."""
    brightness = pixels @ np.array([0.299, 0.587, 0.114], np.float32)
    down, right = np.gradient(brightness)
    strength = np.hypot(down, right)
    # Opposite directions count as one: half a turn does not change an edge.
    turn = (np.arctan2(down, right) / np.pi) % 1.0
    position = turn * _DIRECTIONS
    lower = np.floor(position)
    share = position - lower
    first = lower.astype(np.int64) % _DIRECTIONS
    second = (first + 1) % _DIRECTIONS
    histogram = np.zeros((SIDE, SIDE, _DIRECTIONS), np.float32)
    rows, columns = np.indices((SIDE, SIDE))
    histogram[rows, columns, first] = strength * (1 - share)
    histogram[rows, columns, second] += strength * share
    summed = np.sqrt(_by_cell(histogram).mean(axis=(1, 3)))
    return (summed - summed.mean()).reshape(-1)


def _by_cell(pixels: Array) -> Array:
    """``(4, s, 4, s, n)`` of ``(128, 128, n)``: the pixels of each cell along axes 1 and 3."""
    side = SIDE // _CELLS
    return pixels.reshape(_CELLS, side, _CELLS, side, -1)


def _unit(values: npt.NDArray[Any]) -> Array:
    norm = float(np.sqrt(np.square(values, dtype=np.float64).sum()))
    return (values / norm if norm > 1e-9 else values).astype(np.float32)
