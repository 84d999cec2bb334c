"""Images of a source in Azure Blob Storage, read one by one, all from the one account that the pipeline names."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass, field
from urllib.parse import quote, unquote, urlsplit

from azure.core.exceptions import AzureError, HttpResponseError
from azure.storage.blob import ContainerClient

from rowvec.errors import RowError, SourceError, StoreUnavailable, UsageError
from rowvec.sources.images.file import ImageFile, is_url, too_many_bytes
from rowvec.sources.images.seen import Mark
from rowvec.store.azure_account import Credential, Place, bounded_transport, credential_of, place_of

_CONNECT_SECONDS, _READ_SECONDS = 10, 60
# If the credential is refused for one image it is refused for all, so no row is rejected for it.
_REFUSED = frozenset({401, 403})
_TEMPORARY = frozenset({408, 409, 429})
_WITH_SECRET = re.compile(r"[?#]|//[^/]*@")


@dataclass(slots=True)
class BlobPlaces:
    """See ``Places``. The credential is for one account and is never sent to another one, whatever the rows say."""

    account_url: str
    prefix: str
    """The container and folders that relative paths start from, ending with a slash."""
    credential: Credential
    max_bytes: int
    _clients: dict[str, ContainerClient] = field(default_factory=dict[str, ContainerClient])
    _opening: threading.Lock = field(default_factory=threading.Lock)

    @staticmethod
    def at(url: str, credential: str | None, max_bytes: int) -> BlobPlaces:
        """The images under a blob URL. Raises ``SourceError`` if the URL names no container."""
        try:
            place = place_of(url)
            signed_in = credential_of(place, credential)
        except UsageError:
            raise SourceError(
                "source.images (or the path of the table) names no container, or source.credential is not a "
                "credential; write https://ACCOUNT.blob.core.windows.net/CONTAINER/FOLDER"
            ) from None
        return BlobPlaces(place.account_url, f"{place.container}/{place.prefix}", signed_in, max_bytes)

    def read(self, written: str) -> ImageFile:
        """See ``Places``."""
        container, name = self._split(written)
        try:
            found = self._client(container).download_blob(name, max_concurrency=1)
            if found.size > self.max_bytes:
                raise too_many_bytes(written, found.size, self.max_bytes)
            # Every write gives a blob a new ETag.
            return ImageFile(found.readall(), found.properties.last_modified, (found.properties.etag,))
        except HttpResponseError as error:
            # Azure's own messages quote URLs, which may hold SAS tokens.
            raise _explained(error, written) from None
        except AzureError as error:
            raise StoreUnavailable(f"the image {written} could not be reached: {type(error).__name__}") from None

    def mark(self, written: str) -> Mark | None:
        """See ``Places``: one request, without the image's bytes."""
        try:
            container, name = self._split(written)
            return (self._client(container).get_blob_client(name).get_blob_properties().etag,)
        except (AzureError, RowError):
            return None  # read() reports the reason

    def _split(self, written: str) -> tuple[str, str]:
        """Container and name of the blob."""
        if _WITH_SECRET.search(written):
            raise RowError("unreadable", "the URL of the image holds more than an address; write it without a query")
        path = unquote(written)
        if is_url(written):
            root = f"{self.account_url}/"
            if not written.lower().startswith(root.lower()):
                raise RowError("unreadable", f"{urlsplit(written).hostname} is not the account of source.images")
            path = unquote(written[len(root) :])
        else:
            path = self.prefix + written
        container, _, name = path.partition("/")
        if not name or ".." in path.split("/"):
            raise RowError("unreadable", f"{written} names no blob")
        return container, name

    def _client(self, container: str) -> ContainerClient:
        with self._opening:
            if container not in self._clients:
                place = Place(account_url=self.account_url, account="", container=container, prefix="")
                self._clients[container] = ContainerClient(
                    place.account_url,
                    quote(container),
                    credential=self.credential,
                    connection_timeout=_CONNECT_SECONDS,
                    read_timeout=_READ_SECONDS,
                    transport=bounded_transport(),
                    # The first answer has the size, so of an image that is too large no more than this is downloaded.
                    max_single_get_size=1 << 20,
                    max_chunk_get_size=4 << 20,
                )
            return self._clients[container]


def _explained(error: HttpResponseError, written: str) -> RowError | SourceError | StoreUnavailable:
    status = error.status_code
    if status == 404:
        return RowError("missing_image", f"there is no blob {written}")
    if status in _REFUSED:
        return SourceError(f"the blob store refused the image {written}, status {status}; check source.credential")
    if status is None or status >= 500 or status in _TEMPORARY:
        return StoreUnavailable(f"the image {written} could not be read: status {status}")
    return RowError("unreadable", f"the blob store refused {written}, status {status}")
