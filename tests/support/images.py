"""Images that tests draw themselves: palettes, stripes, discs and noise, each file unlike every other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

_SUFFIXES = ("png", "jpg", "webp", "gif", "bmp")
_SIDE = 48


def draw(number: int, side: int = _SIDE) -> Image.Image:
    """The image of this number: always the same one."""
    random = np.random.default_rng(number)
    colours = random.integers(0, 256, (3, 3)).tolist()
    image = Image.new("RGB", (side, side), tuple(colours[0]))
    pencil = ImageDraw.Draw(image)
    at = random.integers(0, side // 2, 2).tolist()
    box = (at[0], at[1], at[0] + side // 2, at[1] + side // 2)
    match number % 3:
        case 0:
            pencil.ellipse(box, fill=tuple(colours[1]), outline=tuple(colours[2]))
        case 1:
            pencil.rectangle(box, fill=tuple(colours[1]), outline=tuple(colours[2]))
        case _:
            for x in range(0, side, 6):
                pencil.line((x, 0, side - x, side), fill=tuple(colours[1 + x % 2]), width=2)
    # Palettes may repeat; a number in the corner does not.
    for bit in range(16):
        image.putpixel((bit, 0), (255, 255, 255) if number >> bit & 1 else (0, 0, 0))
    return image


def save(number: int, path: Path, side: int = _SIDE) -> Path:
    """The image of this number as a file, of the kind its suffix says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draw(number, side).save(path, lossless=True) if path.suffix == ".webp" else draw(number, side).save(path)
    return path


def fill(folder: Path, count: int, side: int = _SIDE) -> list[Path]:
    """So many images in three folders, of five kinds."""
    names = (f"room {n % 3}/painting-{n:04}.{_SUFFIXES[n % len(_SUFFIXES)]}" for n in range(count))
    return [save(number, folder / name, side) for number, name in enumerate(names)]
