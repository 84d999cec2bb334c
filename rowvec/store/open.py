"""Where artifacts and manifests are kept: what any blob store must do, and which one a pipeline's URL means."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

from rowvec.errors import UsageError
from rowvec.pipeline.model import Artifacts
from rowvec.store.protocol import Store

_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+://")


def open_store(artifacts: Artifacts) -> Store:
    """The store of a pipeline, whose references are resolved. Nothing is asked of it yet.

    Raises ``UsageError`` where URL or credential cannot be read.
    """
    return _open(artifacts.url, artifacts.credential)


@lru_cache(maxsize=16)
def _open(url: str, credential: str | None) -> Store:
    """One store a process and place, so that its connections and its token are had once and not once a batch."""
    # Imported late: the stores need this module's names, and Azure's client takes half a second to import.
    if url.lower().startswith(("https://", "http://")):
        from rowvec.store.azure import open_container

        return open_container(url, credential)
    if _SCHEME.match(url):
        raise UsageError(
            "artifacts.url is neither a folder nor https://ACCOUNT.blob.core.windows.net/CONTAINER/PREFIX; write one"
        )
    from rowvec.store.folder import FolderStore

    return FolderStore(Path(url))
