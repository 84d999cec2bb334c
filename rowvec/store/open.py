"""Opens the store that a pipeline's URL names: a folder or Azure Blob Storage."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

from rowvec.errors import UsageError
from rowvec.pipeline.model import Artifacts
from rowvec.store.protocol import Store

_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+://")


def open_store(artifacts: Artifacts) -> Store:
    """The store of a pipeline with resolved references; no request is sent.

    Raises ``UsageError`` if the URL or the credential is invalid.
    """
    return _open(artifacts.url, artifacts.credential)


@lru_cache(maxsize=16)
def _open(url: str, credential: str | None) -> Store:
    """One store per process and URL, so that connections and tokens are made once and not once per batch."""
    # Imported late: Azure's client takes half a second to import.
    if url.lower().startswith(("https://", "http://")):
        from rowvec.store.azure import open_container

        return open_container(url, credential)
    if _SCHEME.match(url):
        raise UsageError(
            "artifacts.url is neither a folder nor https://ACCOUNT.blob.core.windows.net/CONTAINER/PREFIX; write one"
        )
    from rowvec.store.folder import FolderStore

    return FolderStore(Path(url))
