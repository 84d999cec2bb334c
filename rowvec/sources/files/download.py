"""Source files in Azure Blob Storage: they are downloaded to this machine first, because they are read twice."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from urllib.parse import unquote, urlsplit

from azure.core.exceptions import AzureError, HttpResponseError
from azure.storage.blob import ContainerClient

from rowvec.errors import SourceError, StoreUnavailable, UsageError
from rowvec.store.azure_account import Place, bounded_transport, credential_of, place_of

_MAGIC = re.compile(r"[*?\[]")
_CONNECT_SECONDS, _READ_SECONDS = 10, 60


def fetcher(credential: str | None) -> partial[list[Path]]:
    """``fetch(url, into)`` with a credential: connection string, account key or SAS; None stands for azure-identity."""
    return partial(fetch, credential=credential)


def fetch(url: str, into: Path, *, credential: str | None) -> list[Path]:
    """Download the blob, or the blobs whose names match a glob, into a folder; sorted by name.

    Raises ``SourceError`` if there is none or the service refuses, ``StoreUnavailable`` if the service does not answer.
    """
    place, pattern = _split_url(url)
    where = f"{place.account_url}/{place.container}/{pattern}"
    try:
        signed_in = credential_of(place, credential)
    except UsageError:
        raise SourceError("source.credential is no connection string, account key or SAS token") from None
    try:
        with ContainerClient(
            place.account_url,
            place.container,
            credential=signed_in,
            connection_timeout=_CONNECT_SECONDS,
            read_timeout=_READ_SECONDS,
            transport=bounded_transport(),
        ) as client:
            names = _matching(client, pattern)
            if not names:
                raise SourceError(f"no blob matches source.path {where}")
            return [_download(client, name, into, number) for number, name in enumerate(names)]
    except HttpResponseError as error:
        # Azure's own messages quote URLs, which may hold SAS tokens.
        if error.status_code is None or error.status_code >= 500 or error.status_code in (408, 429):
            raise StoreUnavailable(f"{where} could not be read: status {error.status_code}") from None
        reason = "it is not there" if error.status_code == 404 else f"the service refused, status {error.status_code}"
        raise SourceError(f"{where} cannot be read: {reason}; check source.path and source.credential") from None
    except AzureError as error:
        raise StoreUnavailable(f"{where} could not be reached: {type(error).__name__}") from None


def _split_url(url: str) -> tuple[Place, str]:
    """The container that a blob URL names, and the blob's name or pattern in it."""
    bad = SourceError("source.path names no blob; write https://ACCOUNT.blob.core.windows.net/CONTAINER/NAME.parquet")
    parts = urlsplit(url)
    segments = [segment for segment in parts.path.split("/") if segment]
    if parts.fragment or (parts.query and "=" in parts.query):
        raise SourceError("source.path holds more than an address; put the SAS token or key into source.credential")
    # The account is in the host name, or, with Azurite, in front of the container.
    for length in (1, 2):
        try:
            place = place_of(f"{parts.scheme}://{parts.netloc}/{'/'.join(segments[:length])}")
        except UsageError:
            continue
        # A question mark is part of a glob here, and does not start a query.
        name = "/".join(segments[length:]) + (f"?{parts.query}" if "?" in url else "")
        if not name:
            raise bad
        return place, unquote(name)
    raise bad


def _matching(client: ContainerClient, pattern: str) -> list[str]:
    magic = _MAGIC.search(pattern)
    if magic is None:
        return [pattern]
    names = client.list_blob_names(name_starts_with=pattern[: magic.start()])
    # As in a folder, a star does not match a slash.
    depth = pattern.count("/")
    return sorted(name for name in names if name.count("/") == depth and fnmatchcase(name, pattern))


def _download(client: ContainerClient, name: str, into: Path, number: int) -> Path:
    """Download one blob to a file whose name keeps the order of the blobs."""
    path = into / f"{number:06d}-{name.rsplit('/', 1)[-1]}"
    with path.open("wb") as file:
        client.download_blob(name, max_concurrency=2).readinto(file)
    return path
