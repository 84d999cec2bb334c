"""Azure Blob Storage as blob store: anything that speaks its protocol, Azurite too."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit
from uuid import uuid4

from azure.core.credentials import AzureNamedKeyCredential, AzureSasCredential, TokenCredential
from azure.core.exceptions import (
    AzureError,
    ClientAuthenticationError,
    HttpResponseError,
    ResourceExistsError,
    ResourceNotFoundError,
)
from azure.storage.blob import ContainerClient, ContentSettings, ExponentialRetry

from rowvec.errors import ArtifactCorrupt, RowvecError, StoreRefused, StoreUnavailable, UsageError
from rowvec.stores import checked_name, file_checksum

# A request's share of an object, and so the memory of a transfer (two blocks are under way in an upload).
_BLOCK = 4 << 20
_CONNECT_SECONDS = 10
_READ_SECONDS = 60
# What else may be gone at the next attempt, besides 5xx; 409 is a container that is still being deleted.
_PASSING = frozenset({408, 409, 412, 429})
_CONTENT_TYPES = {".parquet": "application/vnd.apache.parquet", ".json": "application/json"}
# The account of every Azurite, which ``UseDevelopmentStorage=true`` stands for.
_WRONG_URL = "artifacts.url must read https://ACCOUNT.blob.core.windows.net/CONTAINER/PREFIX"

Credential = AzureNamedKeyCredential | AzureSasCredential | TokenCredential


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What a blob URL names."""

    account_url: str
    account: str
    container: str
    prefix: str
    """Empty, or ending with a slash."""


@dataclass(frozen=True, slots=True)
class AzureStore:
    """See ``rowvec.stores.Store``. The container is made, private, when the first object is put."""

    client: ContainerClient
    place: Place

    def put(self, name: str, path: Path, sha256: str) -> bool:
        """See ``Store.put``."""
        blob = self._blob(name)
        if file_checksum(path) != sha256:
            raise ArtifactCorrupt(f"the file for {name} does not agree with its checksum: it was cut or changed")
        with self._faults(name):
            # Asked first, for most of what is there already need not travel again.
            if (stored := self._stored(blob)) is not None:
                return self._same(name, stored, sha256)
            try:
                self._upload(blob, path, sha256)
            except ResourceNotFoundError:
                self._create_container()
                self._upload(blob, path, sha256)
        return True

    def get(self, name: str, into: Path, sha256: str) -> None:
        """See ``Store.get``."""
        blob = self._blob(name)
        passing = into.with_name(f".{uuid4().hex}.part")
        digest = hashlib.sha256()
        try:
            with self._faults(name), passing.open("xb") as file:
                for block in self.client.download_blob(blob, max_concurrency=1).chunks():
                    digest.update(block)
                    file.write(block)
            if digest.hexdigest() != sha256:
                raise ArtifactCorrupt(f"{self.location(name)} does not agree with its checksum {sha256[:12]}")
            passing.replace(into)
        finally:
            passing.unlink(missing_ok=True)
