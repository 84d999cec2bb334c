"""Recall is measured against distances that are computed without the index."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, LiteralString

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rowvec.index.build import ensure_index
from rowvec.index.recall import distances, interval, measure
from rowvec.pipeline.model import Recall
from rowvec.postgres.connection import Connection
from rowvec.postgres.vector_index import IndexChoice
from rowvec.postgres.vector_table import Metric
from tests.support.vector_tables import clustered, create, fill, filled, vector_table

BITS = IndexChoice(kind="hnsw", on="bits", opclass="bit_hamming_ops", reason="")
FLOAT = IndexChoice(kind="hnsw", on="float", opclass="vector_cosine_ops", reason="")


def test_recall_of_a_good_and_of_a_poor_index(connection: Connection) -> None:
    table = vector_table(64)
    filled(connection, table, 2_000)
    wanted = Recall(k=10, at_least=0.9, queries=60)
    report = ensure_index(connection, table, FLOAT)
    good = measure(connection, table, FLOAT, wanted)
    assert good == measure(connection, table, FLOAT, wanted)
    assert report.index
    assert good.index == report.index.name
    assert good.queries == 60
    assert good.passed
    assert good.recall is not None
    assert good.low <= good.recall <= good.high
    ensure_index(connection, table, BITS)
    poor = measure(connection, table, replace(BITS, oversampling=1), wanted)
    better = measure(connection, table, replace(BITS, oversampling=16), wanted)
    assert not poor.passed
    assert poor.recall is not None
    assert better.recall is not None
    assert poor.recall < 0.8 < better.recall


@pytest.mark.parametrize(("metric", "opclass"), [("cosine", "cosine"), ("l2", "l2"), ("inner_product", "ip")])
@pytest.mark.parametrize("stored", ["vector", "halfvec"])
def test_an_index_that_finds_everything_has_recall_1(
    connection: Connection, metric: Metric, opclass: str, stored: str
) -> None:
    precision: Any = "float32" if stored == "vector" else "float16"
    table = vector_table(24, metric=metric, precision=precision, bits=0)
    vectors = 90 * np.random.default_rng(1).standard_normal((400, 24)).astype(np.float32)
    # Two copies of every vector and many of one: there are ties, and neighbours at distance zero.
    vectors[200:] = vectors[:200]
    vectors[150:190] = vectors[0]
    create(connection, table)
    fill(connection, table, vectors)
    choice = IndexChoice(kind="ivfflat", on="float", opclass=f"{stored}_{opclass}_ops", lists=1, reason="")
    ensure_index(connection, table, choice)
    report = measure(connection, table, choice, Recall(k=10, queries=60))
    assert report.index is not None
    assert (report.recall, report.queries) == (1.0, 60)


READY: LiteralString = "UPDATE pg_index SET indisready = %s WHERE indexrelid = 'part_rowvec_00000000'::regclass"


def test_an_index_that_lacks_rows_has_a_low_recall(connection: Connection) -> None:
    """Every row has a twin, and the index holds only one of the two: it finds half of the nearest neighbours."""
    table = vector_table(16, bits=0)
    vectors = np.tile(clustered(600, 16), (2, 1))
    create(connection, table)
    fill(connection, table, vectors[:600])
    connection.execute("CREATE INDEX part_rowvec_00000000 ON items USING hnsw (embedding vector_cosine_ops)")
    connection.execute(READY, (False,))
    fill(connection, table, vectors[600:], first=600)
    connection.execute(READY, (True,))
    report = measure(connection, table, FLOAT, Recall(k=1, at_least=0.95, queries=100))
    assert report.index == "part_rowvec_00000000"
    assert report.recall is not None
    assert 0.3 < report.recall < 0.7
    assert not report.passed


def test_tables_too_small_and_too_large(connection: Connection) -> None:
    table = vector_table(4)
    create(connection, table)
    ensure_index(connection, table, BITS)
    assert measure(connection, table, BITS, Recall()).recall is None
    fill(connection, table, np.ones((1, 4), np.float32))
    assert measure(connection, table, BITS, Recall()).recall is None
    fill(connection, table, np.ones((1, 4), np.float32), first=1)
    two = measure(connection, table, BITS, Recall(k=10))
    assert (two.recall, two.queries) == (1.0, 2)
    large = measure(connection, table, BITS, Recall(), most_bytes=1)
    assert large.recall is None
    assert "limit" in large.note
    assert measure(connection, table, IndexChoice(kind="none", reason=""), Recall()).recall == 1.0


@given(mean=st.floats(0, 1), trials=st.integers(1, 10_000))
def test_the_interval_holds_the_mean(mean: float, trials: int) -> None:
    low, high = interval(mean, trials)
    assert 0 <= low <= mean + 1e-12
    assert mean - 1e-12 <= high <= 1


@pytest.mark.parametrize("metric", ["cosine", "l2", "inner_product"])
def test_distances_are_those_of_the_database(connection: Connection, metric: Metric) -> None:
    operator = {"cosine": "<=>", "l2": "<->", "inner_product": "<#>"}[metric]
    random = np.random.default_rng(3)
    x, q = random.standard_normal((40, 12)), random.standard_normal((3, 12))
    x[0] = 0
    x[1] = q[1]
    ours = distances(metric, x, q)
    for i in range(3):
        for j in range(40):
            row = connection.execute(
                f"SELECT %s::vector {operator} %s::vector".encode(), (str(x[j].tolist()), str(q[i].tolist()))
            ).fetchone()
            assert row
            assert ours[i, j] == (math.inf if math.isnan(row[0]) else pytest.approx(row[0], abs=1e-5))
