"""A folder of images kept in step: what is replaced, renamed, deleted and broken, and nothing else, is work."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from rowvec.audit import run_audit
from rowvec.commands import plan, rejects
from rowvec.database import Connection
from rowvec.pipeline import Pipeline
from rowvec.stores import open_store
from tests.azurite import Container
from tests.drawn_images import fill, save
from tests.gallery import sync

COUNT = 300


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with images."""
    fill(tmp_path / "paintings", COUNT)
    return tmp_path / "paintings"


def pipeline(path: Path, artifacts: dict[str, str], **source: Any) -> Pipeline:
    """The images of a folder, or of a table of them."""
    written = {
        "kind": "images",
        "path": str(path),
        "key": ["image_file"],
        "content": {"image": "image_file"},
        "metadata": ["width", "height", "media_type"],
    }
    return Pipeline.model_validate(
        {
            "name": "paintings",
            "source": {**written, **source},
            "embedder": {"kind": "local_image"},
            "target": {"table": "vectors.paintings"},
            "artifacts": artifacts,
        }
    )


@pytest.fixture(params=["folder", pytest.param("azurite", marks=pytest.mark.azurite)])
def artifacts(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Where images are kept."""
    if request.param == "folder":
        return {"url": str(tmp_path / "artifacts")}
    container: Container = request.getfixturevalue("container")
    monkeypatch.setenv("BLOB_KEY", container.key)
    return {"url": container.url, "credential": "${BLOB_KEY}"}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def contents(connection: Connection) -> dict[str, str]:
    """Content by image file."""
    return dict(connection.execute("SELECT image_file, content FROM vectors.paintings").fetchall())


def expected(folder: Path, without: set[Path] = frozenset()) -> dict[str, str]:  # pyright: ignore[reportArgumentType] # an empty set
    """What the vector table must hold, by the files themselves."""
    files = [path for path in folder.rglob("*") if path.is_file() and path not in without]
    return {path.relative_to(folder).as_posix(): f"sha256:{sha256(path)}" for path in files}


def kept(pipeline: Pipeline) -> list[str]:
    """Names of images in the store."""
    from rowvec.references import resolve

    return list(open_store(resolve(pipeline).artifacts).names("images/"))


def test_only_what_changed_is_work(source: Connection, folder: Path, artifacts: dict[str, str]) -> None:
    paintings = pipeline(folder, artifacts)
    first = sync(paintings)
    assert (first.new, first.embedded, first.images, first.rejected) == (COUNT, COUNT, COUNT, 0)
    assert contents(source) == expected(folder)
    assert len(kept(paintings)) == COUNT
    again = sync(paintings)
    assert (again.new, again.changed, again.deleted, again.embedded, again.images) == (0, 0, 0, 0, 0)

    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for number, path in enumerate(files[:5]):
        save(1000 + number, path)
    for number, path in enumerate(files[5:10]):
        path.rename(folder / f"moved {number}{path.suffix}")
    for path in files[10:15]:
        path.unlink()
    broken = next(path for path in files[15:] if path.suffix == ".jpg")
    broken.write_bytes(broken.read_bytes()[:-200])

    expected_work = plan(paintings)
    assert (expected_work["new"], expected_work["changed"], expected_work["embedded"]) == (5, 5, 5)
    report = sync(paintings)
    assert (report.changed, report.embedded, report.images) == (5, 5, 5)
    assert (report.new, report.reused) == (5, 5)  # under their new names, and of those no vector was made
    assert report.deleted == 5 + 5 + 1  # deleted, the old names of the moved, the broken
    assert report.rejected == 1
    (reject,) = rejects(paintings, retry=False)["rejects"]
    assert reject["key"] == [broken.relative_to(folder).as_posix()]
    assert reject["reason"] == "broken_image"
    assert contents(source) == expected(folder, {broken})
    assert run_audit(paintings).consistent

    save(2000, broken)
    report = sync(paintings)
    assert (report.new, report.images, report.rejected) == (1, 1, 0)
    assert contents(source) == expected(folder)
