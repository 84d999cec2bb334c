"""Blocks of Prefect and of its packages that a pipeline names in place of a secret, on a real server."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest
from prefect import get_client
from prefect.blocks.core import Block
from prefect.blocks.system import Secret
from prefect_sqlalchemy import ConnectionComponents, SqlAlchemyConnector, SyncDriver
from psycopg.conninfo import conninfo_to_dict
from pydantic import SecretStr

from rowvec.errors import UsageError
from rowvec.pipeline import Pipeline
from rowvec.pipeline.model import Artifacts
from rowvec.pipeline.references import resolve
from tests.support import paintings as gallery

pytestmark = pytest.mark.flow


class AzureBlobStorageCredentials(Block):
    """The fields of the block of this name in prefect-azure, whose pins cannot be met next to our own."""

    _block_type_slug = "azure-blob-storage-credentials"

    connection_string: SecretStr | None = None
    account_url: str | None = None


@pytest.fixture
def saved(prefect_api: None) -> Generator[list[Any]]:
    """Blocks that are deleted in the end."""
    blocks: list[Any] = []
    yield blocks
    with get_client(sync_client=True) as client:
        for block in blocks:
            client.delete_block_document(block._block_document_id)


def save(saved: list[Any], block: Any, name: str) -> None:
    block.save(name, overwrite=True)
    saved.append(block)


def with_dsn(reference: str) -> Pipeline:
    return gallery.pipeline("./artifacts", target={"url": reference})


def dsn(reference: str) -> dict[str, Any]:
    """The resolved DSN of a target, by its parts."""
    url = resolve(with_dsn(reference)).target.url
    assert url is not None
    return conninfo_to_dict(url)


def test_a_connector_of_sqlalchemy_gives_the_dsn(saved: list[Any]) -> None:
    parts = {"host": "db.example", "dbname": "app", "user": "me", "password": "a b'c@/", "port": "5433"}
    components = ConnectionComponents(
        driver=SyncDriver.POSTGRESQL_PSYCOPG2, username="me", password=SecretStr("a b'c@/"), host="db.example",
        port=5433, database="app", query={"sslmode": "require"},
    )  # fmt: skip
    save(saved, SqlAlchemyConnector(connection_info=components), "rowvec-parts")
    url = "postgresql+psycopg2://me:a%20b'c%40%2F@db.example:5433/app"
    save(saved, SqlAlchemyConnector(connection_info=url), "rowvec-url")
    assert dsn("${prefect.blocks.sqlalchemy-connector.rowvec-parts}") == {**parts, "sslmode": "require"}
    assert dsn("{{ prefect.blocks.sqlalchemy-connector.rowvec-url }}") == parts
    save(saved, SqlAlchemyConnector(connection_info="sqlite+pysqlite:///a.db"), "rowvec-other")
    with pytest.raises(UsageError, match="rowvec-other is for sqlite, and not for Postgres"):
        dsn("${prefect.blocks.sqlalchemy-connector.rowvec-other}")


def test_credentials_of_blob_storage_give_the_connection_string(saved: list[Any]) -> None:
    text = "DefaultEndpointsProtocol=https;AccountName=a;AccountKey=c2VjcmV0"
    save(saved, AzureBlobStorageCredentials(connection_string=SecretStr(text)), "rowvec-store")
    save(saved, AzureBlobStorageCredentials(account_url="https://a.blob.core.windows.net"), "rowvec-principal")
    block = "${prefect.blocks.azure-blob-storage-credentials.%s}"

    def credential(name: str) -> str | None:
        store = Artifacts(url="https://a.blob.core.windows.net/c", credential=block % name)
        return resolve(gallery.pipeline("x").model_copy(update={"artifacts": store})).artifacts.credential

    assert credential("rowvec-store") == text
    with pytest.raises(UsageError, match="rowvec-principal has no connection string; leave the credential out"):
        credential("rowvec-principal")
    with pytest.raises(UsageError, match="there is no block azure-blob-storage-credentials/none"):
        credential("none")


def test_a_secret_block_gives_its_value(saved: list[Any]) -> None:
    save(saved, Secret(value=SecretStr("postgresql://me@a.example/b")), "rowvec-dsn")
    assert dsn("${prefect.blocks.secret.rowvec-dsn}")["host"] == "a.example"
    with pytest.raises(UsageError, match="there is no block secret/none"):
        dsn("${prefect.blocks.secret.none}")
