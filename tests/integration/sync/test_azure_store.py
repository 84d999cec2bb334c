"""Syncs with Azure Blob Storage as the store: a real blob server, another machine, a planted secret."""

from __future__ import annotations

from pathlib import Path

import pytest
from azure.storage.blob import ContainerClient

from rowvec.operations.audit import audit
from rowvec.pipeline import Pipeline
from rowvec.pipeline.model import Artifacts
from rowvec.postgres.connection import Connection
from tests.support import paintings
from tests.support.paintings import assert_in_step, sync, vectors
from tests.support.servers.azurite import Container

pytestmark = pytest.mark.azurite


@pytest.fixture
def in_blob(container: Container, monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    """The gallery's pipeline with its artifacts in a container that does not exist yet."""
    monkeypatch.setenv("BLOB_KEY", container.key)
    plain = paintings.pipeline("./unused")
    written = Artifacts(url=container.url, credential="${BLOB_KEY}")
    return plain.model_copy(update={"artifacts": written})


def test_another_machine_restores_the_table_from_the_container(
    source: Connection, in_blob: Pipeline, container: Container, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = sync(in_blob)
    before = vectors(source)
    client = ContainerClient(container.account_url, container.name, credential=container.key)
    names = list(client.list_blob_names())
    # An artifact, a journal entry, a manifest; and the mark of the ledger that writes here.
    paid_for = sorted(name for name in names if "/marks/" not in name)
    assert [name.rpartition(".")[2] for name in paid_for] == ["parquet", "zst", "json"]
    assert len(names) == len(paid_for) + 1
    assert any(first.manifest is not None and name.endswith(first.manifest) for name in names)
    assert client.get_container_properties().public_access is None
    source.execute("DROP TABLE vectors.paintings CASCADE")
    monkeypatch.setenv("ROWVEC_HOME", str(tmp_path / "another machine"))
    report = sync(in_blob)
    assert (report.embedded, report.reused) == (0, 50)
    assert vectors(source) == before
    assert audit(in_blob).consistent
    assert_in_step(source)


def test_the_key_is_nowhere(source: Connection, in_blob: Pipeline, container: Container, tmp_path: Path) -> None:
    sync(in_blob)
    assert container.key not in in_blob.model_dump_json()
    rows = source.execute("SELECT r::text FROM rowvec.runs AS r").fetchall()
    rows += source.execute("SELECT a::text FROM rowvec.artifacts AS a").fetchall()
    assert all(container.key not in text for (text,) in rows)
    client = ContainerClient(container.account_url, container.name, credential=container.key)
    for name in client.list_blob_names():
        assert container.key.encode() not in client.download_blob(name).readall()
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or container.key.encode() not in file.read_bytes(), file
