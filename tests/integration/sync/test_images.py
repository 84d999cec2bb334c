"""A folder of images is kept in sync: only images that are replaced, renamed, deleted or broken cause work."""

from __future__ import annotations

import hashlib
import json
import signal
from collections.abc import Set as AbstractSet
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from azure.storage.blob import ContainerClient
from pyarrow import csv

from rowvec.embedders import open_image_embedder
from rowvec.embedders.protocol import Image
from rowvec.operations.audit import audit
from rowvec.operations.prune import prune
from rowvec.operations.rejects import rejects
from rowvec.pipeline import Pipeline
from rowvec.pipeline.references import resolve
from rowvec.postgres.connection import Connection
from rowvec.stages import embed as batch
from rowvec.stages import merge as stages
from rowvec.stages.dry_run import plan
from rowvec.store.open import open_store
from rowvec.vectors.layout import dense
from tests.support.cli_process import PrefectServer, start, write_pipeline
from tests.support.images import fill, save
from tests.support.paintings import rebuild, sync
from tests.support.servers.azurite import Container

COUNT = 90


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
    """The folder of the images."""
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


def expected(folder: Path, without: AbstractSet[Path] = frozenset()) -> dict[str, str]:
    """What the vector table must hold, computed from the files."""
    files = [path for path in folder.rglob("*") if path.is_file() and path not in without]
    return {path.relative_to(folder).as_posix(): f"sha256:{sha256(path)}" for path in files}


def kept(pipeline: Pipeline) -> list[str]:
    """Names of images in the store."""
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
    assert (expected_work.new, expected_work.changed, expected_work.embedded) == (5, 5, 5)
    report = sync(paintings)
    assert (report.changed, report.embedded, report.images) == (5, 5, 5)
    assert (report.new, report.reused) == (5, 5)  # under their new names, and no vector was computed for them
    assert report.deleted == 5 + 5 + 1  # deleted, the old names of the moved, the broken
    assert report.rejected == 1
    (reject,) = rejects(paintings).as_json()["rejects"]
    assert reject["key"] == [broken.relative_to(folder).as_posix()]
    assert reject["reason"] == "broken_image"
    assert contents(source) == expected(folder, {broken})
    assert audit(paintings).consistent

    save(2000, broken)
    report = sync(paintings)
    assert (report.new, report.images, report.rejected) == (1, 1, 0)
    assert contents(source) == expected(folder)


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """A folder with ten images."""
    fill(tmp_path / "few", 10)
    return tmp_path / "few"


def local(tmp_path: Path) -> dict[str, str]:
    return {"url": str(tmp_path / "artifacts")}


def test_images_go_with_their_rows_when_they_are_pruned(source: Connection, few: Path, tmp_path: Path) -> None:
    paintings = pipeline(few, local(tmp_path))
    sync(paintings)
    gone, twin = sorted(few.rglob("*.png"))[:2]
    shared = few / "twin.png"
    shared.write_bytes(twin.read_bytes())
    gone.rename(tmp_path / "away.png")
    twin.unlink()
    sync(paintings)
    assert len(kept(paintings)) == 10
    month = prune(paintings, timedelta(days=30), apply=True)
    assert (month.images, len(kept(paintings))) == (0, 10)
    dry = prune(paintings, timedelta(0))
    assert (dry.applied, dry.images, dry.image_bytes) == (False, 1, (tmp_path / "away.png").stat().st_size)
    assert len(kept(paintings)) == 10
    done = prune(paintings, timedelta(0), apply=True)
    assert (done.images, len(kept(paintings))) == (1, 9)
    assert audit(paintings).consistent
    # The image comes back. It is uploaded again, and its vector is reused if its artifact still exists.
    (tmp_path / "away.png").rename(gone)
    back = sync(paintings)
    assert (back.new, back.images, back.embedded) == (1, 1, 0)
    assert len(kept(paintings)) == 10


def test_a_generation_that_is_not_read_keeps_its_images(source: Connection, few: Path, tmp_path: Path) -> None:
    paintings = pipeline(few, local(tmp_path))
    sync(paintings)
    halves = paintings.model_copy(update={"target": paintings.target.model_copy(update={"precision": "float16"})})
    rebuild(halves, to_switch=False)
    sorted(few.rglob("*.png"))[0].unlink()
    sync(paintings)
    assert prune(paintings, timedelta(0), apply=True).images == 0
    assert len(kept(paintings)) == 10


def test_a_month_keeps_what_an_older_run_shows(source: Connection, few: Path, tmp_path: Path) -> None:
    paintings = pipeline(few, local(tmp_path))
    sync(paintings)
    sorted(few.rglob("*.png"))[0].unlink()
    sync(paintings)
    source.execute("UPDATE rowvec.images SET noted_at = noted_at - interval '40 days'")
    assert prune(paintings, timedelta(days=30), apply=True).images == 0  # the first run was today
    source.execute("UPDATE rowvec.runs SET started_at = started_at - interval '35 days'")
    assert prune(paintings, timedelta(days=30), apply=True).images == 1


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_table_says_where_its_images_are(source: Connection, few: Path, tmp_path: Path, kind: str) -> None:
    """A rename in the table is a change of metadata, and a row without an image has no vector."""
    files = sorted(path for path in few.rglob("*") if path.is_file())

    def write(names: list[str | None]) -> None:
        rows = pa.table(
            {
                "id": pa.array(range(len(names)), pa.int64()),
                "image_file": pa.array(names, pa.string()),
                "year": pa.array([1900 + i for i in range(len(names))], pa.int64()),
            }
        )
        if kind == "csv":
            csv.write_csv(rows, few / "paintings.csv")
        else:
            pq.write_table(rows, few / "paintings.parquet")

    names: list[str | None] = [path.relative_to(few).as_posix() for path in files]
    write([*names, None, "nowhere.png"])
    types = {"types": {"id": "bigint", "year": "bigint"}} if kind == "csv" else {}
    table = few / f"paintings.{kind}"
    paintings = pipeline(table, local(tmp_path), key=["id"], metadata=["image_file", "year"], **types)
    report = sync(paintings)
    assert (report.new, report.images, report.rejected) == (10, 10, 1)
    (reject,) = rejects(paintings).as_json()["rejects"]
    assert (reject["key"], reject["reason"]) == (["11"], "missing_image")
    files[0].rename(few / "moved.png")
    names[0] = "moved.png"
    write([*names, None, None])
    report = sync(paintings)
    assert (report.metadata_only, report.changed, report.embedded, report.images, report.rejected) == (1, 0, 0, 0, 0)
    assert source.execute("SELECT year, image_file FROM vectors.paintings WHERE id = 0").fetchone() == (
        1900,
        "moved.png",
    )


@pytest.mark.azurite
def test_images_in_a_container(
    source: Connection, few: Path, tmp_path: Path, container: Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names are relative to a blob URL, or are whole URLs. A URL of another account is never requested."""
    monkeypatch.setenv("BLOB_KEY", container.key)
    client = ContainerClient(container.account_url, container.name, credential=container.key)
    client.create_container()
    files = sorted(path for path in few.rglob("*") if path.is_file())
    for number, path in enumerate(files):
        client.upload_blob(f"in/room ä/{number}{path.suffix}", path.read_bytes())
    root = f"{container.account_url}/{container.name}/in"
    names = [f"room ä/{n}{path.suffix}" for n, path in enumerate(files[:5])]
    names += [f"{root}/room%20%C3%A4/{n}{path.suffix}" for n, path in enumerate(files[5:], 5)]
    names += ["gone.png", "https://elsewhere.blob.core.windows.net/c/x.png", f"{root}/x.png?sig=secret", "../x.png"]
    rows = pa.table({"id": range(len(names)), "image_file": names})
    pq.write_table(rows, tmp_path / "paintings.parquet")
    paintings = pipeline(
        tmp_path / "paintings.parquet",
        local(tmp_path),
        key=["id"],
        metadata=["image_file"],
        images=root,
        credential="${BLOB_KEY}",
    )
    report = sync(paintings)
    assert (report.new, report.embedded, report.images, report.rejected) == (10, 10, 10, 4)
    found = {one["key"][0]: (one["reason"], one["detail"]) for one in rejects(paintings).as_json()["rejects"]}
    assert {key: reason for key, (reason, _) in found.items()} == {
        "10": "missing_image",
        "11": "unreadable",
        "12": "unreadable",
        "13": "unreadable",
    }
    assert "secret" not in str(found)
    assert {content for (content,) in source.execute("SELECT content FROM vectors.paintings")} == {
        f"sha256:{sha256(path)}" for path in files
    }


def test_a_file_that_changes_during_a_run_is_left_to_the_next_round(
    source: Connection, few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files change between the upload and the embedding, and between the embedding and the merge."""
    paintings = pipeline(few, local(tmp_path))
    files = sorted(path for path in few.rglob("*") if path.is_file())
    first = files[0].read_bytes()
    embed_run, merge_run = batch.run, stages.run
    waiting = {"embed", "merge"}

    def embed(*arguments: Any) -> Any:
        if "embed" in waiting:
            waiting.remove("embed")
            save(500, files[0])
        return embed_run(*arguments)

    def merge(*arguments: Any) -> Any:
        if "merge" in waiting:
            waiting.remove("merge")
            save(501, files[1])
            files[2].unlink()
        return merge_run(*arguments)

    monkeypatch.setattr(batch, "run", embed)
    monkeypatch.setattr(stages, "run", merge)
    report = sync(paintings)
    assert report.consistent
    assert report.rejected == 0
    assert contents(source) == expected(few)
    # The file is again as it was when the run began. Its vector is reused, and is the vector of these bytes, not of the
    # bytes that were there during the run.
    files[0].write_bytes(first)
    report = sync(paintings)
    assert (report.changed, report.embedded, report.reused) == (1, 0, 1)
    name = files[0].relative_to(few).as_posix()
    row = source.execute("SELECT embedding::text FROM vectors.paintings WHERE image_file = %s", (name,)).fetchone()
    image = Image(name=name, media_type="image/png", read=lambda: first)
    (answer,) = open_image_embedder(paintings.embedder).embed_images([image])
    assert row is not None
    assert np.allclose(json.loads(row[0]), dense(answer.vectors)[0], atol=1e-6)


def test_embedding_elsewhere_takes_images_from_the_store(
    source: Connection, few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine that embeds does not have the folder: it is moved away until the embedding is over."""
    paintings = pipeline(few, local(tmp_path))
    embed_run = batch.run

    def embed(*arguments: Any) -> Any:
        few.rename(tmp_path / "elsewhere")
        try:
            return embed_run(*arguments)
        finally:
            (tmp_path / "elsewhere").rename(few)

    monkeypatch.setattr(batch, "run", embed)
    report = sync(paintings)
    assert (report.embedded, report.rejected) == (10, 0)
    assert contents(source) == expected(few)


@pytest.mark.flow
def test_a_killed_upload_is_continued(
    source: Connection, direct_url: str, folder: Path, tmp_path: Path, prefect_server: PrefectServer
) -> None:
    paintings = pipeline(folder, local(tmp_path))
    file = write_pipeline(paintings, tmp_path)

    with psycopg.connect(direct_url) as other:

        def noted() -> bool:
            # While this lock is held, no more images are recorded, so the upload stops at this point.
            other.execute("LOCK TABLE rowvec.images IN SHARE MODE")
            row = other.execute("SELECT count(*) FROM rowvec.images WHERE uploaded_at IS NOT NULL").fetchone()
            if row is not None and row[0] > 0:
                return True
            other.rollback()
            return False

        killed = start(prefect_server.api, "sync", file, "--json").when(noted).kill()
    assert killed.status == -signal.SIGKILL
    there = len(kept(paintings))
    (before,) = source.execute("SELECT count(*) FROM rowvec.images WHERE uploaded_at IS NOT NULL").fetchone() or (0,)
    assert 0 < before <= there
    assert before < COUNT
    assert source.execute("SELECT to_regclass('vectors.paintings')").fetchone() == (None,)
    done = start(prefect_server.api, "sync", file, "--json").wait()
    assert done.status == 0, done.stderr
    assert done.json["images"] == COUNT - before
    assert (done.json["new"], done.json["consistent"]) == (COUNT, True)
    assert contents(source) == expected(folder)
    assert len(kept(paintings)) == COUNT
