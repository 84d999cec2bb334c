"""Reads a pipeline file from where it is: a path, an https URL, or the store that keeps an operator's pipeline files.

The place of a file is a parameter of flow runs, which everybody who may start a run chooses. So a credential goes to
no other address than the one that the operator of this process has named next to it, and no text of a file, redirect
or slow server does more than fail the run.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from rowvec.errors import ArtifactCorrupt, RowvecError, StoreUnavailable, UsageError
from rowvec.pipeline import Pipeline
from rowvec.pipeline.file import MOST_BYTES, load, parse_at
from rowvec.pipeline.model import Artifacts
from rowvec.pipeline.parts import no_literal_secret
from rowvec.store.open import open_store

if TYPE_CHECKING:
    import requests

STORE_URL, STORE_CREDENTIAL = "ROWVEC_PIPELINES_URL", "ROWVEC_PIPELINES_CREDENTIAL"
"""The blob container and prefix of pipeline files, and the credential for it; without one, azure-identity signs in."""

_GRACE_SECONDS, _SLOWEST = 20.0, 256 << 10
_CONNECT_SECONDS, _READ_SECONDS = 10, 20


def read_pipeline(place: str) -> Pipeline:
    """The pipeline of the file at a path or a URL; a relative path is relative to the working directory.

    Raises ``UsageError`` if the place or the file is wrong, and ``StoreUnavailable`` if its server does not answer.
    """
    if "\0" in place or not place.strip():
        raise UsageError("the pipeline is neither a path nor a URL; write the path of a pipeline file")
    if "://" not in place:
        return load(Path(place))
    store = os.environ.get(STORE_URL, "").rstrip("/") + "/"
    if store != "/" and place.startswith(store):
        return parse_at(place, _from_store(store, place.removeprefix(store)))
    return parse_at(place, _from_web(place))


def is_url(place: str) -> bool:
    """Whether a pipeline file is somewhere else than in the file system."""
    return "://" in place


def _from_store(store: str, name: str) -> bytes:
    named = Artifacts.model_construct(url=store, credential=os.environ.get(STORE_CREDENTIAL) or None)
    try:
        with open_store(named).opened(name) as file:
            return file.read(MOST_BYTES + 1)
    except ArtifactCorrupt:
        raise UsageError(f"{store}{name}: there is no such pipeline file") from None
    except RowvecError as error:
        # The store speaks of the pipeline's keys, which this store is none of.
        sentence = str(error).replace("artifacts.url", STORE_URL).replace("artifacts.credential", STORE_CREDENTIAL)
        raise type(error)(sentence) from None


def _from_web(url: str) -> bytes:
    import requests  # late: most files are paths

    from rowvec.runtime.request_deadline import Deadlines, bounded_session  # late: as above

    deadlines = Deadlines(grace_seconds=_GRACE_SECONDS, slowest=_SLOWEST, answer_bytes=MOST_BYTES)
    if not url.startswith("https://"):
        raise UsageError(
            f"{url.partition('://')[0]}:// is no address of a pipeline file; write an https:// URL, or one below "
            f"{STORE_URL}"
        )
    try:
        no_literal_secret(url)
    except ValueError:
        raise UsageError(
            f"the URL of the pipeline file holds a secret, and everybody reads parameters: keep the file in the "
            f"container that {STORE_URL} names, with {STORE_CREDENTIAL}"
        ) from None
    try:
        with (
            bounded_session(deadlines) as session,
            # No credentials of ~/.netrc, and no redirect to an address that nobody has named.
            session.get(
                url,
                auth=lambda request: request,
                stream=True,
                allow_redirects=False,
                timeout=(_CONNECT_SECONDS, _READ_SECONDS),
            ) as answer,
        ):
            if answer.status_code >= 500:
                raise StoreUnavailable(f"{url}: the server answers with status {answer.status_code}; try again later")
            if answer.status_code != requests.codes.ok:
                raise UsageError(
                    f"{url}: the server answers with status {answer.status_code} and no file; give the address that "
                    "the file itself has"
                )
            return _bounded(answer)
    except requests.RequestException as error:
        raise StoreUnavailable(f"{url}: cannot be read ({type(error).__name__})") from None


def _bounded(answer: requests.Response) -> bytes:
    content = bytearray()
    for block in answer.iter_content(64 << 10):
        content += block
        if len(content) > MOST_BYTES:
            break
    return bytes(content)
