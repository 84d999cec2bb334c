"""Pictures of search results: thumbnails of their images from the store, with a title."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL.Image as pillow

from rowvec.errors import ArtifactCorrupt, RowError, UsageError
from rowvec.images.content import objects_prefix, sha256_of
from rowvec.images.decode import decoded
from rowvec.pipeline.sources import MOST_IMAGE_BYTES
from rowvec.store.protocol import Store

MOST_PICTURES = 200
"""The most pictures on one page or grid."""

SIDE = 360
"""Pixels of the longer side of a thumbnail."""

_THREADS = 8

# Metadata columns that can serve as a title.
_TITLES = ("title", "name", "label")


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundPicture:
    """One result with everything that is shown of it."""

    title: str
    details: str
    """The other columns, in one line."""
    distance: float | None
    """None for the image that was searched by."""
    thumbnail: pillow.Image | None
    """RGB, at most ``SIDE`` pixels per side; None if the store has no image that can be shown."""
    link: str | None = None
    """A link to the full image, valid for a short time."""


def found_pictures(
    store: Store,
    pipeline_name: str,
    results: Sequence[dict[str, Any]],
    link: Callable[[str], str | None] = lambda _: None,
) -> list[FoundPicture]:
    """The pictures of search results (the objects of ``rowvec search --json``), in their order.

    A lost or corrupt image gives a picture without a thumbnail. Raises ``UsageError`` if the results are texts or too
    many, and ``StoreUnavailable`` or ``StoreRefused`` like the store.
    """
    if len(results) > MOST_PICTURES:
        raise UsageError(f"{len(results):,} pictures are too many to look at; ask for at most {MOST_PICTURES} with -k")
    with tempfile.TemporaryDirectory(prefix="rowvec-") as folder, ThreadPoolExecutor(_THREADS) as threads:

        def shown(numbered: tuple[int, dict[str, Any]]) -> FoundPicture:
            number, result = numbered
            return _shown(store, pipeline_name, result, Path(folder) / str(number), link)

        return list(threads.map(shown, enumerate(results)))


def picture_of_query(path: Path) -> FoundPicture:
    """The image that was searched by, for the top of a page. Raises ``UsageError`` if it cannot be decoded."""
    try:
        thumbnail = _thumbnail(path.read_bytes(), path.name)
    except (OSError, RowError) as error:
        raise UsageError(f"--image {path} cannot be shown ({error}); name another image") from None
    return FoundPicture(title=path.name, details="", distance=None, thumbnail=thumbnail)


def _shown(
    store: Store, pipeline_name: str, result: dict[str, Any], into: Path, link: Callable[[str], str | None]
) -> FoundPicture:
    sha256 = sha256_of(str(result["content"]))
    title, details = _said(result)
    name = next(iter(store.names(f"{objects_prefix(pipeline_name)}{sha256[:2]}/{sha256}.")), None)
    thumbnail = None
    if name is not None:
        try:
            store.get(name, into, sha256, at_most=MOST_IMAGE_BYTES)
            thumbnail = _thumbnail(into.read_bytes(), name)
        except (ArtifactCorrupt, RowError):
            name = None
        finally:
            into.unlink(missing_ok=True)
    return FoundPicture(
        title=title,
        details=details,
        distance=None if result["distance"] is None else float(result["distance"]),
        thumbnail=thumbnail,
        link=link(name) if name else None,
    )


def _said(result: dict[str, Any]) -> tuple[str, str]:
    """The title of a result, and its other key and metadata columns in one line."""
    columns = {k: str(v) for k, v in result.items() if k not in ("content", "distance") and v not in (None, "")}
    titled = next((k for k in _TITLES if k in columns), next(iter(columns), None))
    title = columns.pop(titled) if titled else ""
    if {"width", "height"} <= columns.keys():
        # A folder source's own columns: two bare numbers would be meaningless.
        columns["width"] += f" × {columns.pop('height')}"
    return title, " · ".join(columns.values())


def _thumbnail(content: bytes, name: str) -> pillow.Image:
    picture = decoded(content, name, at_least=SIDE)
    picture.thumbnail((SIDE, SIDE), pillow.Resampling.LANCZOS)
    return picture
