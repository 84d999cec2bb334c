"""Images that the store has lost: one listing of the store finds them, and they are reported and uploaded again."""

from __future__ import annotations

from datetime import datetime
from itertools import islice

from psycopg import sql

from rowvec.images.content import KnownImage, objects_prefix, parted
from rowvec.ledger.runs import Run
from rowvec.pipeline import Pipeline
from rowvec.pipeline.parts import table_identifier
from rowvec.postgres.connection import Connection
from rowvec.postgres.fragments import key_json
from rowvec.postgres.queries import query
from rowvec.postgres.vector_table import VectorTable, is_there
from rowvec.runtime.figures import counted
from rowvec.runtime.progress import tell
from rowvec.sources.images.locations import open_places
from rowvec.stages.images import upload
from rowvec.stages.images.upload import note_shown
from rowvec.stages.report import Check
from rowvec.stages.work import open_stage
from rowvec.store.protocol import Store

_PAGE = 5000
_LISTED = 100


def forget_lost_images(connection: Connection, store: Store, pipeline: str) -> None:
    """List the store's images, and mark those for upload that are missing or have another size.

    One listing of the pipeline's images, whatever the number of rows; memory is one page of it. Raises what
    ``Store.sizes`` raises: nothing is known about a store that cannot be listed.
    """
    listed_at = list_images(connection, store, pipeline)
    connection.execute(query("images", "forget_lost"), {"family": _family(pipeline), "listed_at": listed_at})


def wanting_images(connection: Connection, pipeline: Pipeline) -> tuple[int, int]:
    """Of the images that rows of the vector table show: how many the store is not known to have, and how many the
    ledger
    knows from the store alone, after a restore. Both are 0 if there is no vector table yet."""
    schema, name = table_identifier(pipeline.target.table)
    if not is_there(connection, schema, name):
        return 0, 0
    note_shown(connection, [sql.Identifier(schema, name)])
    row = connection.execute(query("images", "wanting"), {"family": _family(pipeline.name)}).fetchone()
    return (row[0], row[1]) if row else (0, 0)


def check_images(connection: Connection, table: VectorTable, pipeline: Pipeline) -> Check:
    """Check that the store has every image that a row shows, by this run's listing and its own uploads."""
    wanting, _ = wanting_images(connection, pipeline)
    if not wanting:
        return Check(name="images", ok=True, detail="every image that a row shows is in the store")
    parts = {"family": sql.Literal(_family(pipeline.name)), "limit": sql.Literal(_LISTED)}
    statement = query("images", "wanting_keys", table=table.identifier, key_json=key_json(table.key, "t"), **parts)
    return Check(
        name="images",
        ok=False,
        detail=f"{counted(wanting, 'images that rows show are', 'image that a row shows is')} not in the store; rowvec "
        "sync uploads what the source still has",
        rows=tuple(key for (key,) in connection.execute(statement).fetchall()),
    )


def lost_images(
    connection: Connection, store: Store, table: VectorTable, pipeline: str, limit: int
) -> tuple[list[tuple[str, str]], int]:
    """Names of images that should be in the store, each with what is wrong, up to ``limit``; and their total number."""
    listed_at = list_images(connection, store, pipeline)
    note_shown(connection, [table.identifier])
    values = {"family": _family(pipeline), "listed_at": listed_at, "limit": limit}
    rows = connection.execute(query("images", "lost"), values).fetchall()
    named: list[tuple[str, str]] = []
    for sha256, media_type, size, found, _ in rows:
        # The ending of an image's name is unknown if the ledger does not know the image.
        name = f"{objects_prefix(pipeline)}{sha256[:2]}/{sha256}"
        if media_type:
            name = KnownImage(sha256=sha256, media_type=media_type, bytes=size, place="").object_name(pipeline)
        reason = "the image is not in the store"
        if found is not None:
            reason = f"the image has {found:,} bytes in the store, and {size:,} were uploaded"
        named.append((name, f"{reason}; --repair uploads it again where the source has it"))
    return named, rows[0][-1] if rows else 0


def take_in_images(connection: Connection, store: Store, pipeline: str) -> None:
    """Enter the store's images into the ledger after a restore, so that they are not sent again, and can be pruned once
    no row shows them."""
    list_images(connection, store, pipeline)
    connection.execute(query("images", "take_in"), {"family": _family(pipeline)})


def list_images(connection: Connection, store: Store, pipeline: str) -> datetime | None:
    """Create the scratch table ``kept_images``, the store's images; returns the time when the listing began.

    No transaction is open during a request to the store.
    """
    row = connection.execute(query("images", "now")).fetchone()
    connection.execute(query("images", "kept"))
    found = store.sizes(objects_prefix(pipeline))
    while page := list(islice(found, _PAGE)):
        known = [(parts, size, name) for name, size in page if (parts := parted(name, pipeline))]
        values = {
            "sha256s": [sha256 for (sha256, _), _, _ in known],
            "media_types": [media_type for (_, media_type), _, _ in known],
            "sizes": [size for _, size, _ in known],
            "names": [name for _, _, name in known],
        }
        connection.execute(query("images", "keep"), values)
    connection.execute(query("images", "analyze_kept"))
    return row[0] if row else None


def _family(pipeline: str) -> str:
    return pipeline.partition(".")[0]


def run(pipeline: Pipeline, run: Run) -> int:
    """Upload again the images that the store has lost, except those of planned rows; returns how many there were."""
    with open_stage(pipeline, run, "images") as work:
        source = work.pipeline.source
        if source.kind != "images":
            return 0
        uploaded = upload.upload_lost_images(
            work.connection,
            work.store,
            open_places(source, listed=False),
            work.plan.table,
            pipeline.name,
            lambda done, total: tell("images", "lost", done, total),
        )
        return uploaded.images
