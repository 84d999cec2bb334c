"""Image files as pixels: every kind of file in one form, and broken or monstrous ones refused with a sentence."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import PIL.Image as pillow
from PIL import ImageOps

from rowvec.errors import RowError

FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "ICO")
"""What is decoded. Pillow knows more, of which some (EPS) start another program."""

# Beyond 89 million Pillow itself warns, and refuses twice that.
MOST_PIXELS = 89_000_000

# A file may say that it is a TIFF of one pixel and a million wide strips: what a decoder makes of such a thing is any
# of these. No list is complete by documentation; this one is what mutated files of every format have been seen to do.
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
"""What a decoder raises over a file that is not as its format says."""

_WHITE = (255, 255, 255)
_GREYS_OF_16_BITS = ("I;16", "I;16B", "I;16L", "I;16N", "I")


def decoded(content: bytes, name: str, *, at_least: int, most_pixels: int = MOST_PIXELS) -> pillow.Image:
    """The image as RGB, the right way up, on white where it is transparent; of several frames the first.

    Where the format allows it, decoded smaller than it is, with both sides still ``at_least`` pixels. Raises
    ``RowError``, naming the image, where it is none that can be decoded, or has more than ``most_pixels``.
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
        raise RowError("not_an_image", f"{name} is not an image of a kind that is known ({_known()})") from None
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
    """Pillow clips wide greys to 255, which makes most of them white: they are scaled instead."""
    values = np.nan_to_num(np.asarray(picture, np.float64))
    full = 65535.0 if picture.mode != "F" and float(values.max()) > 255 else max(1.0, float(values.max()))
    grey = np.clip(values * (255 / full), 0, 255).astype(np.uint8)
    return pillow.fromarray(grey).convert("RGB")


def _known() -> str:
    return ", ".join(FORMATS)


def _said(error: BaseException) -> str:
    line = " ".join(str(error).split())
    return "".join(c for c in line if c.isprintable())[:200] or type(error).__name__
