"""Finds the images in the store that no row shows any more, and deletes them."""

from __future__ import annotations

from datetime import timedelta

from psycopg import sql

from rowvec.images.content import KnownImage
from rowvec.postgres.connection import Connection
from rowvec.postgres.queries import query
from rowvec.stages.images.upload import note_shown
from rowvec.store.protocol import Store
from rowvec.vectors.fingerprint import Identity


def unneeded_images(connection: Connection, pipeline: str, identity: Identity, age: timedelta) -> list[KnownImage]:
    """The images that can be deleted: no vector table of any generation shows them, no restorable run showed them, and
    no row came with them since ``age``.

    Call it once per session, after the temporary table ``needed`` was filled with the fingerprints that runs need.
    With the column embedder, a fingerprint is not of the image alone. So only images that tables show are kept then.
    """
    family = pipeline.partition(".")[0]
    tables = connection.execute(query("images", "tables"), {"family": family}).fetchall()
    note_shown(connection, [sql.Identifier(schema, table) for schema, table in tables])
    statement = query(
        "prune_images",
        "unneeded",
        family=sql.Literal(family),
        age=sql.Literal(age),
        identity=sql.Literal(identity.digest()),
    )
    rows = connection.execute(statement).fetchall()
    return [KnownImage(sha256=sha256, media_type=kind, bytes=size, place=place) for sha256, kind, size, place in rows]


def forget_images(connection: Connection, store: Store, pipeline: str, images: list[KnownImage]) -> None:
    """Delete images from the store. If a row shows one of them again, it is uploaded again."""
    for image in images:
        # The object goes first: after a kill in between, the next prune finds the ledger's entry again.
        store.delete(image.object_name(pipeline))
        values = {"family": pipeline.partition(".")[0], "sha256s": [image.sha256]}
        connection.execute(query("prune_images", "forget"), values)
