"""Inspects an image file by its bytes alone: its kind, its size, and whether it can be shown."""

from __future__ import annotations

import hashlib
import io
import threading
import warnings
from dataclasses import dataclass

import PIL.Image as pillow

from rowvec.errors import RowError
from rowvec.images.decode import BROKEN, FORMATS
from rowvec.store.protocol import SUFFIXES

# Pillow has other names for two of these.
_MEDIA_TYPES = {"image/vnd.microsoft.icon": "image/x-icon", "image/mpo": "image/jpeg"}

# Decoding needs some bytes per pixel: images above this size are decoded one at a time, whatever the number of threads.
_LARGE_PIXELS = 4_000_000
_one_large = threading.Lock()

# Pillow writes warnings about a file to stderr without the file's name. Those that matter are raised as exceptions.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.\w+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """An image that can be shown."""

    sha256: str
    """The sha256 of the file's bytes, 64 hex digits."""
    media_type: str
    """Determined from the bytes, because the name may be wrong."""
    width: int
    height: int
    """In pixels, as stored: the camera's orientation mark is ignored."""


# A run may read its images three times, and the same bytes need only one inspection. The cache is at most 20 MB.
_MOST_KNOWN = 65_536
_known: dict[tuple[str, int], Checked] = {}


def check(content: bytes, name: str, max_pixels: int) -> Checked:
    """Inspect an image file's bytes.

    Raises ``RowError`` with the file's name if they are not an image, are cut or broken, or claim more pixels than
    ``max_pixels``; nothing is decoded before that check.
    """
    if not content:
        raise RowError("broken_image", f"{name} is empty")
    sha256 = hashlib.sha256(content).hexdigest()
    known = _known.get((sha256, max_pixels))
    if known is None:
        known = _looked_at(content, sha256, name, max_pixels)
        if len(_known) >= _MOST_KNOWN:
            _known.clear()
        _known[sha256, max_pixels] = known
    return known


def _looked_at(content: bytes, sha256: str, name: str, max_pixels: int) -> Checked:
    try:
        with pillow.open(io.BytesIO(content), formats=FORMATS) as picture:
            width, height = picture.size
            if width * height > max_pixels:
                raise _too_large(name, f"{width:,} x {height:,} pixels", max_pixels)
            media_type = _media_type(picture)
            _verify(picture, large=width * height > _LARGE_PIXELS)
    except (pillow.DecompressionBombError, pillow.DecompressionBombWarning):
        raise _too_large(name, "more pixels than any photograph", max_pixels) from None
    except pillow.UnidentifiedImageError:
        raise RowError("not_an_image", f"{name} holds no image of a known kind ({', '.join(FORMATS)})") from None
    except BROKEN as error:
        said = "".join(c for c in " ".join(str(error).split()) if c.isprintable())[:200]
        raise RowError("broken_image", f"{name} is cut or broken: {said or type(error).__name__}") from None
    return Checked(sha256=sha256, media_type=media_type, width=width, height=height)


def _verify(picture: pillow.Image, *, large: bool) -> None:
    if picture.format == "PNG":
        # Every chunk has a checksum, so completeness can be checked without decoding pixels.
        picture.verify()
        return
    # JPEG only: this reads the whole file, but decodes at an eighth of the size.
    picture.draft("L", (max(1, picture.width // 8), max(1, picture.height // 8)))
    if not large:
        picture.load()
        return
    with _one_large:
        picture.load()


def _media_type(picture: pillow.Image) -> str:
    # Some cameras put several images into one JPEG.
    found = pillow.MIME.get(picture.format or "", "")
    found = _MEDIA_TYPES.get(found, found)
    if found not in SUFFIXES:
        raise pillow.UnidentifiedImageError
    return found


def _too_large(name: str, what: str, max_pixels: int) -> RowError:
    return RowError(
        "image_too_large", f"{name} claims {what}, and source.max_pixels allows {max_pixels:,}: it is not decoded"
    )
