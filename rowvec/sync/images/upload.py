"""The images that a pipeline's rows show: which there are, how they come into the store and are read again."""

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
from rowvec.store.protocol import Store
from rowvec.sync.batch import Batch
from rowvec.sync.work import Work, open_stage

# The blob client has room for ten connections; a folder's disk is as fast with fewer.
THREADS = 8
# Of files that wait for a thread, none is read yet: only what is under way is in memory.
_WAITING = 4 * THREADS
# Uploads whose ledger entry is lost with a kill are found in the store again, at the cost of sending them once more.
_NOTED_AT_ONCE = 64
_PAGE = 1000
_LOOKUP = 256

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Uploaded:
    """What became of a batch's images."""

    images: int
    """Those that the store has now and was not known to have."""
    bytes: int
    lost: int
    """Those that are no longer where the source had them: their rows are another round's, or are set aside."""


def note_images(connection: Connection, pipeline: str, seen: Iterable[list[SeenImage]]) -> None:
    """Remember what the rows of a plan show; in the extract's own transaction."""
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
    """Put the images of a batch into the store, several at once; what is known to be there is not sent.

    No transaction is open meanwhile, and what is there is noted as it goes: a run that is killed goes on from there,
    on whichever machine. Memory: an image a thread. Raises what ``Store.put_bytes`` and ``Places.read`` do, but for
    images that are gone or have other bytes by now.
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
    """Put the images into the store that rows of the vector table show and that it is not known to have any more.

    As ``upload_images`` otherwise. What the source has not any more is left out: its row is changed or gone as well.
    """
    note_shown(connection, [table.identifier])
    return _upload_shown(connection, store, places, pipeline, query("images", "in_table"), progress)


def note_shown(connection: Connection, tables: Iterable[sql.Identifier]) -> None:
    """The images that tables show, as the temporary table ``shown_images``."""
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
    """The images that contents name, for an embedder: each is read when it is asked for, and not before.

    ``read`` takes the bytes from where the source has them, if they still have their checksum, else from the store,
    by way of ``folder``. It raises ``RowError`` where neither has them.
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
    """What is known of images, by their checksums; those that are not known are left out."""
    values = {"family": pipeline.partition(".")[0], "sha256s": sha256s}
    rows = connection.execute(query("images", "known"), values).fetchall()
    return {row[0]: KnownImage(sha256=row[0], media_type=row[1], bytes=row[2], place=row[3]) for row in rows}


def read_image(store: Store, places: Places, pipeline: str, folder: Path, image: KnownImage) -> bytes:
    """An image's bytes. Raises ``RowError`` where neither the source nor the store has them any more."""
    content = _as_known(places, image)
    if content is not None:
        return content
    passing = folder / f".{uuid4().hex}.image"
    try:
        store.get(image.object_name(pipeline), passing, image.sha256)
        return passing.read_bytes()
    except ArtifactCorrupt:
        return _nowhere(image.place)
    finally:
        passing.unlink(missing_ok=True)


def _nowhere(name: str) -> bytes:
    raise RowError(
        "missing_image",
        f"{name} is gone, or another image by now, and the store does not have it; the next sync looks again",
    )


def _as_known(places: Places, image: KnownImage) -> bytes | None:
    """The bytes where the source has them; None where they are gone, or others by now."""
    try:
        content = places.read(image.place).content
    except RowError:
        return None
    return content if hashlib.sha256(content).hexdigest() == image.sha256 else None


def _upload(store: Store, places: Places, pipeline: str, image: KnownImage) -> bool:
    name = image.object_name(pipeline)
    content = _as_known(places, image)
    if content is None:
        # Another machine, or an earlier run, may have put it there before it went.
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
    """Each image with what its work gave, as it is done. After a failure nothing new is begun."""
    # Futures put themselves here when they are done: to wait for any of them costs as much as there are.
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
    with open_stage(pipeline, batch.run_id, f"images {batch.number}") as work:
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
