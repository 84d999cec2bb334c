"""Searches of a table that is split into partitions: a filter on its columns reads one of them, by its own index."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from psycopg import sql
from psycopg.types.json import Jsonb

from rowvec.index.build import ensure_index, index_state
from rowvec.index.choice import Facts, choose
from rowvec.index.history import look, note_build
from rowvec.index.raised_search import keep_raised_search
from rowvec.index.tuning.results import present_index
from rowvec.index.wear import Reason
from rowvec.pipeline.indexes import Index
from rowvec.pipeline.partitioning import PartitionBy
from rowvec.postgres.columns import PgColumn
from rowvec.postgres.connection import Connection
from rowvec.postgres.tables.create import create_table
from rowvec.postgres.tables.partitions import make_missing, partitions_of
from rowvec.postgres.vector_index import IndexChoice
from rowvec.postgres.vector_table import VectorTable
from rowvec.searches.query import explain, search
from rowvec.searches.request import SearchRequest
from rowvec.searches.sql_function import install_search_function
from tests.support.vector_tables import clustered, fill, vector_table

AUTHORS, ROWS, DIMENSIONS = 5, 3_000, 16
VECTORS = clustered(ROWS, DIMENSIONS)
BY_AUTHOR = PartitionBy(columns=("author",))
BY_HASH = PartitionBy(columns=("author",), kind="hash", partitions=3)


@pytest.fixture
def table(connection: Connection, request: pytest.FixtureRequest) -> VectorTable:
    """600 rows per author, all in one partition, with an index on each partition; by author unless a test says so."""
    key = (PgColumn("id", "bigint"), PgColumn("author", "text"))
    metadata = (PgColumn("year", "integer"),)
    split = getattr(request, "param", BY_AUTHOR)
    made = replace(vector_table(DIMENSIONS), key=key, metadata=metadata, partition_by=split)
    create_table(connection, made)
    make_missing(connection, made, sql.SQL("(SELECT 'author ' || n AS author FROM generate_series(0, 4) AS n)"))
    fill(connection, made, VECTORS, authors=AUTHORS)
    for each in partitions_of(connection, made):
        ensure_index(connection, each.table, chosen(made))
    # So few rows the planner would rather read by the key than search for in a graph.
    connection.execute("ALTER TABLE items DROP CONSTRAINT items_pkey")
    return made


def chosen(table: VectorTable) -> IndexChoice:
    facts = Facts(rows=ROWS, dimensions=DIMENSIONS, precision="float32", bits=table.bits)
    return choose(facts, Index(kind="hnsw", on="float"))


def nearest(query: int, k: int, *, author: int | None) -> list[int]:
    """The ids of the rows nearest to a row."""
    unit = VECTORS / np.linalg.norm(VECTORS, axis=1, keepdims=True)
    rows = np.arange(ROWS) if author is None else np.arange(author, ROWS, AUTHORS)
    return rows[np.argsort(-(unit[rows] @ unit[query]), kind="stable")[:k]].tolist()


def called(connection: Connection, query: int, k: int, **asked: Any) -> tuple[list[int], set[str], set[str]]:
    """What the search function finds, and the partitions and the vector indexes that were scanned for it."""
    with connection.transaction(force_rollback=True):
        # A transaction sees the scans of its own session that were not reported yet, too.
        before = scans(connection)
        found = connection.execute(
            "SELECT id FROM public.items_search(%s::vector, %s, filter => %s)",
            (str(VECTORS[query].tolist()), k, Jsonb(asked) if asked else None),
        ).fetchall()
        after = scans(connection)
    scanned = {name for name, number in after.items() if number > before.get(name, 0)}
    indexes = {name for name in scanned if "_rowvec_" in name}
    return [id_ for (id_,) in found], scanned - indexes, indexes


def scans(connection: Connection) -> dict[str, int]:
    return dict(
        connection.execute(
            "SELECT relname::text, coalesce(seq_scan, 0) + coalesce(idx_scan, 0) FROM pg_stat_xact_user_tables"
            " WHERE relname LIKE 'items\\_part%' UNION ALL"
            " SELECT c.relname::text, pg_stat_get_xact_numscans(c.oid) FROM pg_class AS c"
            " WHERE c.relname LIKE '%\\_rowvec\\_%'"
        ).fetchall()
    )


def partition_of(connection: Connection, author: int) -> str:
    found = connection.execute(
        "SELECT DISTINCT tableoid::regclass::text FROM items WHERE author = %s", (f"author {author}",)
    )
    ((name,),) = found.fetchall()
    return str(name)


@pytest.mark.parametrize("table", [BY_AUTHOR, BY_HASH], ids=["list", "hash"], indirect=True)
def test_the_search_function_scans_the_index_of_one_partition(connection: Connection, table: VectorTable) -> None:
    install_search_function(connection, table, chosen(table))
    for author in (3, 1):
        found, scanned, indexes = called(connection, 7, 5, author=f"author {author}")
        name = partition_of(connection, author)
        assert found == nearest(7, 5, author=author)
        assert scanned == {name}
        assert indexes == {state.name for state in index_state(connection, table) if state.table == name}
    found, scanned, indexes = called(connection, 7, 5)
    assert found == nearest(7, 5, author=None)
    assert len(scanned) == len(indexes) == len(partitions_of(connection, table))
    assert called(connection, 7, 5, author="nobody")[0] == []
    assert called(connection, 7, 5, author=None)[0] == []


def test_a_search_plans_the_index_of_one_partition(connection: Connection, table: VectorTable) -> None:
    request = SearchRequest(VECTORS[7], 5, where="author = 'author 3'")
    assert [hit.key["id"] for hit in search(connection, table, chosen(table), request)] == nearest(7, 5, author=3)
    plan = explain(connection, table, chosen(table), request)
    states = {state.name: state.table for state in index_state(connection, table)}
    assert {states[name] for name in plan.indexes & states.keys()} == {partition_of(connection, 3)}


def test_rows_of_other_partitions_in_the_same_places_are_not_found(connection: Connection, table: VectorTable) -> None:
    install_search_function(connection, table, chosen(table))
    # Three rows of one author; other authors have rows in the same places of their partitions.
    same_year = [row for row in range(ROWS) if row % 1000 == 123]
    found, _, _ = called(connection, 7, 10, year=1123)
    assert sorted(found) == same_year
    hits = search(connection, table, chosen(table), SearchRequest(VECTORS[7], 10, where="year = 1123"))
    assert sorted(hit.key["id"] for hit in hits) == same_year


def test_all_partitions_are_searched_with_the_most_that_one_of_them_needs(
    connection: Connection, table: VectorTable
) -> None:
    first, second, *_ = partitions_of(connection, table)
    wanted = Index(kind="hnsw", on="float")
    for each, effort in ((first, 300), (second, 500)):
        (state,) = index_state(connection, each.table)
        before = present_index(connection, each.table, wanted)
        reason = Reason(why="found", sentence="it was there")
        looked = look(connection, each.table)
        build_id = note_build(connection, each.table, state.name, before, reason, looked, None)
        keep_raised_search(connection, build_id, before, replace(before, ef_search=effort))
    assert present_index(connection, table, wanted).ef_search == 500
    # For other settings in the pipeline file, what was raised says nothing.
    assert present_index(connection, table, Index(kind="hnsw", on="float", oversampling=3)).ef_search == 0
