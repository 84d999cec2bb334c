"""The loaders of other projects that COPY an artifact's rows into the same table: load.py compares ours with them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, LiteralString

import numpy as np
import pyarrow as pa
from pgvector import Bit, Vector
from pgvector.psycopg import register_vector
from psycopg import sql

from rowvec.postgres.connection import Connection
from rowvec.postgres.vector_table import VectorTable
from rowvec.store.artifact import read_artifact

TABLE = sql.Identifier("public", "items")

_COLUMNS: LiteralString = (
    "id, author, content, embedding, embedding_bits, fingerprint, metadata_hash, run_id, embedded_at"
)


def load_with_pgvector(connection: Connection, table: VectorTable, artifact: Path, number: int) -> int:
    """Load as pgvector-python's own bulk loading example does: ``write_row`` with binary types."""
    register_vector(connection)
    types = ["int8", "text", "text", "vector", "bit", "bytea", "bytea", "int8", "timestamptz"]
    now = connection.execute("SELECT now()").fetchone()
    assert now
    with (
        connection.transaction(),
        connection.cursor() as cursor,
        cursor.copy(sql.SQL("COPY {} ({}) FROM STDIN (FORMAT binary)").format(TABLE, sql.SQL(_COLUMNS))) as copy,
    ):
        copy.set_types(types)
        rows = 0
        for batch in read_artifact(artifact):
            rows += batch.num_rows
            vectors = batch.column("embedding").flatten().to_numpy().reshape(-1, table.dimensions)
            others = (batch.column(n).to_pylist() for n in ("id", "author", "content", "embedding_bits"))
            hashes = (batch.column(n).to_pylist() for n in ("fingerprint", "metadata_hash"))
            for key, author, content, bits, fingerprint, digest, vector in zip(*others, *hashes, vectors, strict=True):
                row = (key, author, content, Vector(vector), _bit(bits, table.dimensions), fingerprint, digest)
                copy.write_row((*row, number, now[0]))
    return rows


def _bit(packed: bytes, dimensions: int) -> Bit:
    return Bit.from_binary(dimensions.to_bytes(4, "big") + packed)


def load_with_pgpq(connection: Connection, table: VectorTable, artifact: Path, number: int) -> int:
    """Load with pgpq. It does not know vectors and bits, so it gets them as binary columns in wire format."""
    rows, encoder = 0, None
    with (
        connection.transaction(),
        connection.cursor() as cursor,
        cursor.copy(sql.SQL("COPY {} ({}) FROM STDIN (FORMAT binary)").format(TABLE, sql.SQL(_COLUMNS))) as copy,
    ):
        for batch in _in_wire_format(read_artifact(artifact), table.dimensions, number):
            if encoder is None:
                encoder = _pgpq_encoder(batch.schema)
                copy.write(encoder.write_header())
            copy.write(encoder.write_batch(batch))
            rows += batch.num_rows
        assert encoder
        copy.write(encoder.finish())
    return rows


def _pgpq_encoder(schema: pa.Schema) -> Any:
    from pgpq import ArrowToPostgresBinaryEncoder  # pyright: ignore[reportMissingImports] # a peer, not a dependency

    return ArrowToPostgresBinaryEncoder(schema)


def _in_wire_format(batches: Iterator[pa.RecordBatch], dimensions: int, number: int) -> Iterator[pa.RecordBatch]:
    """Blocks of about 0.25 MB, the size our own encoder uses, with the columns in the table's order."""
    now = time.time_ns() // 1000
    rows = max(1, 262_144 // (dimensions * 33 // 8 + 400))
    for whole in batches:
        for start in range(0, whole.num_rows, rows):
            batch = whole.slice(start, rows)
            n = batch.num_rows
            floats = batch.column("embedding").flatten().to_numpy().reshape(n, dimensions)
            bits = np.frombuffer(b"".join(batch.column("embedding_bits").to_pylist()), np.uint8).reshape(n, -1)
            columns = [
                batch.column("id"),
                batch.column("author"),
                batch.column("content"),
                _headed(dimensions << 16, floats, ">f4"),
                _headed(dimensions, bits, "u1"),
                batch.column("fingerprint").cast(pa.binary()),
                batch.column("metadata_hash").cast(pa.binary()),
                pa.array(np.full(n, number)),
                pa.array(np.full(n, now), pa.timestamp("us", "UTC")),
            ]
            yield pa.record_batch(columns, names=_COLUMNS.split(", "))


def _headed(head: int, values: Any, dtype: str) -> pa.Array:
    n, width = values.shape
    record: Any = np.zeros(n, np.dtype([("head", ">i4"), ("values", dtype, (width,))]))
    record["head"], record["values"] = head, values
    offsets = pa.py_buffer(np.arange(n + 1, dtype=np.int32) * np.int32(record.itemsize))
    return pa.Array.from_buffers(pa.binary(), n, [None, offsets, pa.py_buffer(record.view(np.uint8))])
