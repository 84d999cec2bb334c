"""Filled vector tables for tests: the layout a merge makes, with vectors whose neighbours are known to be close."""

from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt
from psycopg import sql

from rowvec.postgres.columns import PgColumn
from rowvec.postgres.connection import Connection
from rowvec.postgres.vector_table import Metric, Precision, VectorTable
from rowvec.stages.binarize import binarize


def vector_table(
    dimensions: int,
    *,
    name: str = "items",
    precision: Precision = "float32",
    bits: int = 1,
    metric: Metric = "cosine",
) -> VectorTable:
    """A table in ``public`` with the key ``id`` and the metadata ``author`` and ``year``."""
    return VectorTable(
        schema="public",
        name=name,
        key=(PgColumn("id", "bigint"),),
        metadata=(PgColumn("author", "text"), PgColumn("year", "integer")),
        dimensions=dimensions,
        precision=precision,
        bits=bits,
        metric=metric,
    )


def clustered(rows: int, dimensions: int, *, seed: int = 7, spread: float = 0.7) -> npt.NDArray[np.float32]:
    """``(rows, dimensions)`` float32, about 50 rows around each of many centres: a shape that real embeddings have."""
    random = np.random.default_rng(seed)
    centres = random.standard_normal((max(rows // 50, 1), dimensions))
    near = centres[random.integers(len(centres), size=rows)]
    return (near + spread * random.standard_normal((rows, dimensions))).astype(np.float32)


def create(connection: Connection, table: VectorTable) -> None:
    """An empty table laid out as ``table`` says."""
    columns = (sql.SQL("{} {}").format(sql.Identifier(c.name), c.type_sql) for c in table.columns)
    connection.execute(
        sql.SQL("CREATE TABLE {} ({}, PRIMARY KEY ({}))").format(
            table.identifier,
            sql.SQL(", ").join(columns),
            sql.SQL(", ").join(sql.Identifier(c.name) for c in table.key),
        )
    )


_COPY_BEGIN, _COPY_END = b"PGCOPY\n\xff\r\n\0" + bytes(8), b"\xff\xff"
_EMBEDDED_AT = 24 * 365 * 86_400 * 1_000_000
"""Microseconds since 2000, as Postgres sends a time."""


def fill(
    connection: Connection, table: VectorTable, vectors: npt.NDArray[np.float32], *, first: int = 0, authors: int = 100
) -> None:
    """Rows ``first`` and on with these vectors; the author is one of 100, the year one of 1,000."""
    # Neither side writes and reads decimal numbers.
    stored = vectors.astype(">f2" if table.precision == "float16" else ">f4")
    head = struct.pack("!hh", table.dimensions, 0)
    packed = binarize(stored.astype(np.float32), table.bits) if table.bits else [None] * len(vectors)
    width = struct.pack("!i", table.bits * table.dimensions)
    names = sql.SQL(", ").join(sql.Identifier(c.name) for c in table.columns)
    rows: list[bytes] = [_COPY_BEGIN]
    for i, (vector, bits) in enumerate(zip(stored, packed, strict=True), first):
        fields = [
            i.to_bytes(8),
            f"author {i % authors}".encode(),
            (1000 + i % 1000).to_bytes(4),
            f"text {i}".encode(),
            head + vector.tobytes(),
            *([] if bits is None else [width + bits.tobytes()]),
            b"f" * 32,
            b"m" * 32,
            (1).to_bytes(8),
            _EMBEDDED_AT.to_bytes(8),
        ]
        rows.append(len(fields).to_bytes(2))
        rows += (part for field in fields for part in (len(field).to_bytes(4), field))
    copied = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT binary)").format(table.identifier, names)
    with connection.cursor() as cursor, cursor.copy(copied) as copy:
        copy.write(b"".join([*rows, _COPY_END]))
    connection.execute(sql.SQL("ANALYZE {}").format(table.identifier))


def filled(connection: Connection, table: VectorTable, rows: int, *, seed: int = 7) -> npt.NDArray[np.float32]:
    """The table with clustered vectors; returns them."""
    vectors = clustered(rows, table.dimensions, seed=seed)
    create(connection, table)
    fill(connection, table, vectors)
    return vectors


def empty_unlogged_tables(connection: Connection) -> None:
    """What a crash of the server does, and the promotion of a standby."""
    found = connection.execute("SELECT oid::regclass::text FROM pg_class WHERE relpersistence = 'u' AND relkind = 'r'")
    for (name,) in found.fetchall():
        connection.execute(sql.SQL("TRUNCATE {}").format(sql.Identifier(*name.split("."))))
