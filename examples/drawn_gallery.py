"""Draws the pictures that the notebook searches: 320 of them, each with a row in a CSV file, the same every time."""

from __future__ import annotations

import csv
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

SIDE = 240

PALETTES = {
    "sunset": ("#2b1b3d", "#ff6b35", "#f7c59f", "#d7263d"),
    "forest": ("#e9f5db", "#386641", "#6a994e", "#bc4749"),
    "sea": ("#caf0f8", "#0077b6", "#00b4d8", "#03045e"),
    "desert": ("#fefae0", "#dda15e", "#bc6c25", "#606c38"),
    "night": ("#0b132b", "#5bc0be", "#3a506b", "#ffffff"),
    "candy": ("#fff0f3", "#ff4d6d", "#c77dff", "#ffb703"),
    "stone": ("#edede9", "#6c757d", "#343a40", "#adb5bd"),
    "meadow": ("#f1f8e9", "#f4d35e", "#7cb518", "#ee964b"),
}
"""Paper and three inks."""

SHAPES = ("circles", "squares", "triangles", "stripes", "waves")

MOODS = {
    "sunset": "warm evening light",
    "forest": "deep green woodland",
    "sea": "cool blue water and waves",
    "desert": "dry sand and earth",
    "night": "a dark and quiet night sky",
    "candy": "sweet and playful pink",
    "stone": "sober grey rock",
    "meadow": "yellow flowers in spring grass",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """A picture and what is said of it."""

    image_file: str
    title: str
    description: str
    palette: str
    shape: str
    year: int
    picture: Image.Image


def draw_gallery(folder: Path, variants: int = 8) -> int:
    """Draw ``variants`` pictures of each palette and shape into ``folder/pictures``, and ``folder/gallery.csv``."""
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    count = 0
    with (folder / "gallery.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["image_file", "title", "description", "palette", "shape", "year"])
        for drawn in gallery(variants):
            drawn.picture.save(folder / "pictures" / drawn.image_file)
            rows.writerow([drawn.image_file, drawn.title, drawn.description, drawn.palette, drawn.shape, drawn.year])
            count += 1
    return count


def gallery(variants: int) -> Iterator[Drawn]:
    """Every palette with every shape."""
    for palette in PALETTES:
        for shape in SHAPES:
            for variant in range(variants):
                dice = random.Random(f"{palette} {shape} {variant}")  # noqa: S311 # pictures, not secrets
                yield Drawn(
                    image_file=f"{palette}-{shape}-{variant + 1}.png",
                    title=f"{palette.title()} {shape} {variant + 1}",
                    description=f"{shape.title()} that speak of {MOODS[palette]}",
                    palette=palette,
                    shape=shape,
                    year=dice.randrange(1950, 2020),
                    picture=draw(palette, shape, dice),
                )


def draw(palette: str, shape: str, dice: random.Random) -> Image.Image:
    """One picture, square."""
    paper, *inks = PALETTES[palette]
    picture = Image.new("RGB", (SIDE, SIDE), paper)
    pencil = ImageDraw.Draw(picture)
    if shape in ("stripes", "waves"):
        _lines(pencil, inks, dice, wavy=shape == "waves")
        return picture
    for _ in range(dice.randrange(4, 9)):
        size, ink = dice.randrange(30, 90), dice.choice(inks)
        x, y = dice.randrange(0, SIDE - size), dice.randrange(0, SIDE - size)
        if shape == "circles":
            pencil.ellipse((x, y, x + size, y + size), fill=ink)
        elif shape == "squares":
            pencil.rectangle((x, y, x + size, y + size), fill=ink)
        else:
            pencil.polygon([(x, y + size), (x + size, y + size), (x + size // 2, y)], fill=ink)
    return picture


def _lines(pencil: ImageDraw.ImageDraw, inks: list[str], dice: random.Random, *, wavy: bool) -> None:
    step, start = dice.randrange(18, 36), dice.randrange(0, 18)
    dice.shuffle(inks)
    for number, at in enumerate(range(start, SIDE, step)):
        ink = inks[number % len(inks)]
        if wavy:
            swing = dice.randrange(4, 10)
            points = [(x, at + (swing if x // 20 % 2 else -swing)) for x in range(0, SIDE + 20, 10)]
            pencil.line(points, fill=ink, width=6, joint="curve")
        else:
            pencil.line((at, 0, at, SIDE), fill=ink, width=step // 2)
