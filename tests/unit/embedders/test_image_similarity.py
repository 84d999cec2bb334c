"""The local image embedder: similar images are near, every format is read, a bad image is rejected alone."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from typing import Any

import numpy as np
import PIL.Image as pillow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ImageDraw

from rowvec.embedders import embed_image_query, embed_query, open_embedder, open_image_embedder
from rowvec.embedders.protocol import Answer, Image
from rowvec.errors import RowError, UsageError
from rowvec.images.decode import decoded
from rowvec.pipeline.embedders import LocalEmbedder, LocalImageEmbedder
from rowvec.vectors.layout import Vectors, dense
from tests.support.examples import examples

CONFIG = LocalImageEmbedder(kind="local_image")


def drawn(
    paper: str = "white", ink: str = "red", shape: str = "circle", size: tuple[int, int] = (200, 160)
) -> pillow.Image:
    picture = pillow.new("RGB", size, paper)
    draw = ImageDraw.Draw(picture)
    width, height = size
    box = (width * 0.2, height * 0.2, width * 0.7, height * 0.7)
    if shape == "circle":
        draw.ellipse(box, fill=ink)
    elif shape == "square":
        draw.rectangle(box, fill=ink)
    else:
        for x in range(0, width, 16):
            draw.line((x, 0, x, height) if shape == "upright" else (0, x, width, x), fill=ink, width=5)
    return picture


def saved(picture: pillow.Image, format: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    picture.save(out, format, **options)
    return out.getvalue()


def answers_for(*contents: bytes) -> list[Answer]:
    images = [Image(name=f"{i}", media_type="", read=lambda c=c: c) for i, c in enumerate(contents)]
    return list(open_image_embedder(CONFIG).embed_images(images))


def vector_of(content: bytes) -> Vectors:
    return dense(embed_image_query(open_image_embedder(CONFIG), Image(name="it", media_type="", read=lambda: content)))


def test_vectors_are_of_length_one_and_the_same_each_time() -> None:
    content = saved(drawn())
    first, second = vector_of(content), vector_of(content)
    assert first.shape == (256,)
    assert first.dtype == np.float32
    assert np.linalg.norm(first) == pytest.approx(1, abs=1e-6)
    assert np.array_equal(first, second)


def test_images_that_look_alike_have_near_vectors() -> None:
    papers, inks, shapes = ("white", "navy", "khaki"), ("red", "green"), ("circle", "upright", "level")
    pictures = [(p, i, s) for p in papers for i in inks for s in shapes]
    stored = np.stack([vector_of(saved(drawn(*picture))) for picture in pictures])
    for number, (paper, ink, shape) in enumerate(pictures):
        # Another size, and JPEG's loss of detail.
        query = vector_of(saved(drawn(paper, ink, shape, (310, 250)), "JPEG", quality=60))
        near = np.argsort(-(stored @ query))
        assert near[0] == number
        assert pictures[near[1]][0] == paper or pictures[near[1]][1:] == (ink, shape)


def test_a_picture_of_one_colour_has_a_vector_too() -> None:
    for colour in ("black", "white", "#808080", "red"):
        assert np.linalg.norm(vector_of(saved(pillow.new("RGB", (1, 1), colour)))) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("mode", "format"),
    [
        ("RGBA", "PNG"), ("P", "PNG"), ("L", "PNG"), ("LA", "PNG"), ("1", "PNG"), ("P", "GIF"), ("CMYK", "JPEG"),
        ("L", "JPEG"), ("RGB", "BMP"), ("RGB", "WEBP"), ("CMYK", "TIFF"), ("RGB", "ICO"),
    ],
)  # fmt: skip
def test_every_mode_and_format_is_accepted(mode: str, format: str) -> None:
    shown = decoded(saved(drawn(size=(64, 64)).convert(mode), format), "it", at_least=64)
    assert shown.mode == "RGB"
    assert shown.size == (64, 64)
    inside, outside = shown.getpixel((25, 25)), shown.getpixel((60, 60))
    assert isinstance(inside, tuple)
    assert isinstance(outside, tuple)
    assert min(outside) > 230
    assert min(inside) < 140


def test_16_bits_are_scaled_and_not_clipped() -> None:
    ramp = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (64, 1))
    shown = decoded(saved(pillow.fromarray(ramp)), "ramp", at_least=64)
    row = np.asarray(shown)[0, :, 0]
    assert row[0] == 0
    assert row[32] == pytest.approx(130, abs=4)
    assert row[63] == 255


def test_transparent_pixels_become_white() -> None:
    shown = decoded(saved(pillow.new("RGBA", (8, 8), (255, 0, 0, 0))), "it", at_least=8)
    assert shown.getpixel((3, 3)) == (255, 255, 255)


def test_the_orientation_in_the_exif_data_is_applied() -> None:
    exif = pillow.Exif()
    exif[0x0112] = 6  # the top is at the right
    upright = drawn(shape="upright", size=(128, 128))
    turned = saved(upright.rotate(90, expand=True), "PNG", exif=exif)
    assert float(vector_of(turned) @ vector_of(saved(upright))) > 0.999
    plain = saved(upright.rotate(90, expand=True))
    assert float(vector_of(plain) @ vector_of(saved(upright))) < 0.9


def _png_that_says(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "broken_image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not_an_image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not_an_image"),
        (saved(drawn())[:200], "broken_image"),
        (saved(drawn(), "JPEG")[:900], "broken_image"),
        # Below and above the size that Pillow itself refuses.
        (_png_that_says(9_450, 9_450), "image_too_large"),
        (_png_that_says(9_900, 9_900), "image_too_large"),
        (_png_that_says(60_000, 60_000), "image_too_large"),
    ],
    ids=["empty", "svg", "eps", "cut png", "cut jpeg", "large", "bomb", "monstrous bomb"],
)
def test_a_bad_image_is_rejected_alone(content: bytes, reason: str) -> None:
    good = saved(drawn())
    answers = answers_for(good, content, good)
    assert [answer.positions.tolist() for answer in answers] == [[0, 2]]
    assert answers[0].rejected[1].reason == reason
    assert answers[0].rejected[1].detail.startswith("1 ")


_SEEDS = [
    saved(drawn(size=(40, 30)).convert(mode), format)
    for mode, format in (
        ("RGB", "PNG"), ("P", "PNG"), ("RGB", "JPEG"), ("P", "GIF"), ("RGB", "WEBP"), ("RGB", "BMP"), ("RGB", "TIFF"),
        ("RGB", "ICO"),
    )
]  # fmt: skip


@settings(max_examples=examples(60))
@given(
    content=st.sampled_from(_SEEDS),
    edits=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=6),
    keep=st.floats(0.05, 1),
)
def test_a_corrupt_file_gives_a_vector_or_a_reject(content: bytes, edits: list[tuple[float, int]], keep: float) -> None:
    corrupt = bytearray(content[: int(len(content) * keep)])
    for place, value in edits:
        corrupt[int(place * len(corrupt))] = value
    with warnings.catch_warnings():
        # Pillow warns about many defects and reads the file nevertheless.
        warnings.simplefilter("ignore")
        (answer,) = answers_for(bytes(corrupt))
    assert len(answer.positions) + len(answer.rejected) == 1
    assert np.isfinite(dense(answer.vectors)).all()


def test_positions_run_through_all_answers() -> None:
    good = saved(drawn(size=(16, 16)))
    answers = answers_for(*(b"" if i % 100 == 7 else good for i in range(600)))
    positions = [p for answer in answers for p in answer.positions.tolist()]
    rejected = [p for answer in answers for p in answer.rejected]
    assert sorted(positions + rejected) == list(range(600))
    assert sorted(rejected) == [7, 107, 207, 307, 407, 507]
    assert len(answers) > 2


def test_a_row_error_of_reading_rejects_that_image_alone() -> None:
    def unreadable() -> bytes:
        raise RowError("missing_image", "it was deleted")

    images = [
        Image(name="gone", media_type="", read=unreadable),
        Image(name="ok", media_type="", read=lambda: saved(drawn())),
    ]
    (answer,) = open_image_embedder(CONFIG).embed_images(images)
    assert answer.positions.tolist() == [1]
    assert answer.rejected[0].reason == "missing_image"


def test_a_text_query_is_refused_with_advice() -> None:
    with pytest.raises(UsageError, match="knows how images look and nothing of words: search by an image with --image"):
        embed_query(open_embedder(CONFIG), "a red circle")


def test_an_image_query_is_refused_by_an_embedder_of_texts() -> None:
    with pytest.raises(UsageError, match="of kind local takes no images"):
        open_image_embedder(LocalEmbedder(kind="local"))
