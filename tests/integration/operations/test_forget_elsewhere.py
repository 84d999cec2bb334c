"""An erasure leaves no byte of a row in a container, in images and batch jobs, or behind a source elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from azure.storage.blob import ContainerClient
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from rowvec.operations.audit import audit
from rowvec.operations.erasure.forget import forget
from rowvec.pipeline import Pipeline
from rowvec.pipeline.model import Artifacts
from rowvec.postgres.connection import Connection
from rowvec.runtime.home import home
from tests.integration.sync import test_images as of_images
from tests.integration.sync.test_batch_api import leave
from tests.integration.sync.test_batch_api import pipeline as batched
from tests.support import byte_search, images
from tests.support import paintings as gallery
from tests.support.paintings import sync
from tests.support.servers.azurite import Container
from tests.support.servers.openai_server import KEY, serve

PLANTED = b"Quixotic"
PLANT = "UPDATE paintings SET title = 'Quixotic words', author = 'Quixotic author' WHERE id = 7"
DELETE = "DELETE FROM paintings WHERE id = 7"

pytestmark = [
    pytest.mark.soak,
    pytest.mark.needs("a superuser", "the files of the database are searched"),
]

Search = Callable[[], list[str]]


@pytest.fixture
def found(direct_url: str, tmp_path: Path) -> Search:
    """Where the planted text is: in the store, in ROWVEC_HOME, and in the database's files after VACUUM FULL."""

    def search() -> list[str]:
        with psycopg.connect(direct_url, autocommit=True) as superuser:
            in_database = byte_search.in_database(superuser, [PLANTED])
        folders = (tmp_path / "artifacts", home())
        return [*in_database, *(one for folder in folders for one in byte_search.in_folder(folder, [PLANTED]))]

    return search


def erased(pipeline: Pipeline, key: str) -> None:
    """Erase the row, after a sync that has seen that it is gone."""
    sync(pipeline)
    done = forget(pipeline, [key], apply=True)
    assert done.certificate is not None
    assert done.certificate.traces_left == 0
    assert sync(pipeline).embedded == 0
    assert audit(pipeline).consistent


@pytest.mark.azurite
def test_a_container(
    source: Connection, container: Container, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: Search
) -> None:
    monkeypatch.setenv("BLOB_KEY", container.key)
    written = Artifacts(url=container.url, credential="${BLOB_KEY}")
    in_blob = gallery.pipeline("./unused").model_copy(update={"artifacts": written})
    client = ContainerClient(container.account_url, container.name, credential=container.key)

    def in_container() -> list[str]:
        folder = tmp_path / f"blobs {len(list(tmp_path.iterdir()))}"
        for name in client.list_blob_names():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(client.download_blob(name).readall())
        return byte_search.in_folder(folder, [PLANTED])

    source.execute(PLANT)
    sync(in_blob)
    source.execute(DELETE)
    assert in_container()
    erased(in_blob, "7")
    assert in_container() == []
    assert found() == []


def test_images(source: Connection, tmp_path: Path, found: Search) -> None:
    """The text is in the name of an image, which is its key, and in its bytes."""
    folder = tmp_path / "paintings"
    images.fill(folder, 5)
    text = PngInfo()
    text.add_text("Comment", "Quixotic words")
    Image.new("RGB", (40, 30), "navy").save(folder / "Quixotic.png", pnginfo=text)
    pipeline = of_images.pipeline(folder, {"url": str(tmp_path / "artifacts")})
    sync(pipeline)
    assert found()
    (folder / "Quixotic.png").unlink()
    erased(pipeline, "Quixotic.png")
    assert found() == []


@pytest.mark.parametrize("end", ["completed", "expired"])
def test_a_job_of_the_batch_api(
    source: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: Search, end: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serve(key=KEY) as server:
        pipeline = batched(server, tmp_path)
        source.execute(PLANT)
        server.batches.hold = True
        leave(pipeline)
        assert any(PLANTED in content for content in server.batches.files.values())
        source.execute(DELETE)
        if end == "completed":
            server.batches.finish()
        else:
            server.batches.finish("expired", answered=3)
            server.batches.hold = False
        erased(pipeline, "7")
        assert server.batches.files == {}
        assert found() == []


@pytest.mark.parametrize("by", [None, "trigger"])
def test_a_source_in_another_database(
    source: Connection, another_url: str, tmp_path: Path, found: Search, by: str | None
) -> None:
    source.execute("DROP TABLE paintings")
    changes = {"changes": {"by": by}} if by else {}
    pipeline = gallery.pipeline(str(tmp_path / "artifacts"), source={"url": another_url, **changes})
    with psycopg.connect(another_url, autocommit=True) as elsewhere:
        elsewhere.execute(gallery.SOURCE)
        gallery.fill(elsewhere, 50)
        elsewhere.execute(PLANT)
        sync(pipeline)
        assert found()
        elsewhere.execute(DELETE)
        erased(pipeline, "7")
        assert found() == []
        # Nor is it in what rowvec keeps in the source's database; its own table is the owner's.
        assert byte_search.in_database(elsewhere, [PLANTED]) == []
