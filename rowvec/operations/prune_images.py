"""Which images in the store no row shows any more, and letting go of them."""

from __future__ import annotations

from datetime import timedelta

from psycopg import sql

from rowvec.images.content import KnownImage
from rowvec.postgres.connection import Connection
from rowvec.postgres.queries import query
from rowvec.store.protocol import Store
from rowvec.sync.images.upload import note_shown
from rowvec.vectors.fingerprint import Identity


def unneeded_images(connection: Connection, pipeline: str, identity: Identity, age: timedelta) -> list[KnownImage]:
    """The images that can go: no vector table of the pipeline shows them, whichever generation, no run that is kept
    did, and no row came with them since ``age``.

    Asked once a session, after the temporary table ``needed`` was filled with the fingerprints that runs need. With
    the column embedder a fingerprint is not that of an image alone, so only what tables show is kept for it.
    """
    family = pipeline.partition(".")[0]
    tables = connection.execute(query("images", "tables"), {"family": family}).fetchall()
    note_shown(connection, [sql.Identifier(schema, table) for schema, table in tables])
    statement = query(
        "images",
        "unneeded",
        family=sql.Literal(family),
        age=sql.Literal(age),
        identity=sql.Literal(identity.digest()),
    )
    rows = connection.execute(statement).fetchall()
    return [KnownImage(sha256=sha256, media_type=kind, bytes=size, place=place) for sha256, kind, size, place in rows]


def forget_images(connection: Connection, store: Store, pipeline: str, images: list[KnownImage]) -> None:
    """Delete images from the store. One that comes back is uploaded again."""
    for image in images:
        # First the object: a kill in between leaves an entry that the next prune finds again, not a lost object.
        store.delete(image.object_name(pipeline))
        values = {"family": pipeline.partition(".")[0], "sha256s": [image.sha256]}
        connection.execute(query("images", "forget"), values)
