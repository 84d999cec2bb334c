"""A store that has lost images: an audit finds them, a repair and any sync upload them, and a restore reports them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from azure.storage.blob import ContainerClient

from rowvec.errors import Inconsistent
from rowvec.operations.adopt_store import adopt_store
from rowvec.operations.audit import audit
from rowvec.operations.prune import prune
from rowvec.operations.repair import prepare_repair
from rowvec.operations.restore import finish_restore, restore_rows, restoring
from rowvec.pipeline import Pipeline
from rowvec.pipeline.references import resolve
from rowvec.postgres.connection import Connection, connect
from rowvec.stages.report import RestoreReport
from rowvec.store.open import open_store
from tests.integration.sync.test_images import artifacts, contents, expected, kept, local, pipeline, sha256
from tests.support.images import fill, save
from tests.support.paintings import sync
from tests.support.servers.azurite import Container

__all__ = ["artifacts"]  # a fixture

COUNT = 12


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with images."""
    fill(tmp_path / "paintings", COUNT)
    return tmp_path / "paintings"


@pytest.fixture
def spoil(artifacts: dict[str, str], request: pytest.FixtureRequest) -> Callable[[str, bytes], None]:
    """Write other bytes under an object's name, as a program other than rowvec may do."""
    if "credential" not in artifacts:

        def write(name: str, content: bytes) -> None:
            (Path(artifacts["url"]) / name).write_bytes(content)

        return write
    container: Container = request.getfixturevalue("container")
    client = ContainerClient(container.account_url, container.name, credential=container.key)

    def upload(name: str, content: bytes) -> None:
        client.upload_blob(f"some/prefix/{name}", content, overwrite=True)

    return upload


def restore(pipeline: Pipeline) -> RestoreReport:
    """Run what the flow runs."""
    with restoring(pipeline) as restore:
        return finish_restore(pipeline, restore.run, restore_rows(pipeline, restore))


def sound(paintings: Pipeline, folder: Path) -> None:
    """Every image is in the store, with the bytes of its file."""
    store = open_store(resolve(paintings).artifacts)
    have = {name.rpartition("/")[2].partition(".")[0]: store.checksum(name) for name in kept(paintings)}
    assert have.keys() >= {sha256(path) for path in folder.rglob("*") if path.is_file()}
    assert all(name == checksum for name, checksum in have.items())


def test_an_audit_names_lost_images_and_repairs_them(
    source: Connection, folder: Path, artifacts: dict[str, str], spoil: Callable[[str, bytes], None]
) -> None:
    paintings = pipeline(folder, artifacts)
    sync(paintings)
    assert audit(paintings).consistent
    names = kept(paintings)
    store = open_store(resolve(paintings).artifacts)
    store.delete(names[0])
    spoil(names[1], b"cut")
    # The image of a deleted row: the source does not have it any more.
    gone = next(path for path in sorted(folder.rglob("*")) if path.is_file() and sha256(path) not in "".join(names[:2]))
    (away,) = [name for name in names if sha256(gone) in name]
    gone.unlink()
    sync(paintings)
    store.delete(away)

    # The sync above has uploaded the first two again.
    sound(paintings, folder)
    store.delete(names[0])
    spoil(names[1], b"cut")
    found = audit(paintings)
    reasons = {lost.name: lost.reason for lost in found.objects}
    assert set(reasons) == {names[0], names[1], away}
    assert "not in the store" in reasons[names[0]]
    assert "has 3 bytes in the store" in reasons[names[1]]
    assert (found.consistent, found.total) == (False, 3)
    prepare_repair(paintings)
    report = sync(paintings)
    assert (report.images, report.embedded, report.consistent) == (2, 0, True)
    assert audit(paintings).consistent
    sound(paintings, folder)


def test_a_sync_uploads_what_a_store_has_lost(source: Connection, folder: Path, tmp_path: Path) -> None:
    """The whole folder is lost, the database is not. If a run is killed before the upload, the next one continues."""
    paintings = pipeline(folder, local(tmp_path))
    sync(paintings)
    shutil.rmtree(tmp_path / "artifacts" / "images")
    report = sync(paintings)
    assert (report.new, report.changed, report.embedded, report.images) == (0, 0, 0, COUNT)
    assert report.consistent
    sound(paintings, folder)
    assert sync(paintings).images == 0
    # As a run leaves it that was killed between the listing and the upload.
    shutil.rmtree(tmp_path / "artifacts" / "images")
    source.execute("UPDATE rowvec.images SET uploaded_at = NULL")
    assert sync(paintings).images == COUNT
    sound(paintings, folder)
    # The ledger is lost as well.
    source.execute("TRUNCATE rowvec.images")
    assert not (found := audit(paintings)).findings
    assert found.consistent  # all images are in the store
    shutil.rmtree(tmp_path / "artifacts" / "images")
    assert audit(paintings).total == COUNT
    assert sync(paintings).images == COUNT
    assert audit(paintings).consistent


def test_a_lost_image_is_found_where_the_source_has_it_now(source: Connection, folder: Path, tmp_path: Path) -> None:
    """A rename in the source may change nothing in the vector table."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())

    def write() -> None:
        names = [path.relative_to(folder).as_posix() for path in files]
        pq.write_table(pa.table({"id": range(len(names)), "image_file": names}), tmp_path / "paintings.parquet")

    write()
    paintings = pipeline(tmp_path / "paintings.parquet", local(tmp_path), key=["id"], metadata=[], images=str(folder))
    sync(paintings)
    files[0] = files[0].rename(folder / "moved.png")
    write()
    assert sync(paintings).unchanged == COUNT
    shutil.rmtree(tmp_path / "artifacts" / "images")
    assert sync(paintings).images == COUNT
    sound(paintings, folder)


def test_an_image_that_the_source_replaced_meanwhile_is_not_looked_for(
    source: Connection, folder: Path, tmp_path: Path
) -> None:
    paintings = pipeline(folder, local(tmp_path))
    sync(paintings)
    shutil.rmtree(tmp_path / "artifacts" / "images")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    save(700, files[0])
    files[1].unlink()
    report = sync(paintings)
    assert (report.changed, report.deleted, report.images, report.consistent) == (1, 1, COUNT - 1, True)
    assert contents(source) == expected(folder)
    assert len(kept(paintings)) == COUNT - 1
    assert audit(paintings).consistent


def test_a_row_whose_image_is_not_in_the_store_fails_the_run(
    source: Connection, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If no stage has uploaded the image again, the run is not consistent."""
    paintings = pipeline(folder, local(tmp_path))
    sync(paintings)
    (tmp_path / "artifacts" / kept(paintings)[0]).unlink()

    def nothing(pipeline: Pipeline, run_id: int) -> int:
        del pipeline, run_id
        return 0

    monkeypatch.setattr("rowvec.stages.images.lost.run", nothing)
    with pytest.raises(Inconsistent, match="images: 1 image that a row shows is not in the store"):
        sync(paintings)


@pytest.mark.parametrize(
    "artifacts",
    ["folder", pytest.param("azurite", marks=[pytest.mark.azurite, pytest.mark.soak])],
    indirect=True,
)
def test_a_restore_knows_the_images_of_the_store(
    source: Connection,
    folder: Path,
    artifacts: dict[str, str],
    another_url: str,
    spoil: Callable[[str, bytes], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    paintings = pipeline(folder, artifacts)
    sync(paintings)
    gone = sorted(path for path in folder.rglob("*") if path.is_file())[0]
    checksum = sha256(gone)
    gone.unlink()
    sync(paintings)
    (damaged, *_) = (name for name in kept(paintings) if checksum not in name)
    spoil(damaged, b"cut")
    monkeypatch.setenv("ROWVEC_DATABASE_URL", another_url)
    assert restore(paintings).consistent
    with connect(another_url) as connection:
        assert connection.execute("SELECT count(*), count(uploaded_at) FROM rowvec.images").fetchone() == (COUNT, COUNT)
    # The object that was cut short is found once the source is read again.
    report = sync(paintings)
    assert (report.images, report.embedded, report.consistent) == (1, 0, True)
    sound(paintings, folder)
    assert sync(paintings).images == 0
    assert audit(paintings).consistent
    assert prune(paintings, timedelta(days=30), apply=True).images == 0
    # The first database may still show them, until this one is said to be the only one.
    assert prune(paintings, timedelta(0), apply=True).images == 0
    adopt_store(paintings)
    assert prune(paintings, timedelta(0), apply=True).images == 1
    assert len(kept(paintings)) == COUNT - 1


def test_a_restore_names_the_lost_images(
    source: Connection, folder: Path, tmp_path: Path, another_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    paintings = pipeline(folder, local(tmp_path))
    sync(paintings)
    (tmp_path / "artifacts" / kept(paintings)[0]).unlink()
    monkeypatch.setenv("ROWVEC_DATABASE_URL", another_url)
    report = restore(paintings)
    assert [check.name for check in report.failed_checks] == ["images"]
    assert report.rows == COUNT
    assert (sync(paintings).images, audit(paintings).consistent) == (1, True)
