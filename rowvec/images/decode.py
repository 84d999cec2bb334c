"""Decodes image files of every kind to RGB, and refuses broken or too large ones with a sentence."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import PIL.Image as pillow
from PIL import ImageOps

from rowvec.errors import RowError

FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "ICO")
"""The formats that are decoded. Pillow knows more, and some of those (EPS) start another program."""

# Above 89 million Pillow itself warns, and it refuses twice that.
MOST_PIXELS = 89_000_000

# A file may claim to be a TIFF of one pixel and a million wide strips, and a decoder may raise any of these for it. No
# documentation has a complete list; this one is what mutated files of every format raised.
BROKEN = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    AttributeError,
    OverflowError,
    ZeroDivisionError,
    MemoryError,
    NotImplementedError,
    struct.error,
    zlib.error,
)
"""The exceptions of decoders for files that violate their format."""

_WHITE = (255, 255, 255)
_GREYS_OF_16_BITS = ("I;16", "I;16B", "I;16L", "I;16N", "I")


def decoded(content: bytes, name: str, *, at_least: int, most_pixels: int = MOST_PIXELS) -> pillow.Image:
    """The image as RGB, upright, with white for transparent pixels; the first frame if there are several.

    If the format allows it, it is decoded at a smaller size, with both sides still ``at_least`` pixels. Raises
    ``RowError`` with the image's name if it cannot be decoded or has more than ``most_pixels``.
    """
    if not content:
        raise RowError("broken_image", f"{name} is empty")
    try:
        with pillow.open(io.BytesIO(content), formats=FORMATS) as picture:
            width, height = picture.size
            if width * height > most_pixels:
                raise RowError(
                    "image_too_large", f"{name} has {width:,} x {height:,} pixels, more than {most_pixels:,}"
                )
            # JPEG only: an eighth of the pixels need never be computed.
            picture.draft("RGB", (at_least, at_least))
            return _rgb(ImageOps.exif_transpose(picture))
    except (pillow.DecompressionBombError, pillow.DecompressionBombWarning):
        raise RowError("image_too_large", f"{name} has more pixels than {most_pixels:,}") from None
    except pillow.UnidentifiedImageError:
        raise RowError("not_an_image", f"{name} is not an image of a known kind ({_known()})") from None
    except BROKEN as error:
        raise RowError("broken_image", f"{name} is an image that cannot be decoded: {_said(error)}") from None


def _rgb(picture: pillow.Image) -> pillow.Image:
    if picture.mode in _GREYS_OF_16_BITS or picture.mode == "F":
        return _from_wide_grey(picture)
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        paper = pillow.new("RGB", layer.size, _WHITE)
        paper.paste(layer, mask=layer.getchannel("A"))
        return paper
    return picture.convert("RGB")


def _from_wide_grey(picture: pillow.Image) -> pillow.Image:
    """Scale wide greys, because Pillow clips them to 255, which makes most of them white."""
    values = np.nan_to_num(np.asarray(picture, np.float64))
    full = 65535.0 if picture.mode != "F" and float(values.max()) > 255 else max(1.0, float(values.max()))
    grey = np.clip(values * (255 / full), 0, 255).astype(np.uint8)
    return pillow.fromarray(grey).convert("RGB")


def _known() -> str:
    return ", ".join(FORMATS)


def _said(error: BaseException) -> str:
    line = " ".join(str(error).split())
    return "".join(c for c in line if c.isprintable())[:200] or type(error).__name__
