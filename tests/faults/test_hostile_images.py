"""Hostile folders of images: a bad file is rejected alone, nothing outside the folder is read, and nothing hangs."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from rowvec.errors import RowError, SourceError, UsageError
from rowvec.images.inspect import check
from rowvec.operations.rejects import rejects
from rowvec.pipeline.file import load
from rowvec.postgres.connection import Connection
from rowvec.sources.images.locations import FolderPlaces
from tests.integration.sync.test_images import contents, local, pipeline
from tests.support.images import draw, fill, save
from tests.support.paintings import sync

LIMIT = 1_000_000


def encoded(kind: str, number: int = 1) -> bytes:
    """An image's bytes."""
    out = io.BytesIO()
    draw(number).save(out, kind)
    return out.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few hundred bytes whose header claims this many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(999))) + chunk(b"IEND", b"")
    )


def test_each_bad_file_is_rejected_alone(source: Connection, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    fill(folder, 5)
    outside = save(90, tmp_path / "outside.png")
    hostile = {
        "empty.png": b"",
        "text.jpg": b"no image, but a few words about one",
        "cut.png": encoded("PNG")[:-20],
        "cut.jpg": encoded("JPEG")[:-100],
        "cut.gif": encoded("GIF")[:-30],
        "cut.bmp": encoded("BMP")[:-100],
        "bomb.png": bomb(40_000, 40_000),
        "moderate.png": bomb(2_000, 2_000),
        "large.bmp": encoded("BMP") + bytes(200_000),
        "page.svg.png": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "script.tif": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    }
    for name, content in hostile.items():
        (folder / name).write_bytes(content)
    (folder / "notes.txt").write_text("no row")
    (folder / ".hidden.png").write_bytes(encoded("PNG"))
    (folder / "named.png").write_bytes(encoded("JPEG", 77))  # by its bytes
    (folder / "SHOUTED.JPG").write_bytes(encoded("JPEG", 78))
    (folder / "inside.png").symlink_to("SHOUTED.JPG")
    (folder / "outside.png").symlink_to(outside)
    (folder / "passwd.png").symlink_to("/etc/passwd")
    (folder / "dangling.png").symlink_to("nowhere.png")
    (folder / "circle.png").symlink_to("circle.png")
    (folder / "device.png").symlink_to("/dev/zero")
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    (folder / "loop").symlink_to(".", target_is_directory=True)
    os.mkdir(os.fsencode(folder) + b"/caf\xe9")  # noqa: PTH102 # a name that is not valid text
    Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9/x.png")).write_bytes(encoded("PNG", 79))
    (folder / "line\nbreak 'quoted'; {x} %s.png").write_bytes(encoded("PNG", 80))

    paintings = pipeline(folder, local(tmp_path), max_bytes=100_000, max_pixels=LIMIT)
    report = sync(paintings)
    listed = rejects(paintings).as_json()["rejects"]
    found = {str(one["key"][0]): one["reason"] for one in listed}
    assert found == {
        "empty.png": "broken_image",
        "text.jpg": "not_an_image",
        "cut.png": "broken_image",
        "cut.jpg": "broken_image",
        "cut.gif": "broken_image",
        "cut.bmp": "broken_image",
        "bomb.png": "image_too_large",
        "moderate.png": "image_too_large",
        "large.bmp": "image_too_large",
        "page.svg.png": "not_an_image",
        "script.tif": "not_an_image",
        "outside.png": "unreadable",
        "passwd.png": "unreadable",
        "dangling.png": "missing_image",
        "circle.png": "unreadable",
        "device.png": "unreadable",
        "folder.png": "unreadable",
        "pipe.png": "unreadable",
        "caf\N{REPLACEMENT CHARACTER}/x.png": "unreadable",
    }
    details = {str(one["key"][0]): one["detail"] for one in listed}
    assert details["dangling.png"] == "dangling.png is a symbolic link to a file that is not there"
    assert report.rejected == len(found)
    good = {"named.png", "SHOUTED.JPG", "inside.png", "line\nbreak 'quoted'; {x} %s.png"}
    assert contents(source).keys() == {p.relative_to(folder).as_posix() for p in folder.glob("room*/*")} | good
    named = source.execute("SELECT media_type FROM vectors.paintings WHERE image_file = 'named.png'").fetchone()
    assert named == ("image/jpeg",)
    # An image with two names is stored once.
    assert report.embedded == report.images == 5 + 3
    assert sync(paintings).rejected == len(found)


@pytest.mark.parametrize("written", ["../outside.png", "a/../../outside.png", "{outside}", "a/link/outside.png"])
def test_no_path_leads_out_of_the_folder(tmp_path: Path, written: str) -> None:
    outside, folder = save(1, tmp_path / "outside.png"), tmp_path / "images"
    (folder / "a").mkdir(parents=True)
    (folder / "a/link").symlink_to(tmp_path, target_is_directory=True)
    places = FolderPlaces(folder.resolve(), LIMIT)
    with pytest.raises(RowError) as caught:
        places.read(written.format(outside=outside))
    assert caught.value.reason == "unreadable"
    save(2, folder / "a/inside.png")
    assert places.read(str(folder / "a/inside.png")) == places.read("a/./inside.png")


def test_rows_of_a_folder_that_cannot_be_listed_are_kept(source: Connection, tmp_path: Path) -> None:
    """A folder that is not mounted, or that may not be listed, must not empty the table."""
    folder = tmp_path / "images"
    fill(folder, 6)
    paintings = pipeline(folder, local(tmp_path))
    sync(paintings)
    folder.rename(tmp_path / "away")
    with pytest.raises(SourceError, match=r"no folder that is there|is not there"):
        sync(paintings)
    (tmp_path / "away").rename(folder)
    if os.geteuid() != 0:
        (folder / "room 1").chmod(0)
        with pytest.raises(SourceError, match="cannot be listed"):
            sync(paintings)
        (folder / "room 1").chmod(0o755)
    assert len(contents(source)) == 6


def test_a_store_inside_the_folder_is_refused(source: Connection, tmp_path: Path) -> None:
    fill(tmp_path / "images", 3)
    with pytest.raises(SourceError, match="would become rows"):
        sync(pipeline(tmp_path / "images", {"url": str(tmp_path / "images/kept")}))


@given(st.binary(max_size=400))
def test_any_bytes_are_an_image_or_a_reject(content: bytes) -> None:
    for head in (b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"RIFF\x10\0\0\0WEBPVP8 ", b"II*\0", b"BM"):
        with pytest.raises(RowError) as caught:
            check(head + content, "x.png", LIMIT)
        assert caught.value.detail.startswith("x.png ")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "ICO"])
def test_every_kind_is_recognised_by_its_bytes_and_rejected_when_truncated(kind: str) -> None:
    whole = encoded(kind)
    found = check(whole, "x", LIMIT)
    assert found.media_type in ("image/x-icon", f"image/{kind.lower()}")
    assert (found.width, found.height) == (48, 48)
    with pytest.raises(RowError):
        check(whole[: len(whole) // 2], "x", LIMIT)


def test_a_large_image_of_a_camera_is_checked_without_its_pixels() -> None:
    out = io.BytesIO()
    Image.effect_noise((3000, 2000), 60).convert("RGB").save(out, "JPEG")
    assert check(out.getvalue(), "x.jpg", 10_000_000).width == 3000
    with pytest.raises(RowError) as caught:
        check(out.getvalue()[:-5000], "x.jpg", 10_000_000)
    assert caught.value.reason == "broken_image"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("embedder: {kind: local}", "takes texts"),
        ("search: {hybrid: true}", "images have none"),
        ("source: {chunks: {}}", "chunks are for texts"),
        ('source: {content: "{title}"}', "content"),
        ("source: {content: {image: 7}}", "source.content.image"),
        ("source: {max_bytes: 0}", "source.max_bytes"),
        ("source: {images: 'https://a.blob.core.windows.net/c?sig=abc'}", "source.images: holds a secret"),
        ("source: {kind: postgres, table: a, content: '{b}'}", "source.kind to images"),
    ],
)
def test_settings_that_contradict_each_other_are_named(tmp_path: Path, change: str, sentence: str) -> None:
    written: dict[str, Any] = {
        "name": "x",
        "source": {"kind": "images", "path": ".", "key": ["image_file"], "content": {"image": "image_file"}},
        "embedder": {"kind": "local_image"},
        "target": {"table": "vectors.x"},
    }
    for part, values in yaml.safe_load(change).items():
        if values.get("kind") == "postgres":
            written[part] = {**values, "key": ["id"]}
        elif part == "embedder":
            written[part] = values
        else:
            written[part] = {**written.get(part, {}), **values}
    file = tmp_path / "x.yaml"
    file.write_text(yaml.safe_dump(written), "utf-8")
    with pytest.raises(UsageError, match="(?s).*" + sentence):
        load(file)
