"""Dead entries in an index lower its recall, and no sync leaves so many that they do."""

from __future__ import annotations

from typing import Any, LiteralString

import pytest
from psycopg import sql

from rowvec.index.build import index_state
from rowvec.ledger.runs import running
from rowvec.pipeline import Pipeline
from rowvec.postgres.connection import Connection
from rowvec.postgres.vector_table import stored_table
from rowvec.stages import index, validate
from rowvec.stages.order import IN_PROCESS, bring_up_to_date
from tests.support import paintings as gallery

ROWS = 1_500
THROUGH_INDEX: LiteralString = "embedding <=> {}::vector"
EXACTLY: LiteralString = "(embedding <=> {}::vector) + 0"


@pytest.fixture
def indexed(source: Connection, paintings: Pipeline) -> Pipeline:
    """1,500 paintings with an HNSW index and without autovacuum, which would remove the dead entries."""
    gallery.fill(source, ROWS - 50, start=51)
    # Descriptions that end in similar numbers have similar vectors. MD5 texts are spread out.
    source.execute("UPDATE paintings SET description = md5(id::text)")
    pipeline = paintings.model_copy(
        update={
            "index": paintings.index.model_copy(update={"kind": "hnsw", "on": "float"}),
            "validation": paintings.validation.model_copy(update={"max_delete_fraction": 1.0}),
        }
    )
    gallery.sync(pipeline)
    source.execute("ALTER TABLE vectors.paintings SET (autovacuum_enabled = false)")
    return pipeline


def plain_search(connection: Connection, order: LiteralString, queries: list[str]) -> list[list[Any]]:
    """Distances of the 10 rows that a client gets for each query with pgvector's default settings."""
    with connection.transaction():
        for path in ("enable_seqscan", "enable_bitmapscan"):
            connection.execute("SELECT set_config(%s, 'off', true)", (path,))
        connection.execute("SELECT set_config('enable_sort', %s, true)", ("off" if order == THROUGH_INDEX else "on",))
        return [
            connection.execute(
                sql.SQL("SELECT embedding <=> {0}::vector FROM vectors.paintings ORDER BY {1} LIMIT 10").format(
                    sql.Literal(query), sql.SQL(order).format(sql.Literal(query))
                )
            ).fetchall()
            for query in queries
        ]


def recall(connection: Connection, queries: list[str]) -> float:
    """The share of the ten nearest rows that the index returns, compared by distance; ties count."""
    found = plain_search(connection, THROUGH_INDEX, queries)
    exact = plain_search(connection, EXACTLY, queries)
    hits = [sum(d[0] <= true[-1][0] + 1e-6 for d in got) for got, true in zip(found, exact, strict=True)]
    return sum(hits) / (10 * len(queries))


def test_dead_entries_lower_recall_and_a_sync_restores_it(source: Connection, indexed: Pipeline) -> None:
    table = stored_table(source, indexed)
    (before,) = (state.name for state in index_state(source, table))
    oid = source.execute("SELECT %s::regclass::oid", (f'vectors."{before}"',)).fetchone()
    source.execute("DELETE FROM paintings WHERE id % 10 <> 0")
    rows = source.execute("SELECT embedding::text FROM vectors.paintings WHERE id % 10 = 0 ORDER BY id LIMIT 30")
    queries = [row[0] for row in rows.fetchall()]
    with running(indexed, "test") as run:
        done = bring_up_to_date(indexed, run, IN_PROCESS)
        # The state after the merge: the search visits dead entries first, and does not return enough live rows.
        assert recall(source, queries) < 0.7
        assert min(len(found) for found in plain_search(source, THROUGH_INDEX, queries)) < 10
        report = validate.run(indexed, run, [done], index.run(indexed, run))
    assert report.consistent
    assert report.deleted == ROWS * 9 // 10
    assert recall(source, queries) > 0.95
    assert {len(found) for found in plain_search(source, THROUGH_INDEX, queries)} == {10}
    (after,) = index_state(source, table)
    assert after.valid
    assert source.execute("SELECT %s::regclass::oid", (f'vectors."{after.name}"',)).fetchone() != oid
    builds = source.execute("SELECT why, outcome FROM rowvec.index_builds ORDER BY build_id").fetchall()
    assert builds == [("missing", "replaced"), ("worn", "serves")]


def test_rows_replaced_little_by_little_add_up_and_metadata_alone_wears_no_index(
    source: Connection, indexed: Pipeline
) -> None:
    """No single run replaces many rows. The index is rebuilt when all runs since the build together replaced enough."""
    source.execute("UPDATE paintings SET author = author || ' and another', year = year + 1")
    assert gallery.sync(indexed).metadata_only == ROWS
    whys = source.execute("SELECT why, came, went FROM rowvec.index_builds").fetchall()
    assert whys == [("missing", 0, 0)]
    for turn in range(4):
        source.execute(
            "UPDATE paintings SET title = title || ' again' WHERE id BETWEEN %s AND %s", (turn * 40, turn * 40 + 39)
        )
        gallery.sync(indexed)
        whys = source.execute("SELECT why, came, went FROM rowvec.index_builds ORDER BY build_id").fetchall()
        assert len(whys) == (2 if turn == 3 else 1)
    # 39 and three times 40 of 1,500 rows are more than a tenth. The fourth run rebuilds, and counting starts at zero.
    assert whys == [("missing", 159, 159), ("worn", 0, 0)]
