"""The queries of an application in docs/how-to/search.md: filtered, joined, top k."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, LiteralString, cast

import numpy as np
import numpy.typing as npt
import pytest

from rowvec.index.build import ensure_index
from rowvec.postgres.columns import PgColumn
from rowvec.postgres.connection import Connection
from rowvec.postgres.vector_index import IndexChoice
from rowvec.searches.sql_function import install_search_function
from tests.support.vector_tables import clustered, create, vector_table

ROWS = 3_000
ALBUMS = 60
BITS = IndexChoice(kind="hnsw", on="bits", opclass="bit_hamming_ops", reason="")
DOCUMENT = (Path(__file__).parents[3] / "docs/how-to/search.md").read_text("utf-8")


def documented(name: str) -> list[LiteralString]:
    """The statements of the block that begins with the comment ``name``."""
    block = re.search(rf"```sql\n-- {name}\n(.*?)```", DOCUMENT, re.DOTALL)
    assert block
    return [cast("LiteralString", part) for part in block.group(1).split(";") if part.strip()]


@pytest.fixture
def pictures(connection: Connection) -> npt.NDArray[np.float32]:
    """3,000 pictures in 60 albums of 30 owners, half of the albums public; their vectors indexed as bits."""
    table = replace(vector_table(128, name="pictures"), schema="vectors", metadata=(PgColumn("album_id", "integer"),))
    vectors = clustered(ROWS, 128, spread=1.0)
    connection.execute("CREATE SCHEMA IF NOT EXISTS vectors")
    create(connection, table)
    connection.execute("CREATE TABLE owners (id int PRIMARY KEY, name text)")
    connection.execute("CREATE TABLE albums (id int PRIMARY KEY, owner_id int, title text, public bool)")
    connection.execute("CREATE TABLE pictures (id bigint PRIMARY KEY, album_id int, title text)")
    connection.execute("INSERT INTO owners SELECT i, 'owner ' || i FROM generate_series(0, 29) AS i")
    connection.execute("INSERT INTO albums SELECT i, i % 30, 'album ' || i, i % 2 = 0 FROM generate_series(0, 59) AS i")
    connection.execute("INSERT INTO pictures SELECT i, i % 60, 'picture ' || i FROM generate_series(0, 2999) AS i")
    with (
        connection.cursor() as cursor,
        cursor.copy(
            "COPY vectors.pictures (id, album_id, embedding, fingerprint, metadata_hash, run_id, embedded_at)"
            " FROM STDIN"
        ) as copy,
    ):
        for i, vector in enumerate(vectors):
            copy.write_row([i, i % ALBUMS, json.dumps(vector.tolist()), b"f", b"m", 1, "2024-01-01"])
    connection.execute("UPDATE vectors.pictures SET embedding_bits = binary_quantize(embedding)::bit(128)")
    connection.execute("ANALYZE")
    ensure_index(connection, table, BITS, readers=False)
    install_search_function(connection, table, BITS)
    return vectors


def test_the_documented_queries_bring_k_near_rows_before_and_after_deletes(
    connection: Connection, pictures: npt.NDArray[np.float32]
) -> None:
    album = np.arange(ROWS) % ALBUMS
    passing = {"by the function": album == 7, "by the keys": album % 30 == 7, "by the index": album % 2 == 0}
    there = np.ones(ROWS, bool)
    for name, mask in passing.items():
        brings_near_rows(connection, pictures, name, mask)
    there[::3] = False
    for mask in passing.values():
        there[nearest(pictures, pictures[5], mask)[:5]] = False
    deleted = [int(i) for i in np.flatnonzero(~there)]
    connection.execute("DELETE FROM vectors.pictures WHERE id = ANY (%s)", (deleted,))
    for name, mask in passing.items():
        brings_near_rows(connection, pictures, name, mask & there)


def brings_near_rows(
    connection: Connection, pictures: npt.NDArray[np.float32], name: str, mask: npt.NDArray[np.bool_]
) -> None:
    """The documented query ``name`` finds ten of the rows in ``mask``, the near ones."""
    album = np.arange(ROWS) % ALBUMS
    found = wanted = 0
    for i in (5, 1_000, 2_001):
        true = nearest(pictures, pictures[i], mask)
        values: dict[str, Any] = {"query": json.dumps(pictures[i].tolist()), "album": 7, "owner": "owner 7"}
        with connection.transaction():
            *settings, statement = documented(name)
            for setting in settings:
                connection.execute(setting)
            rows = connection.execute(statement, values).fetchall()
        assert len(rows) == 10, name
        assert all(mask[row[0]] for row in rows)
        assert [row[1:4] for row in rows] == [
            (f"picture {row[0]}", f"album {album[row[0]]}", f"owner {album[row[0]] % 30}") for row in rows
        ]
        assert [row[4] for row in rows] == sorted(row[4] for row in rows)
        found += len(set(true) & {row[0] for row in rows})
        wanted += 10
    assert found / wanted >= (0.8 if name == "by the index" else 1.0), name


def nearest(vectors: npt.NDArray[np.float32], query: npt.NDArray[np.float32], mask: npt.NDArray[np.bool_]) -> list[int]:
    similarity = vectors @ query / np.linalg.norm(vectors, axis=1)
    return [int(i) for i in np.argsort(np.where(mask, -similarity, np.inf), kind="stable")[:10]]
