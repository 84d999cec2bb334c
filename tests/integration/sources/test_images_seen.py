"""A run reads an image once if no process can have changed it in between, and still notices every edit."""

from __future__ import annotations

import hashlib
import io
import os
import time
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from azure.storage.blob import ContainerClient
from hypothesis import given

from rowvec.postgres.connection import Connection
from rowvec.sources.images import seen as image_memory
from rowvec.sources.images.blobs import BlobPlaces
from rowvec.sources.images.file import ImageFile
from rowvec.sources.images.locations import FolderPlaces
from rowvec.sources.images.seen import ImageMemory, is_settled, mark_of, memory_of
from rowvec.sources.images.table import look
from rowvec.stages import merge as merge_stage
from tests.integration.sync.test_images import contents, expected, local, pipeline
from tests.support.images import draw, fill
from tests.support.paintings import sync
from tests.support.servers.azurite import Container

COUNT = 6
_PIXELS = 50_000_000


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Images whose times are older than the margin, on a disk that is treated as local."""
    monkeypatch.setattr(image_memory, "MARGIN_SECONDS", 0.05)
    monkeypatch.setattr(image_memory, "_is_local", _yes)
    fill(tmp_path / "paintings", COUNT)
    for number in range(COUNT):  # all of the same size, for edits that keep the size
        (tmp_path / f"paintings/same {number}.bmp").parent.mkdir(exist_ok=True)
        draw(100 + number).save(tmp_path / f"paintings/same {number}.bmp")
    time.sleep(0.2)
    return tmp_path / "paintings"


def _yes(device: int) -> bool:
    del device
    return True


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The locations that are read, in order."""
    found: list[str] = []
    read = FolderPlaces.read

    def counted(places: FolderPlaces, written: str) -> ImageFile:
        found.append(written)
        return read(places, written)

    monkeypatch.setattr(FolderPlaces, "read", counted)
    return found


def overwrite(path: Path, number: int) -> None:
    """Write another image of the same size into the same file, and reset its modification time."""
    before = path.stat()
    other = path.with_name("other.tmp")
    draw(number).save(other, format="BMP")
    content = other.read_bytes()
    other.unlink()
    assert len(content) == before.st_size
    with path.open("r+b") as file:
        file.write(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns, after.st_ino) == (before.st_size, before.st_mtime_ns, before.st_ino)


def test_a_run_reads_an_unchanged_image_once(
    source: Connection, folder: Path, tmp_path: Path, reads: list[str]
) -> None:
    paintings = pipeline(folder, local(tmp_path))
    sync(paintings)
    # To plan, to upload, to embed.
    assert sorted(reads) == sorted(3 * list(expected(folder)))
    reads.clear()
    assert sync(paintings).unchanged == 2 * COUNT
    assert sorted(reads) == sorted(expected(folder))


def test_what_was_changed_a_moment_ago_is_read_each_time(
    source: Connection, folder: Path, tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    paintings = pipeline(folder, local(tmp_path))
    sync(paintings)
    reads.clear()
    monkeypatch.setattr(image_memory, "MARGIN_SECONDS", 3600.0)
    sync(paintings)
    assert sorted(reads) == sorted(3 * list(expected(folder)))


def test_an_edit_that_keeps_size_and_time_is_noticed_by_the_next_run(
    source: Connection, folder: Path, tmp_path: Path
) -> None:
    paintings = pipeline(folder, local(tmp_path))
    sync(paintings)
    overwrite(folder / "same 0.bmp", 900)
    assert sync(paintings).changed == 1
    assert contents(source) == expected(folder)


def test_an_edit_that_keeps_size_and_time_is_noticed_within_a_run(
    source: Connection, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows, planned or not, are edited between extract and merge; and others before the table is read back."""
    paintings = pipeline(folder, local(tmp_path))
    sync(paintings)
    overwrite(folder / "same 0.bmp", 900)
    time.sleep(0.2)
    merge_run, compare, edits = merge_stage.run, merge_stage.compare_with_source, [901, 902, 903]

    def merge(*arguments: Any) -> Any:
        if len(edits) == 3:
            overwrite(folder / "same 0.bmp", edits.pop())
            overwrite(folder / "same 1.bmp", edits.pop())
        return merge_run(*arguments)

    def compared(*arguments: Any) -> Any:
        if len(edits) == 1:
            overwrite(folder / "same 2.bmp", edits.pop())
        return compare(*arguments)

    monkeypatch.setattr(merge_stage, "run", merge)
    monkeypatch.setattr(merge_stage, "compare_with_source", compared)
    assert sync(paintings).consistent
    assert not edits
    assert contents(source) == expected(folder)


def test_a_file_that_is_edited_while_it_is_read_is_not_remembered(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places, path, memory = FolderPlaces(folder.resolve(), 10**9), folder / "same 0.bmp", ImageMemory()
    fdopen = os.fdopen

    def opened(descriptor: int, mode: str) -> Any:
        file = fdopen(descriptor, mode)
        read = file.read

        class Edited:
            def __enter__(self) -> Edited:
                return self

            def __exit__(self, *_: object) -> None:
                file.close()

            def read(self, size: int) -> bytes:
                content = read(size)
                overwrite(path, 900)
                return content

        return Edited()

    with monkeypatch.context() as patched:
        patched.setattr(os, "fdopen", opened)
        first = look(places, _PIXELS, memory, b"same 0.bmp")
    second = look(places, _PIXELS, memory, b"same 0.bmp")
    assert first.sha256 != second.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_file_that_replaces_an_image_is_read(folder: Path) -> None:
    """A file is replaced by a rename, is a link that changes its target, or is deleted."""
    places, memory = FolderPlaces(folder.resolve(), 10**9), ImageMemory()
    names = [b"same 0.bmp", b"same 1.bmp", b"same 2.bmp"]
    before = [look(places, _PIXELS, memory, name) for name in names]
    assert all(memory.known(name.decode()) for name in names)
    (folder / "same 3.bmp").rename(folder / "same 0.bmp")
    (folder / "same 1.bmp").unlink()
    (folder / "same 1.bmp").symlink_to("same 4.bmp")
    (folder / "same 2.bmp").unlink()
    after = [look(places, _PIXELS, memory, name) for name in names]
    assert {one.sha256 for one in before}.isdisjoint(one.sha256 for one in after if one.sha256)
    assert after[2].error is not None
    assert after[2].error.reason == "missing_image"


@pytest.mark.azurite
def test_a_blob_is_sent_once_as_long_as_its_etag_is_the_same(
    container: Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = ContainerClient(container.account_url, container.name, credential=container.key)
    client.create_container()
    drawn = io.BytesIO()
    draw(2).save(drawn, "BMP")
    second = drawn.getvalue()
    client.upload_blob("in/a.bmp", second)
    places = BlobPlaces.at(f"{container.account_url}/{container.name}/in", container.key, 10**9)
    counted_reads: list[str] = []
    read = BlobPlaces.read

    def counted(places: BlobPlaces, written: str) -> ImageFile:
        counted_reads.append(written)
        return read(places, written)

    monkeypatch.setattr(BlobPlaces, "read", counted)
    memory = ImageMemory()
    seen = [look(places, _PIXELS, memory, b"a.bmp") for _ in range(3)]
    assert (len(counted_reads), len({one.sha256 for one in seen})) == (1, 1)
    edited = second[:-1] + bytes([second[-1] ^ 255])
    client.upload_blob("in/a.bmp", edited, overwrite=True)
    assert look(places, _PIXELS, memory, b"a.bmp").sha256 == hashlib.sha256(edited).hexdigest()
    client.delete_blob("in/a.bmp")
    gone = look(places, _PIXELS, memory, b"a.bmp").error
    assert gone is not None
    assert gone.reason == "missing_image"


_TIMES = st.integers(0, 2**62)


@given(_TIMES, _TIMES, _TIMES)
def test_an_image_is_settled_if_both_its_times_are_older_than_the_margin(
    changed: int, modified: int, began: int
) -> None:
    # The fields in order: mode, inode, device, links, owner, group, size, times in whole seconds, then times in ns.
    status = os.stat_result((0,) * 10 + (0.0,) * 3 + (0, modified, changed) + (0,) * 3)
    assert (status.st_mtime_ns, status.st_ctime_ns) == (modified, changed)
    if is_settled(status, began):
        assert began - changed > 3_000_000_000
        assert began - modified > 3_000_000_000


def test_only_disks_known_to_be_local_are_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status = tmp_path.stat()
    device = f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}"
    mounts = tmp_path / "mountinfo"
    monkeypatch.setattr(image_memory, "_MOUNTS", mounts)
    trusted: dict[str, bool] = {}
    for kind in ("ext4", "xfs", "nfs4", "cifs", "tmpfs", "fuse.sshfs", "vfat"):
        mounts.write_text(f"22 1 {device} / /data rw,relatime shared:1 - {kind} /dev/x rw\n")
        image_memory._is_local.cache_clear()  # pyright: ignore[reportPrivateUsage] # the machine's mounts change under it
        trusted[kind] = is_settled(status, status.st_ctime_ns + 10**12)
    mounts.write_text("22 1 999:999 / /data rw - ext4 /dev/x rw\n")
    image_memory._is_local.cache_clear()  # pyright: ignore[reportPrivateUsage] # as above
    trusted["unknown"] = is_settled(status, status.st_ctime_ns + 10**12)
    image_memory._is_local.cache_clear()  # pyright: ignore[reportPrivateUsage] # as above
    assert [kind for kind, is_so in trusted.items() if is_so] == ["ext4", "xfs"]


def test_nothing_is_carried_to_another_run(folder: Path) -> None:
    places = FolderPlaces(folder.resolve(), 10**9)
    seen = look(places, _PIXELS, memory_of("home/1"), b"same 0.bmp")
    known = memory_of("home/1").known("same 0.bmp")
    assert known == (mark_of((folder / "same 0.bmp").stat()), seen)
    assert memory_of("home/2").known("same 0.bmp") is None
    image_memory.forget_run("home/1")
    assert memory_of("home/1").known("same 0.bmp") is None
    for run in ("home/1", "home/2"):
        image_memory.forget_run(run)
