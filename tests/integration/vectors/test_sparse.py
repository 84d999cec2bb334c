"""Sparse vectors as pgvector sends them, accepts them, and parses them from text."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import pyarrow as pa
from psycopg import errors as pg
from psycopg import sql

from rowvec.postgres.columns import PgColumn
from rowvec.postgres.connection import Connection
from rowvec.postgres.copy_encoder import HEADER, TRAILER, Encoder
from rowvec.vectors import sparse
from rowvec.vectors.layout import Layout
from rowvec.vectors.sparse import MOST_DIMENSIONS, SparseVectors
from tests.support.sparse_vectors import Row, answers_of, assert_same, made

LARGEST = float(np.finfo(np.float32).max)


def test_pgvector_takes_what_is_sent_and_sends_the_same(connection: Connection) -> None:
    for dimensions in (1, 30_522, MOST_DIMENSIONS):
        random = np.random.default_rng(dimensions)
        rows: list[Row] = [{}, {0: 1.5}, {dimensions - 1: -LARGEST}, {0: 1e-45}]
        rows += [
            dict.fromkeys(random.choice(min(dimensions, 10**6), min(dimensions, n), replace=False).tolist(), 0.1)
            for n in (2, 300, 16_000)
        ]
        vectors = made(dimensions, rows)
        kind = f"sparsevec({dimensions})"
        connection.execute(sql.SQL("CREATE TEMP TABLE t (id int, v sparsevec({}))").format(sql.Literal(dimensions)))
        encoder = Encoder([PgColumn("id", "integer"), PgColumn("v", kind)])
        batch = pa.record_batch({"id": pa.array(range(len(rows)), pa.int32()), "v": vectors.arrow()})
        names = ", ".join(column.name for column in encoder.columns)
        statement = f"COPY t ({names}) FROM STDIN (FORMAT binary)"
        with connection.cursor() as cursor, cursor.copy(statement) as copy:  # pyright: ignore[reportArgumentType] # ours
            copy.write(HEADER)
            for block in encoder.encode(batch):
                copy.write(block)
            copy.write(TRAILER)
        found = connection.execute("SELECT sparsevec_send(v), v::text FROM t ORDER BY id").fetchall()
        assert_same(sparse.of_wires([sent for sent, _ in found], dimensions), vectors)
        texts = [text for _, text in found[1:]]
        (answer,) = answers_of(dimensions, texts)
        assert isinstance(answer.vectors, SparseVectors)
        # All floats except the smallest, whose squares underflow to zero.
        assert {error.detail for error in answer.rejected.values()} <= {
            "the vector's norm is beyond what float32 can hold"
        }
        assert_same(answer.vectors, vectors[1 + answer.positions])
        connection.execute("DROP TABLE t")


def test_rowvec_accepts_and_refuses_the_same_texts_as_pgvector(connection: Connection) -> None:
    """In a text pgvector accepts unsorted indices and zeros, and so does rowvec; both refuse the same texts."""
    for text in ("{3:1,1:2}/5", "{1:0,2:1}/5", " { 1 : 2 , 2 : 1e-3 } / 5 ", "{1:1,1:2}/5", "{6:1}/5", "{0:1}/5"):
        answers = answers_of(5, [text])
        taken: bytes | None = None
        with suppress(pg.DataError):
            row = connection.execute("SELECT sparsevec_send(%s::sparsevec)", (text,)).fetchone()
            taken = row[0] if row else None
        kept = [answer.vectors for answer in answers if len(answer.positions)]
        assert [wire for vectors in kept for wire in Layout("sparse", 5).wires(vectors)] == ([taken] if taken else [])
