"""Azure Blob Storage as blob store, and every server with its protocol, such as Azurite."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from azure.core.exceptions import (
    AzureError,
    ClientAuthenticationError,
    HttpResponseError,
    ResourceExistsError,
    ResourceNotFoundError,
    ServiceResponseError,
)
from azure.storage.blob import ContainerClient, ContentSettings, ExponentialRetry

from rowvec.errors import ArtifactCorrupt, RowvecError, StoreRefused, StoreUnavailable
from rowvec.store.azure_account import Place, bounded_transport, credential_of, place_of
from rowvec.store.protocol import SUFFIXES, check_size, checked_name, checked_prefix, disk_faults, settle
from rowvec.store.ranges import BLOCK, Ranges

# The part of an object in one request. It decides the memory of a transfer: an upload holds two blocks.
_BLOCK = 4 << 20
_CONNECT_SECONDS = 10
_READ_SECONDS = 60
# Statuses besides 5xx that may not come again; 409 is a container that is still being deleted.
_PASSING = frozenset({408, 409, 412, 429})
_SHA256, _MD5 = "sha256", "md5"
_CODE = re.compile(r"[A-Za-z]{1,64}")
_CONTENT_TYPES = {".parquet": "application/vnd.apache.parquet", ".json": "application/json"} | {
    f".{suffix}": media_type for media_type, suffix in SUFFIXES.items()
}
# The SDK's own retries, about 1, 3, 5 and 9 s apart. The task retries errors that last longer.
_RETRIES = 4
_REMEDY = "make room or give access there, and run again"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Digests:
    """Checksums of a file: our sha256, and the MD5 that Azure keeps of an object."""

    sha256: str
    md5: bytes

    @classmethod
    def of(cls, path: Path) -> _Digests:
        """The checksums of a file, in constant memory and one pass."""
        ours, theirs = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                ours.update(block)
                theirs.update(block)
        return cls(sha256=ours.hexdigest(), md5=theirs.digest())

    @classmethod
    def of_bytes(cls, content: bytes) -> _Digests:
        """The checksums of bytes in memory."""
        ours, theirs = hashlib.sha256(content), hashlib.md5(content, usedforsecurity=False)
        return cls(sha256=ours.hexdigest(), md5=theirs.digest())


@dataclass(frozen=True, slots=True)
class AzureStore:
    """See ``rowvec.store.protocol.Store``. The first object that is put creates the container, private."""

    client: ContainerClient
    place: Place

    def put(self, name: str, path: Path, sha256: str) -> bool:
        """See ``Store.put``."""
        blob = self._blob(name)
        with disk_faults(path, _REMEDY):
            written = _Digests.of(path)
        if written.sha256 != sha256:
            raise ArtifactCorrupt(f"the file for {name} does not agree with its checksum: it was cut or changed")
        with self._faults(name):
            # Asked first, because most existing objects then need not be sent.
            if (stored := self._stored(blob)) is not None:
                return settle(self, name, stored, sha256) and self._write(name, path, written, overwrite=True)
            try:
                return self._upload(name, path, written)
            except ResourceNotFoundError:
                self._create_container()
                return self._upload(name, path, written)

    def put_bytes(self, name: str, content: bytes, sha256: str) -> bool:
        """See ``Store.put_bytes``."""
        written = _Digests.of_bytes(content)
        if written.sha256 != sha256:
            raise ArtifactCorrupt(f"the bytes for {name} do not agree with their checksum")
        with self._faults(name):
            try:
                return self._upload(name, content, written)
            except ResourceNotFoundError:
                self._create_container()
                return self._upload(name, content, written)

    def get(self, name: str, into: Path, sha256: str, *, at_most: int) -> None:
        """See ``Store.get``."""
        blob = self._blob(name)
        passing = into.with_name(f".{uuid4().hex}.part")
        digest = hashlib.sha256()
        try:
            with self._faults(name), disk_faults(into, _REMEDY):
                with passing.open("xb") as file:
                    for block in self._blocks(blob):
                        digest.update(block)
                        file.write(block)
                        check_size(self, name, file.tell(), at_most)
                if digest.hexdigest() != sha256:
                    raise ArtifactCorrupt(f"{self.location(name)} does not agree with its checksum {sha256[:12]}")
                passing.replace(into)
        finally:
            passing.unlink(missing_ok=True)

    @contextmanager
    def opened(self, name: str) -> Generator[BinaryIO]:
        """See ``Store.opened``."""
        blob = self.client.get_blob_client(self._blob(name))

        def fetch(offset: int, length: int) -> bytes:
            return blob.download_blob(offset, length, max_concurrency=1).readall()

        with self._faults(name):
            size = blob.get_blob_properties().size
            with io.BufferedReader(Ranges(fetch, size), BLOCK) as file:
                yield file

    def replace(self, name: str, content: bytes) -> None:
        """See ``Store.replace``."""
        written = _Digests.of_bytes(content)
        with self._faults(name):
            try:
                self._write(name, content, written, overwrite=True)
            except ResourceNotFoundError:
                self._create_container()
                self._write(name, content, written, overwrite=True)

    def names(self, prefix: str = "") -> Iterator[str]:
        """See ``Store.names``."""
        start = len(self.place.prefix)
        wanted = self.place.prefix + checked_prefix(prefix)
        with self._faults(prefix):
            try:
                for name in self.client.list_blob_names(name_starts_with=wanted):
                    yield name[start:]
            except ResourceNotFoundError:
                return  # no container, so no objects

    def sizes(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """See ``Store.sizes``; a request lists 5,000."""
        start = len(self.place.prefix)
        wanted = self.place.prefix + checked_prefix(prefix)
        with self._faults(prefix):
            try:
                for found in self.client.list_blobs(name_starts_with=wanted):
                    yield found.name[start:], found.size
            except ResourceNotFoundError:
                return  # no container, so no objects

    def checksum(self, name: str) -> str | None:
        """See ``Store.checksum``."""
        blob = self._blob(name)
        with self._faults(name):
            return self._stored(blob)

    def delete(self, name: str) -> None:
        """See ``Store.delete``."""
        blob = self._blob(name)
        with self._faults(name), suppress(ResourceNotFoundError):
            self.client.delete_blob(blob, delete_snapshots="include")

    def location(self, name: str) -> str:
        """See ``Store.location``."""
        return f"{self.place.account_url}/{self.place.container}/{self._blob(name)}"

    def _blob(self, name: str) -> str:
        return self.place.prefix + checked_name(name)

    def _blocks(self, blob: str) -> Iterator[bytes]:
        return self.client.download_blob(blob, max_concurrency=1).chunks()

    def _stored(self, blob: str) -> str | None:
        """The checksum in an object's metadata; that of its bytes if the metadata is lost or cannot be right."""
        try:
            found = self.client.get_blob_client(blob).get_blob_properties()
            noted: str | None = found.metadata.get(_SHA256)
            # The service has the MD5 of the present bytes. If it differs from the recorded one, the bytes are others.
            md5 = (found.content_settings.content_md5 or b"").hex()
            if noted and found.metadata.get(_MD5, md5) == md5:
                return noted
            digest = hashlib.sha256()
            for block in self._blocks(blob):
                digest.update(block)
            return digest.hexdigest()
        except ResourceNotFoundError:
            return None

    def _upload(self, name: str, what: Path | bytes, written: _Digests) -> bool:
        blob = self._blob(name)
        try:
            return self._write(name, what, written)
        except ServiceResponseError:
            # None of the client's attempts was answered, but the service may have executed one.
            if self._stored(blob) != written.sha256:
                raise
            return True
        except HttpResponseError as error:
            # The object exists: from another writer, or from this one, whose first success was not acknowledged.
            # The commit of the faster writer deletes the blocks of the slower one, whose commit may then find none.
            if not isinstance(error, ResourceExistsError) and _code(error) != "InvalidBlockList":
                raise
            if (stored := self._stored(blob)) is None:
                raise
            return settle(self, name, stored, written.sha256) and self._write(name, what, written, overwrite=True)

    def _write(self, name: str, what: Path | bytes, written: _Digests, *, overwrite: bool = False) -> bool:
        kind = ContentSettings(
            content_type=_CONTENT_TYPES.get(Path(name).suffix, "application/octet-stream"),
            # The service computes the MD5 only of an object that is sent in one piece.
            content_md5=bytearray(written.md5),
        )
        with what.open("rb") if isinstance(what, Path) else nullcontext(what) as file:
            self.client.upload_blob(
                self._blob(name),
                file,
                length=what.stat().st_size if isinstance(what, Path) else len(what),
                overwrite=overwrite,
                max_concurrency=2,
                metadata={_SHA256: written.sha256, _MD5: written.md5.hex()},
                content_settings=kind,
            )
        return True

    def _create_container(self) -> None:
        try:
            self.client.create_container()  # private is the default
        except HttpResponseError as error:
            if error.status_code in (401, 403):
                raise StoreRefused(
                    f"the container {self.place.container} does not exist and artifacts.credential may not create it; "
                    "create it, private, or use a credential that may"
                ) from None
            if _code(error) != "ContainerAlreadyExists":
                raise

    @contextmanager
    def _faults(self, name: str) -> Generator[None]:
        """Raise the service's errors as ours, in our own words, because its exceptions quote URLs with SAS tokens."""
        where = f"{self.place.account_url}/{self.place.container}/{self.place.prefix}{name}"
        try:
            yield
        except RowvecError:
            raise
        except ResourceNotFoundError:
            raise ArtifactCorrupt(f"{where} is not in the store; rowvec audit --repair fixes this") from None
        except HttpResponseError as error:
            raise _translated(error, where) from None
        except AzureError as error:
            raise StoreUnavailable(f"{where} could not be reached: {type(error).__name__}") from None


def open_container(url: str, credential: str | None) -> AzureStore:
    """The store a blob URL names.

    ``credential`` is a connection string, an account key or a SAS token; ``None`` asks azure-identity.
    Raises ``UsageError`` if the URL or the credential is invalid.
    """
    place = place_of(url)
    client = ContainerClient(
        place.account_url,
        place.container,
        credential=credential_of(place, credential),
        retry_policy=ExponentialRetry(initial_backoff=1, increment_base=2, retry_total=_RETRIES, random_jitter_range=1),
        connection_timeout=_CONNECT_SECONDS,
        read_timeout=_READ_SECONDS,
        transport=bounded_transport(),
        max_single_put_size=_BLOCK,
        max_block_size=_BLOCK,
        max_single_get_size=_BLOCK,
        max_chunk_get_size=_BLOCK,
    )
    return AzureStore(client, place)


def _translated(error: HttpResponseError, where: str) -> RowvecError:
    status, code = error.status_code, _code(error)
    if status is None and isinstance(error, ClientAuthenticationError):
        return StoreRefused(f"azure-identity found no login for {where}; log in, or set artifacts.credential")
    if status in (401, 403):
        return StoreRefused(
            f"the blob store refused {where} ({status} {code}); artifacts.credential must be valid and allow to read, "
            "create, list and delete"
        )
    if status is None or status >= 500 or status in _PASSING:
        wait = str(getattr(error.response, "headers", {}).get("retry-after", ""))
        message = f"the blob store did not serve {where} ({status or 'no status'} {code})"
        return StoreUnavailable(message, retry_after=float(wait) if wait.isdigit() else None)
    return StoreRefused(f"the blob store refused {where} ({status} {code})")


def _code(error: HttpResponseError) -> str:
    """The service's error code, which the storage client adds to the exceptions of azure-core.

    Never the HTTP reason or the body: a gateway may have written them, with the URL and its SAS token.
    """
    code = str(getattr(error, "error_code", None) or "")
    return code if _CODE.fullmatch(code) else "no error code"
