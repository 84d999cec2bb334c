"""rowvec.indexes shows a monitoring role the kind, wear and recall of each index, and the progress of a build."""

from __future__ import annotations

import threading
import time
from typing import Any

import psycopg
from psycopg.rows import dict_row

from rowvec.index.build import ensure_index
from rowvec.index.history import look
from rowvec.index.upkeep import keep_fit
from rowvec.pipeline import Pipeline
from rowvec.pipeline.model import Recall
from rowvec.postgres.connection import Connection, connect
from rowvec.postgres.vector_index import IndexChoice
from rowvec.postgres.vector_table import VectorTable
from tests.support import paintings as gallery
from tests.support.vector_tables import filled, vector_table

FLOAT = IndexChoice(kind="hnsw", on="float", opclass="vector_cosine_ops", reason="")
HALFVEC = IndexChoice(kind="hnsw", on="halfvec", opclass="halfvec_cosine_ops", reason="")
BITS = IndexChoice(kind="hnsw", on="bits", opclass="bit_hamming_ops", oversampling=16, reason="")


def registered(connection: Connection) -> VectorTable:
    table = vector_table(16)
    connection.execute(
        "INSERT INTO rowvec.pipelines (name, family, table_schema, table_name, identity)"
        " VALUES ('items', 'items', 'public', 'items', '{}')"
    )
    return table


def indexes(connection: Connection) -> list[dict[str, Any]]:
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute("SELECT * FROM rowvec.indexes ORDER BY index_name").fetchall()


def test_what_an_index_is_how_worn_and_how_good(connection: Connection) -> None:
    table = registered(connection)
    filled(connection, table, 800)
    (bare,) = indexes(connection)
    assert (bare["pipeline"], bare["table_name"], bare["index_name"]) == ("items", "items", None)
    wanted = Recall(k=10, at_least=0.5, queries=30)
    for choice in (FLOAT, HALFVEC, BITS):
        keep_fit(connection, table, choice, look(connection, table), wanted)
        (row,) = indexes(connection)
        assert (row["kind"], row["held"], row["valid"]) == ("hnsw", choice.on, True)
    connection.execute("UPDATE items SET run_id = 2 WHERE id < 40")
    keep_fit(connection, table, BITS, look(connection, table), wanted)
    (row,) = indexes(connection)
    assert "USING hnsw (embedding_bits bit_hamming_ops)" in row["definition"]
    assert (row["why"], row["rows_at_build"], row["rows_estimate"]) == ("other choice", 800, 800)
    assert row["churned"] == 40 / 800
    assert (row["recall_k"], row["recall_queries"]) == (10, 30)
    assert row["recall_low"] <= row["recall"] <= row["recall_high"]
    assert row["recalled_at"] >= row["built_at"]
    assert row["age"].total_seconds() > 0
    assert row["bytes"] > 8192
    assert (row["building"], row["building_percent"]) == (None, None)
    assert row["spilled_after"] is None


def test_a_build_under_way_is_shown_with_its_phase(connection: Connection, direct_url: str) -> None:
    table = registered(connection)
    filled(connection, table, 500)
    with psycopg.connect(direct_url, autocommit=True) as old, connect(direct_url) as builder:
        old.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        old.execute("SELECT 1 FROM items LIMIT 1")
        building = threading.Thread(target=ensure_index, args=(builder, table, FLOAT))
        building.start()
        while not (shown := [row for row in indexes(connection) if row["building"]]):
            time.sleep(0.01)
        old.execute("ROLLBACK")
        building.join()
    assert not shown[0]["valid"]
    assert [row["valid"] for row in indexes(connection)] == [True]


def test_a_role_that_only_watches_can_read_it(source: Connection, paintings: Pipeline) -> None:
    gallery.sync(paintings.model_copy(update={"index": paintings.index.model_copy(update={"kind": "hnsw"})}))
    source.execute("CREATE ROLE watcher")
    try:
        source.execute("GRANT USAGE ON SCHEMA rowvec TO watcher")
        source.execute("GRANT SELECT ON rowvec.indexes TO watcher")
        with source.transaction():
            source.execute("SET LOCAL ROLE watcher")
            (row,) = indexes(source)
        assert (row["pipeline"], row["kind"], row["why"], row["rows_at_build"]) == ("paintings", "hnsw", "missing", 50)
    finally:
        source.execute("DROP OWNED BY watcher")
        source.execute("DROP ROLE watcher")


def test_names_that_need_quotes(connection: Connection) -> None:
    table = VectorTable(
        schema='we "ird%', name="50% {of}", key=vector_table(8).key, metadata=vector_table(8).metadata, dimensions=8
    )
    connection.execute('CREATE SCHEMA "we ""ird%"')
    connection.execute(
        "INSERT INTO rowvec.pipelines (name, family, table_schema, table_name, identity)"
        " VALUES ('odd', 'odd', %s, %s, '{}')",
        (table.schema, table.name),
    )
    filled(connection, table, 50)
    keep_fit(connection, table, FLOAT, look(connection, table), Recall(k=5, at_least=0.5, queries=10))
    (row,) = indexes(connection)
    assert (row["table_schema"], row["why"], row["rows_at_build"]) == (table.schema, "missing", 50)
