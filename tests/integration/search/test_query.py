"""Search finds the nearest rows, through the index, under filters, after deletes, and from plain SQL."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any, LiteralString

import numpy as np
import numpy.typing as npt
import psycopg
import pytest
from psycopg import sql

from rowvec.errors import TargetError, UsageError
from rowvec.index.build import ensure_index
from rowvec.index.choice import Facts, choose
from rowvec.pipeline.indexes import Index
from rowvec.postgres.columns import PgColumn
from rowvec.postgres.connection import Connection, connect
from rowvec.postgres.vector_index import IndexChoice
from rowvec.postgres.vector_table import Metric, Precision, VectorTable
from rowvec.searches.query import explain, search
from rowvec.searches.request import SearchRequest
from rowvec.searches.sql_function import install_search_function
from rowvec.searches.statement import Mode, SearchValues, statement
from tests.support.paintings import Client
from tests.support.vector_tables import clustered, create, fill, filled, vector_table

ROWS = 5_000
SCANS: LiteralString = "SELECT seq_scan FROM pg_stat_xact_user_tables WHERE relname = 'items'"
NONE = IndexChoice(kind="none", reason="")
BITS = IndexChoice(kind="hnsw", on="bits", opclass="bit_hamming_ops", reason="")
FLOAT = IndexChoice(kind="hnsw", on="float", opclass="vector_cosine_ops", reason="")
IVFFLAT = IndexChoice(kind="ivfflat", on="float", opclass="vector_cosine_ops", lists=40, reason="")


def ids(hits: list[Any]) -> list[int]:
    return [hit.key["id"] for hit in hits]


def nearest(vectors: npt.NDArray[np.float32], query: npt.NDArray[np.float32], k: int) -> list[int]:
    """By cosine, in double precision."""
    x, q = vectors.astype(np.float64), query.astype(np.float64)
    similarity = x @ q / (np.linalg.norm(x, axis=1) * np.linalg.norm(q))
    return [int(i) for i in np.argsort(-similarity, kind="stable")[:k]]


@pytest.mark.parametrize("choice", [BITS, FLOAT, IVFFLAT], ids=lambda choice: f"{choice.kind} on {choice.on}")
def test_the_index_finds_what_is_near_and_k_rows_whenever_k_exist(connection: Connection, choice: IndexChoice) -> None:
    table = vector_table(32)
    vectors = filled(connection, table, ROWS)
    ensure_index(connection, table, choice)
    index = {f.name for f in [ensure_index(connection, table, choice).index] if f}
    modes: list[Mode] = ["adaptive", "bits" if choice.on == "bits" else "ann"]
    for mode in modes:
        for where in (None, "year >= 1500"):
            plan = explain(connection, table, choice, SearchRequest(vectors[5], 10, mode, where))
            assert index <= plan.indexes
            assert not plan.sequential_shortlist
    found = sum(
        len(
            set(ids(search(connection, table, choice, SearchRequest(vectors[i], 10))))
            & set(nearest(vectors, vectors[i], 10))
        )
        for i in range(0, ROWS, 250)
    )
    assert found / 200 > (0.5 if choice.on == "bits" else 0.9)  # 32 bits are few
    hits = search(connection, table, choice, SearchRequest(vectors[5], 10))
    assert ids(hits)[0] == 5
    assert [hit.distance for hit in hits] == sorted(hit.distance for hit in hits)
    assert hits[0].metadata == {"author": "author 5", "year": 1005}
    assert hits[0].content == "text 5"
    # A filter that one row in a thousand passes.
    hits = search(connection, table, choice, SearchRequest(vectors[3], 4, where="year = 1777"))
    assert len(hits) == 4
    assert {hit.metadata["year"] for hit in hits} == {1777}
    matching = np.arange(777, ROWS, 1000)
    true = {int(matching[i]) for i in nearest(vectors[matching], vectors[3], 4)}
    assert len(true & set(ids(hits))) >= 3
    assert len(search(connection, table, choice, SearchRequest(vectors[3], 30, where="year = 1777"))) == 5
    # The 1,000 nearest rows are deleted, and no vacuum has run.
    gone = nearest(vectors, vectors[3], 1_000)
    connection.execute("DELETE FROM items WHERE id = ANY (%s)", (gone,))
    for mode in modes:
        with connection.transaction():
            before = connection.execute(SCANS).fetchone()
            assert len(search(connection, table, choice, SearchRequest(vectors[3], 10, mode))) == 10
            # The index scan went on past its usual end and brought them; the whole table was not read.
            assert connection.execute(SCANS).fetchone() == before
    # All but 5 rows are deleted.
    connection.execute("DELETE FROM items WHERE id NOT BETWEEN 100 AND 104")
    left = set(range(100, 105)) - set(gone)
    assert set(ids(search(connection, table, choice, SearchRequest(vectors[3], 10)))) == left


@pytest.mark.parametrize("metric", ["cosine", "l2", "inner_product"])
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_exact_search_is_exact(connection: Connection, metric: Metric, precision: Any) -> None:
    table = vector_table(16, metric=metric, precision=precision)
    vectors = filled(connection, table, 500).astype(np.float16 if precision == "float16" else np.float32)
    x, q = vectors.astype(np.float64), vectors[7].astype(np.float64)
    distance = {
        "cosine": 1 - x @ q / (np.linalg.norm(x, axis=1) * np.linalg.norm(q)),
        "l2": np.linalg.norm(x - q, axis=1),
        "inner_product": -(x @ q),
    }[metric]
    hits = search(connection, table, NONE, SearchRequest(vectors[7].astype(np.float32), 20, "exact"))
    assert ids(hits) == [int(i) for i in np.argsort(distance)[:20]]
    assert [hit.distance for hit in hits] == pytest.approx(sorted(distance)[:20], abs=1e-4)


def test_over_2000_dimensions_the_index_over_halfvec_serves(connection: Connection) -> None:
    table = vector_table(2_100, bits=0)
    choice = choose(Facts(rows=1_000_000, dimensions=2_100, precision="float32", bits=0), Index())
    vectors = filled(connection, table, 300)
    report = ensure_index(connection, table, choice)
    assert choice.on == "halfvec"
    assert report.index
    plan = explain(connection, table, choice, SearchRequest(vectors[3], 10))
    assert plan.indexes >= {report.index.name}
    assert not plan.sequential_shortlist
    assert ids(search(connection, table, choice, SearchRequest(vectors[3], 10, oversampling=32))) == nearest(
        vectors, vectors[3], 10
    )


@pytest.mark.parametrize("where", [None, "year > 1200"])
def test_no_worker_starts_for_an_exact_search_that_is_seldom_needed(connection: Connection, where: str | None) -> None:
    """Workers start with the statement: at 100,000 x 3,072 a search then took 45 ms in place of 2."""
    table = vector_table(32)
    vectors = filled(connection, table, 2_000)
    ensure_index(connection, table, BITS)
    for setting in ("parallel_setup_cost", "parallel_tuple_cost", "min_parallel_table_scan_size"):
        connection.execute("SELECT set_config(%s, '0', false)", (setting,))
    assert explain(connection, table, NONE, SearchRequest(vectors[3], 10)).workers
    assert not explain(connection, table, BITS, SearchRequest(vectors[3], 10, where=where)).workers


def served(connection: Connection, table: VectorTable, choice: IndexChoice, rows: int) -> None:
    """The index is built, the search and the SQL function go through it, and find what is near."""
    vectors = filled(connection, table, rows)
    index = ensure_index(connection, table, choice).index
    assert index
    install_search_function(connection, table, choice)
    for i in (3, 30):
        plan = explain(connection, table, choice, SearchRequest(vectors[i], 10))
        assert index.name in plan.indexes
        assert not plan.sequential_shortlist
        hits = search(connection, table, choice, SearchRequest(vectors[i], 10))
        assert len(set(ids(hits)) & set(nearest(vectors, vectors[i], 10))) >= 9
        with connection.transaction():
            rows_of = call(connection, table.name, "%s", json.dumps(vectors[i].tolist()))
        assert [row[0] for row in rows_of] == ids(hits)


@pytest.mark.parametrize("dimensions", [2_001, 4_000])
def test_floats_to_4000_dimensions_are_indexed_as_halfvec(connection: Connection, dimensions: int) -> None:
    choice = choose(Facts(rows=1_000_000, dimensions=dimensions, precision="float32", bits=0), Index())
    assert choice.on == "halfvec"
    served(connection, vector_table(dimensions, bits=0), choice, 100)


@pytest.mark.parametrize(("precision", "dimensions"), [("float32", 5_000), ("float32", 16_000), ("float16", 16_000)])
def test_more_dimensions_are_indexed_as_bits(connection: Connection, precision: Precision, dimensions: int) -> None:
    choice = choose(Facts(rows=1_000_000, dimensions=dimensions, precision=precision, bits=1), Index())
    assert choice.on == "bits"
    served(connection, vector_table(dimensions, precision=precision), choice, 100)


def leading(rows: int, dimensions: int, leading: int) -> npt.NDArray[np.float32]:
    """Vectors whose leading dimensions matter most, as those of a Matryoshka model."""
    vectors = clustered(rows, dimensions)
    vectors[:, leading:] *= 0.3
    return vectors


PREFIXES: list[tuple[IndexChoice, Precision]] = [
    (IndexChoice(kind="hnsw", on="float", opclass="vector_cosine_ops", prefix=16, reason=""), "float32"),
    (IndexChoice(kind="hnsw", on="halfvec", opclass="halfvec_cosine_ops", prefix=16, reason=""), "float32"),
    (IndexChoice(kind="hnsw", on="float", opclass="halfvec_cosine_ops", prefix=16, reason=""), "float16"),
    (
        IndexChoice(kind="ivfflat", on="float", opclass="vector_cosine_ops", lists=10, prefix=16, reason=""),
        "float32",
    ),
]


@pytest.mark.parametrize(("choice", "precision"), PREFIXES)
def test_an_index_on_the_leading_dimensions_is_reranked_by_the_whole_vector(
    connection: Connection, choice: IndexChoice, precision: Precision
) -> None:
    table = vector_table(64, precision=precision)
    vectors = leading(2_000, 64, 16)
    create(connection, table)
    fill(connection, table, vectors)
    index = ensure_index(connection, table, choice).index
    assert index
    install_search_function(connection, table, choice)
    found = [0, 0]
    for i in range(0, 2_000, 100):
        plan = explain(connection, table, choice, SearchRequest(vectors[i], 10, where="year >= 1000"))
        assert plan.indexes >= {index.name}
        assert not plan.sequential_shortlist
        hits = search(connection, table, choice, SearchRequest(vectors[i], 10))
        true = set(nearest(vectors, vectors[i], 10))
        found[0] += len(true & set(ids(hits)))
        found[1] += len(true & set(nearest(vectors[:, :16], vectors[i, :16], 10)))
        # Distances by the whole vector, not by the prefix.
        assert hits[0].distance == pytest.approx(0, abs=1e-6)
        own = call(connection, "items", "%s", json.dumps(vectors[i].tolist()))
        assert [row[0] for row in own] == ids(hits)
    assert found[0] > found[1], "the prefix alone is as good, and proves nothing"
    assert found[0] / 200 > 0.9


def effort(connection: Connection, table: VectorTable, choice: IndexChoice, k: int, oversampling: int) -> int:
    """``ef_search`` or ``probes`` that a search sets."""
    settings = statement(
        table,
        choice,
        "adaptive",
        SearchValues(
            vector=sql.Literal("[1]"),
            k=sql.Literal(k),
            oversampling=sql.Literal(oversampling),
            condition=sql.SQL("true"),
        ),
    ).settings
    row = connection.execute(sql.SQL("SELECT {}").format(settings)).fetchone()
    assert row
    return int(row[0])


def test_the_effort_of_the_choice_is_the_one_that_is_made(connection: Connection) -> None:
    table = vector_table(32)
    tuned = replace(BITS, ef_search=20)
    assert effort(connection, table, BITS, 10, 8) == 80
    assert effort(connection, table, BITS, 10, 1) == 40
    assert effort(connection, table, FLOAT, 10, 8) == 200
    assert effort(connection, table, BITS, 100, 8) == 800
    assert effort(connection, table, tuned, 10, 1) == 20
    assert effort(connection, table, tuned, 10, 8) == 80  # the shortlist must come
    assert effort(connection, table, replace(FLOAT, ef_search=64, oversampling=8), 10, 8) == 64
    assert effort(connection, table, replace(FLOAT, ef_search=64, oversampling=8), 10, 16) == 128
    assert effort(connection, table, replace(FLOAT, ef_search=64), 200, 8) == 400
    assert effort(connection, table, replace(FLOAT, ef_search=900), 200, 64) == 1_000  # pgvector's limit
    assert effort(connection, table, replace(IVFFLAT, probes=5), 10, 8) == 5
    assert effort(connection, table, replace(IVFFLAT, probes=5), 10, 16) == 10
    assert effort(connection, table, replace(IVFFLAT, probes=5), 10, 1) == 1
    assert effort(connection, table, IVFFLAT, 10, 8) == 26


def test_bits_over_toasted_vectors_still_go_through_the_index(connection: Connection) -> None:
    table = vector_table(1_536)
    choice = choose(Facts(rows=1_000_000, dimensions=1_536, precision="float32", bits=1), Index())
    vectors = filled(connection, table, 1_000)
    report = ensure_index(connection, table, choice)
    assert report.index
    assert choice.on == "bits"
    plan = explain(connection, table, choice, SearchRequest(vectors[3], 10, where="year > 1200"))
    assert plan.indexes >= {report.index.name}
    assert not plan.sequential_shortlist
    assert ids(search(connection, table, choice, SearchRequest(vectors[3], 10, oversampling=32))) == nearest(
        vectors, vectors[3], 10
    )


def test_wrong_use_gives_a_message(connection: Connection) -> None:
    table = vector_table(8, bits=0)
    create(connection, table)
    ones = np.ones(8, np.float32)
    wrong: list[tuple[Callable[[], object], str]] = [
        (lambda: search(connection, table, NONE, SearchRequest(np.ones(9, np.float32), 3)), r"shape \(9,\)"),
        (lambda: search(connection, table, NONE, SearchRequest(0 * ones, 3)), "zero"),
        (lambda: search(connection, table, NONE, SearchRequest(np.nan * ones, 3)), "finite"),
        (lambda: search(connection, table, NONE, SearchRequest(ones, 0)), "k must be"),
        (lambda: search(connection, table, NONE, SearchRequest(ones, 3, oversampling=65)), "oversampling"),
        (lambda: search(connection, table, NONE, SearchRequest(ones, 3, "ann")), "no index on float"),
        (lambda: search(connection, table, NONE, SearchRequest(ones, 3, "bits")), "keeps no bits"),
        (lambda: search(connection, table, NONE, SearchRequest(ones, 3, where="year = 'soon'")), "soon"),
        (lambda: search(connection, table, NONE, SearchRequest(ones, 3, where="nobody = 1")), "nobody"),
    ]
    for use, message in wrong:
        with pytest.raises(UsageError, match=message):
            use()


def call(connection: Client, table: str, text: str, *arguments: Any) -> list[tuple[Any, ...]]:
    function = sql.Identifier("public", f"{table}_search")
    return connection.execute(sql.SQL("SELECT * FROM {}({})").format(function, sql.SQL(text)), arguments).fetchall()  # pyright: ignore[reportArgumentType] # a test's own literals


@pytest.mark.parametrize("choice", [NONE, BITS, FLOAT, IVFFLAT], ids=lambda choice: f"{choice.kind} on {choice.on}")
def test_the_function_gives_what_search_gives(connection: Connection, direct_url: str, choice: IndexChoice) -> None:
    table = vector_table(32)
    vectors = filled(connection, table, 1_500)
    ensure_index(connection, table, choice)
    assert install_search_function(connection, table, choice) == '"public"."items_search"'
    install_search_function(connection, table, choice)
    text = "[" + ",".join(map(str, vectors[9].tolist())) + "]"
    hits = search(connection, table, choice, SearchRequest(vectors[9], 10))
    # Another client, without rowvec's settings, that has never loaded pgvector.
    with psycopg.connect(direct_url) as stranger:
        rows = call(stranger, "items", "%s", text)
        assert [row[0] for row in rows] == ids(hits)
        assert [row[4] for row in rows] == [hit.distance for hit in hits]
        assert rows[0][:4] == (9, "author 9", 1009, "text 9")
        for _ in range(7):  # more often than it takes for a generic plan
            assert len(call(stranger, "items", "query => %s, k => 25", text)) == 25
        filtered = call(
            stranger, "items", "%s, 5, filter => %s", text, json.dumps({"author": "author 3", "year": 1003})
        )
        assert [(row[1], row[2]) for row in filtered] == [("author 3", 1003)] * 2
        assert call(stranger, "items", "%s, 5, filter => %s", text, '{"year": null}') == []
        assert stranger.execute("SHOW enable_seqscan").fetchone() == ("on",)
        assert stranger.execute("SHOW hnsw.ef_search").fetchone() == ("40",)
        for arguments, error in (
            (("%s, 5, 8, %s", text, '{"nobody": 1}'), "nobody"),
            (("%s, 0", text), "k must be"),
            (("%s, 5, 65", text), "oversampling"),
        ):
            with pytest.raises(psycopg.Error, match=error), stranger.transaction():
                call(stranger, "items", *arguments)


def test_the_function_is_replaced_when_its_columns_change(connection: Connection) -> None:
    table = replace(
        vector_table(4),
        metadata=(PgColumn("k", "character varying(9)"), PgColumn("50% Off {x}", "json"), PgColumn("query", "text")),
    )
    older = vector_table(4)
    filled(connection, older, 10)
    install_search_function(connection, older, NONE)
    # As long as it is as it should be, callers keep the plans that they have made for it.
    stored = "SELECT xmin::text, prosrc FROM pg_proc WHERE proname = 'items_search'"
    made = connection.execute(stored).fetchone()
    install_search_function(connection, older, NONE)
    assert connection.execute(stored).fetchone() == made
    install_search_function(connection, older, replace(NONE, oversampling=9))
    assert connection.execute(stored).fetchone() != made
    connection.execute("DROP TABLE items")
    create(connection, table)
    connection.execute(
        "INSERT INTO items SELECT 1, 'a', '{\"x\": 1}', 'q', 'c', '[1,1,1,1]', B'1111', 'f', 'm', 1, now()"
    )
    install_search_function(connection, table, NONE)
    assert call(connection, "items", "'[1,1,1,1]'") == [(1, "a", {"x": 1}, "q", "c", 0.0)]
    assert len(call(connection, "items", "query_ => '[1,1,1,1]', k_ => 1")) == 1
    hits = search(
        connection,
        table,
        NONE,
        SearchRequest(np.ones(4, np.float32), 1, where="\"50% Off {x}\" LIKE '%x%' AND k = 'a'"),
    )
    assert [hit.metadata["50% Off {x}"] for hit in hits] == [{"x": 1}]
    # From vector to halfvec: one function is left, because a call could not choose between two.
    connection.execute("DROP TABLE items")
    half = replace(table, precision="float16")
    create(connection, half)
    install_search_function(connection, half, NONE)
    assert connection.execute("SELECT count(*) FROM pg_proc WHERE proname = 'items_search'").fetchone() == (1,)
    # A function that a user's view depends on is not dropped.
    connection.execute("CREATE VIEW v AS SELECT * FROM items_search('[1,1,1,1]')")
    with pytest.raises(TargetError, match="items_search cannot be replaced"):
        install_search_function(connection, older, NONE)


def test_long_names_are_cut_apart(connection: Connection) -> None:
    names = ["ä" * 30 + "x", "ä" * 30 + "y"]
    tables = [replace(vector_table(4), name=name) for name in names]
    made: list[str] = []
    for table in tables:
        filled(connection, table, 10)
        made.append(install_search_function(connection, table, NONE))
        report = ensure_index(connection, table, FLOAT)
        assert report.index
        assert len(report.index.name.encode()) <= 63
        assert not ensure_index(connection, table, FLOAT).built
    assert len(set(made)) == 2


def test_a_table_with_vectors_missing(connection: Connection) -> None:
    table: VectorTable = vector_table(4)
    create(connection, table)
    fill(connection, table, np.eye(4, dtype=np.float32))
    connection.execute("UPDATE items SET embedding = NULL, embedding_bits = NULL WHERE id = 0")
    ensure_index(connection, table, BITS)
    for choice in (NONE, BITS):
        assert sorted(ids(search(connection, table, choice, SearchRequest(np.ones(4, np.float32), 10)))) == [1, 2, 3]


def test_settings_end_with_the_search(direct_url: str, connection: Connection) -> None:
    table = vector_table(4)
    filled(connection, table, 10)
    with connect(direct_url) as other:
        search(other, table, BITS, SearchRequest(np.ones(4, np.float32), 3))
        assert other.execute("SHOW enable_seqscan").fetchone() == ("on",)
