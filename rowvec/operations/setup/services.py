"""Checks of what a sync talks to besides Postgres: the store, the embedder and the Prefect server."""

from __future__ import annotations

import hashlib
import io
import secrets
import time
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import version
from typing import Any

from rowvec.embedders import open_embedder, open_image_embedder
from rowvec.embedders.protocol import Answer, Embedder, Image
from rowvec.errors import ArtifactCorrupt, RowvecError
from rowvec.operations.setup.finding import Finding, fault, ok, warning
from rowvec.pipeline import Pipeline
from rowvec.pipeline.embedder_kinds import EMBEDDERS
from rowvec.pipeline.embedders import ColumnEmbedder
from rowvec.runtime.figures import dollars
from rowvec.runtime.prefect_server import PrefectServer
from rowvec.store.open import open_store

_TEXT = "a test by rowvec check"
# A check must not wait as long as a run does.
_ONE_TRY = {"max_attempts": 1}
_PREFECT_SECONDS = 10.0


def store(pipeline: Pipeline) -> Iterator[Finding]:
    """Write, read and remove one small object with a name of its own. The pipeline's references must be resolved."""
    opened = open_store(pipeline.artifacts)
    name, content = f"rowvec-check-{secrets.token_hex(8)}", secrets.token_bytes(64)
    where = opened.location(name).removesuffix(f"/{name}")
    try:
        opened.put_bytes(name, content, hashlib.sha256(content).hexdigest())
        with opened.opened(name) as file:
            if file.read() != content:
                raise ArtifactCorrupt(f"{where} gives other bytes than were written to it; use another store")
        known = name in opened.names(name)
    except RowvecError:
        with suppress(RowvecError):
            opened.delete(name)
        raise
    if not known:
        yield warning("store", f"{where} does not list what was written to it", "allow rowvec to list its objects")
    try:
        opened.delete(name)
    except RowvecError as error:
        yield warning(
            "store",
            f"{where} can be written and read, and nothing can be deleted there ({error})",
            f"`rowvec prune` and `rowvec audit --repair` need that; delete {name} yourself",
        )
    else:
        yield ok("store", f"{where}: one small object was written, read, listed and removed")


def embedder(pipeline: Pipeline) -> Iterator[Finding]:
    """Let the embedder embed one tiny text, or one tiny image if the pipeline has images; a provider bills that."""
    config = pipeline.embedder
    if isinstance(config, ColumnEmbedder):
        yield ok("embedder", f"none is asked: the source has the vectors in the column {config.column}")
        return
    if hasattr(config, "max_attempts"):
        config = config.model_copy(update=_ONE_TRY)
    started = time.monotonic()
    if pipeline.what == "images" and EMBEDDERS.find(config.kind).takes_images:
        opened: Embedder = open_image_embedder(config)
        what, answers = "image", list(open_image_embedder(config).embed_images([_image()]))
    else:
        opened = open_embedder(config)
        what, answers = "text", list(opened.embed([_TEXT]))
    yield _answered(opened, what, answers, time.monotonic() - started)


def _answered(opened: Embedder, what: str, answers: list[Answer], seconds: float) -> Finding:
    who = f"{opened.identity.provider} {opened.identity.model}"
    for answer in answers:
        for refusal in answer.rejected.values():
            return fault("embedder", f"{who} has no vector for one {what}: {refusal.detail}")
    billed = sum(answer.billed for answer in answers)
    cost = f"; it cost {dollars(opened.cost(billed))}, which is not in the ledger" if opened.paid else ""
    return ok("embedder", f"{who} gave {opened.identity.dimensions:,} numbers for one {what} in {seconds:.1f} s{cost}")


def _image() -> Image:
    import PIL.Image as pillow  # late: only pipelines of images need it

    written = io.BytesIO()
    pillow.new("RGB", (64, 64), (200, 120, 40)).save(written, "png")
    return Image(name="check.png", media_type="image/png", read=written.getvalue)


def prefect(server: PrefectServer | None) -> Iterator[Finding]:
    """Whether the server that a sync would report to answers, lets us in, and is of a version that fits."""
    if server is None:
        yield ok("prefect", "neither PREFECT_API_URL nor a Prefect profile names a server: a command starts its own")
        return
    import httpx  # late: most commands need no server

    where = f"the address of {server.named_by}"
    try:
        answer = httpx.get(f"{server.api.rstrip('/')}/admin/version", headers=server.headers, timeout=_PREFECT_SECONDS)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        yield fault(
            "prefect",
            f"no Prefect server answers at {where} ({type(error).__name__})",
            "start it, correct the address (it ends with /api), or remove it, and commands start servers of their own",
        )
        return
    if answer.status_code in (401, 403):
        yield fault(
            "prefect",
            f"the Prefect server at {where} refuses this client (status {answer.status_code})",
            "set PREFECT_API_KEY or PREFECT_API_AUTH_STRING",
        )
    elif not answer.is_success or not isinstance(found := _json(answer), str):
        yield fault(
            "prefect",
            f"what answers at {where} is no Prefect API (status {answer.status_code})",
            "write the address of the API, which ends with /api",
        )
    else:
        yield _versions(found, version("prefect"), server.named_by)


def _versions(server: str, ours: str, named_by: str) -> Finding:
    of_server, of_client = (tuple(written.split(".")[:2]) for written in (server, ours))
    if of_server == of_client:
        return ok("prefect", f"the server of {named_by} is {server}, the client {ours}")
    return warning(
        "prefect",
        f"the server of {named_by} is Prefect {server}, and this client is {ours}",
        "use one version of both; a server must not be older than its clients",
    )


def _json(answer: Any) -> object:
    try:
        return answer.json()
    except ValueError:
        return None
