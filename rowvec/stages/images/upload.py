"""The images stage: the images of a batch's rows go into the store; later stages read them from here."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from queue import SimpleQueue
from uuid import uuid4

from psycopg import sql

from rowvec.embedders.protocol import Image
from rowvec.errors import ArtifactCorrupt, RowError
from rowvec.images.content import KnownImage, sha256_of
from rowvec.pipeline import Pipeline
from rowvec.postgres.connection import Connection
from rowvec.postgres.queries import query
from rowvec.postgres.vector_table import VectorTable
from rowvec.runtime.progress import tell
from rowvec.runtime.telemetry import traced
from rowvec.sources.images.file import Places
from rowvec.sources.images.locations import open_places
from rowvec.sources.protocol import SeenImage
from rowvec.stages.batch import Batch
from rowvec.stages.work import Work, open_stage
from rowvec.store.protocol import Store

# The blob client has room for ten connections; a folder's disk is as fast with fewer.
THREADS = 8
# Files that wait for a thread are not read yet: only images in work are in memory.
_WAITING = 4 * THREADS
# If a kill loses the ledger entries of uploads, these images are sent once more and found in the store.
_NOTED_AT_ONCE = 64
_PAGE = 1000
_LOOKUP = 256

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Uploaded:
    """The outcome of uploading images."""

    images: int
    """Images that the store has now and was not known to have before."""
    bytes: int
    lost: int
    """Images that are no longer where the source had them: their rows are pending, or rejected."""


def note_images(connection: Connection, pipeline: str, seen: Iterable[list[SeenImage]]) -> None:
    """Record which images the rows of a plan show; runs in the extract's transaction."""
    for images in seen:
        for start in range(0, len(images), _PAGE):
            part = images[start : start + _PAGE]
            statement = query(
                "images",
                "note",
                family=_family(pipeline),
                sha256s=sql.Literal([sha256_of(image.content) for image in part]),
                media_types=sql.Literal([image.media_type for image in part]),
                sizes=sql.Literal([image.bytes for image in part]),
                places=sql.Literal([image.place for image in part]),
            )
            connection.execute(statement)


def upload_images(work: Work, places: Places, batch: int, progress: Progress | None = None) -> Uploaded:
    """Put the images of a batch into the store, several at once; an image that is known to be there is not sent.

    No transaction is open during an upload. Uploaded images are recorded as they finish, so that after a kill the next
    run continues from there, on any machine. Memory: one image per thread. Raises what ``Store.put_bytes`` and
    ``Places.read`` raise, except for images that no longer exist or have other bytes now.
    """
    shown = query("images", "in_batch", plan=work.plan.rows, batch=sql.Literal(batch))
    return _upload_shown(work.connection, work.store, places, work.pipeline.name, shown, progress)


def upload_lost_images(
    connection: Connection,
    store: Store,
    places: Places,
    table: VectorTable,
    pipeline: str,
    progress: Progress | None = None,
) -> Uploaded:
    """Put images into the store again that rows of the vector table show and that the store has lost.

    Like ``upload_images``. An image that the source no longer has is left out: its row has changed or is gone too.
    """
    note_shown(connection, [table.identifier])
    return _upload_shown(connection, store, places, pipeline, query("images", "in_table"), progress)


def note_shown(connection: Connection, tables: Iterable[sql.Identifier]) -> None:
    """Create the scratch table ``shown_images``: the images that the rows of these tables show."""
    connection.execute(query("images", "shown"))
    for table in tables:
        connection.execute(query("images", "show", table=table))


def _upload_shown(
    connection: Connection,
    store: Store,
    places: Places,
    pipeline: str,
    shown: sql.Composed,
    progress: Progress | None,
) -> Uploaded:
    parts: dict[str, sql.Composable] = {"family": _family(pipeline), "shown": shown}
    (total,) = connection.execute(query("images", "count_to_upload", **parts)).fetchone() or (0,)
    done, size, waiting = 0, 0, list[KnownImage]()
    lost = 0
    with ThreadPoolExecutor(THREADS, thread_name_prefix="upload") as pool:
        for image, kept in _each(pool, partial(_upload, store, places, pipeline), _to_upload(connection, parts)):
            if not kept:
                lost += 1
                continue
            waiting.append(image)
            done, size = done + 1, size + image.bytes
            if len(waiting) == _NOTED_AT_ONCE:
                _note_uploaded(connection, pipeline, waiting)
                waiting = []
            if progress:
                progress(done + lost, total)
        _note_uploaded(connection, pipeline, waiting)
    return Uploaded(images=done, bytes=size, lost=lost)


def opened_images(
    connection: Connection, store: Store, places: Places, pipeline: str, folder: Path, contents: Iterable[str]
) -> Iterator[Image]:
    """The images that contents name, for an embedder; each is read only when the embedder asks for it.

    ``read`` takes the bytes from the source if they still have their checksum, else from the store, through ``folder``.
    It raises ``RowError`` if neither has them.
    """
    drawn = iter(contents)
    while part := list(islice(drawn, _LOOKUP)):
        wanted = [sha256_of(content) for content in part]
        known = known_images(connection, pipeline, wanted)
        for sha256 in wanted:
            image = known.get(sha256)
            if image is None:
                name, media_type = f"the image {sha256[:12]}…", "application/octet-stream"
                read = partial(_nowhere, name)
            else:
                name, media_type = image.place, image.media_type
                read = partial(read_image, store, places, pipeline, folder, image)
            yield Image(name=name, media_type=media_type, read=read)


def known_images(connection: Connection, pipeline: str, sha256s: list[str]) -> dict[str, KnownImage]:
    """What the ledger knows of images, by checksum; unknown images are left out."""
    values = {"family": pipeline.partition(".")[0], "sha256s": sha256s}
    rows = connection.execute(query("images", "known"), values).fetchall()
    return {row[0]: KnownImage(sha256=row[0], media_type=row[1], bytes=row[2], place=row[3]) for row in rows}


def read_image(store: Store, places: Places, pipeline: str, folder: Path, image: KnownImage) -> bytes:
    """An image's bytes. Raises ``RowError`` if neither the source nor the store has them."""
    content = _as_known(places, image)
    if content is not None:
        return content
    passing = folder / f".{uuid4().hex}.image"
    try:
        store.get(image.object_name(pipeline), passing, image.sha256, at_most=image.bytes)
        return passing.read_bytes()
    except ArtifactCorrupt:
        return _nowhere(image.place)
    finally:
        passing.unlink(missing_ok=True)


def _nowhere(name: str) -> bytes:
    raise RowError(
        "missing_image",
        f"{name} is gone or is another image now, and the store does not have it; the next sync looks again",
    )


def _as_known(places: Places, image: KnownImage) -> bytes | None:
    """The image's bytes from the source; None if they are gone or have changed."""
    try:
        content = places.read(image.place).content
    except RowError:
        return None
    return content if hashlib.sha256(content).hexdigest() == image.sha256 else None


def _upload(store: Store, places: Places, pipeline: str, image: KnownImage) -> bool:
    name = image.object_name(pipeline)
    content = _as_known(places, image)
    if content is None:
        # Another machine, or an earlier run, may have uploaded it while the source still had it.
        return store.checksum(name) == image.sha256
    store.put_bytes(name, content, image.sha256)
    return True


def _to_upload(connection: Connection, parts: dict[str, sql.Composable]) -> Iterator[KnownImage]:
    after = b""
    while True:
        statement = query("images", "to_upload", after=sql.Literal(after), limit=sql.Literal(_PAGE), **parts)
        page = connection.execute(statement).fetchall()
        if not page:
            return
        for sha256, media_type, size, place in page:
            yield KnownImage(sha256=sha256, media_type=media_type, bytes=size, place=place)
        after = bytes.fromhex(page[-1][0])


def _each(
    pool: ThreadPoolExecutor, work: Callable[[KnownImage], bool], images: Iterator[KnownImage]
) -> Iterator[tuple[KnownImage, bool]]:
    """Each image with the result of its work, in the order of completion. After a failure no new work starts."""
    # Futures put themselves here when they are done: the cost of waiting for any of them grows with their number.
    ended: SimpleQueue[Future[bool]] = SimpleQueue()
    under_way: dict[Future[bool], KnownImage] = {}
    try:
        while True:
            for image in islice(images, _WAITING - len(under_way)):
                future = pool.submit(work, image)
                under_way[future] = image
                future.add_done_callback(ended.put)
            if not under_way:
                return
            future = ended.get()
            yield under_way.pop(future), future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _note_uploaded(connection: Connection, pipeline: str, images: list[KnownImage]) -> None:
    values = {"family": pipeline.partition(".")[0], "sha256s": [image.sha256 for image in images]}
    connection.execute(query("images", "uploaded"), values)


def _family(pipeline: str) -> sql.Literal:
    return sql.Literal(pipeline.partition(".")[0])


@traced("images")
def run(pipeline: Pipeline, batch: Batch) -> Batch:
    """Put a batch's images into the store, before an embedder is paid for them and before a row shows them."""
    started = time.monotonic()
    with open_stage(pipeline, batch, f"images {batch.number}") as work:
        source = work.pipeline.source
        if source.kind != "images":
            return batch
        uploaded = upload_images(
            work,
            open_places(source, listed=False),
            batch.number,
            lambda done, total: tell("images", f"batch {batch.number}", done, total),
        )
    return batch.after("images", started, images=uploaded.images)
