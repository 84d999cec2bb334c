"""The images of rows that a search found: fetched from the store by their content, small, with a title."""

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
from rowvec.store.protocol import Store

MOST_PICTURES = 200
"""On one page or grid; who wants to look at more looks at none."""

SIDE = 360
"""Pixels of the longer side of a thumbnail."""

_THREADS = 8

# What names a row to a person, where the metadata has it.
_TITLES = ("title", "name", "label")


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundPicture:
    """One result, ready to be shown."""

    title: str
    details: str
    """The other columns, in one line."""
    distance: float | None
    """None: this is what was searched by."""
    thumbnail: pillow.Image | None
    """RGB, at most ``SIDE`` a side; None where the store has no image that can be shown."""
    link: str | None = None
    """Opens the whole image, for a while."""


def found_pictures(
    store: Store,
    pipeline_name: str,
    results: Sequence[dict[str, Any]],
    link: Callable[[str], str | None] = lambda _: None,
) -> list[FoundPicture]:
    """The pictures of search results (the objects of ``rowvec search --json``), in their order.

    An image that is lost or spoilt is a picture without a thumbnail. Raises ``UsageError`` where the results are texts
    or too many, and ``StoreUnavailable`` or ``StoreRefused`` as the store does.
    """
    if len(results) > MOST_PICTURES:
        raise UsageError(f"{len(results):,} pictures are too many to look at; ask for at most {MOST_PICTURES} with -k")
    with tempfile.TemporaryDirectory(prefix="rowvec-") as folder, ThreadPoolExecutor(_THREADS) as threads:

        def shown(numbered: tuple[int, dict[str, Any]]) -> FoundPicture:
            number, result = numbered
            return _shown(store, pipeline_name, result, Path(folder) / str(number), link)

        return list(threads.map(shown, enumerate(results)))


def picture_of_query(path: Path) -> FoundPicture:
    """The image that was searched by, for the head of a page. Raises ``UsageError`` where it cannot be decoded."""
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
            store.get(name, into, sha256)
            thumbnail = _thumbnail(into.read_bytes(), name)
        except (ArtifactCorrupt, RowError):
            name = None
        finally:
            into.unlink(missing_ok=True)
    return FoundPicture(
        title=title,
        details=details,
        distance=float(result["distance"]),
        thumbnail=thumbnail,
        link=link(name) if name else None,
    )


def _said(result: dict[str, Any]) -> tuple[str, str]:
    """A title and the rest, of key and metadata."""
    columns = {k: str(v) for k, v in result.items() if k not in ("content", "distance") and v not in (None, "")}
    titled = next((k for k in _TITLES if k in columns), next(iter(columns), None))
    title = columns.pop(titled) if titled else ""
    if {"width", "height"} <= columns.keys():
        # A folder's own columns: two bare numbers would say nothing.
        columns["width"] += f" × {columns.pop('height')}"
    return title, " · ".join(columns.values())


def _thumbnail(content: bytes, name: str) -> pillow.Image:
    picture = decoded(content, name, at_least=SIDE)
    picture.thumbnail((SIDE, SIDE), pillow.Resampling.LANCZOS)
    return picture
