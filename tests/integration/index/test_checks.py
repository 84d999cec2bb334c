"""Each way a stored vector or its index can be wrong is found, with the keys named."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rowvec.index.build import ensure_index
from rowvec.index.checks import MOST_ROWS, check_index, check_vectors
from rowvec.postgres.columns import PgColumn
from rowvec.postgres.connection import Connection
from rowvec.postgres.vector_index import IndexChoice
from rowvec.postgres.vector_table import Precision
from tests.support.vector_tables import create, filled, vector_table

BITS = IndexChoice(kind="hnsw", on="bits", opclass="bit_hamming_ops", reason="")


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_sound_table_passes(connection: Connection, precision: Precision) -> None:
    table = vector_table(16, precision=precision)
    filled(connection, table, 200)
    checks = check_vectors(connection, table)
    assert [check.name for check in checks] == ["embedding_missing", "dimensions", "not_finite", "zero_norm", "bits"]
    assert all(check.passed for check in checks)


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_bad_rows_are_counted_and_named(connection: Connection, precision: Precision) -> None:
    table = vector_table(4, precision=precision)
    filled(connection, table, 500)
    kind = "vector" if precision == "float32" else "halfvec"
    connection.execute("UPDATE items SET embedding = NULL WHERE id = 1")
    connection.execute("UPDATE items SET embedding = '[0,0,0,0]', embedding_bits = B'0000', run_id = 2 WHERE id = 2")
    connection.execute("UPDATE items SET embedding_bits = ~embedding_bits WHERE id >= 300")
    # Only a table whose column has lost its length can hold these values.
    connection.execute(f"ALTER TABLE items ALTER COLUMN embedding TYPE {kind}".encode())
    connection.execute("UPDATE items SET embedding = '[1,1,1]', embedding_bits = NULL WHERE id = 3")
    found = {check.name: check for check in check_vectors(connection, table)}
    assert {name: check.count for name, check in found.items()} == {
        "embedding_missing": 1,
        "dimensions": 1,
        "not_finite": 0,
        "zero_norm": 1,
        "bits": 202,
    }
    assert found["embedding_missing"].rows == (("1",),)
    assert found["dimensions"].rows == (("3",),)
    assert found["bits"].rows[:3] == (("1",), ("3",), ("300",))
    assert len(found["bits"].rows) == MOST_ROWS
    of_run = {check.name: check.count for check in check_vectors(connection, table, run_id=2)}
    assert of_run == {"embedding_missing": 0, "dimensions": 0, "not_finite": 0, "zero_norm": 1, "bits": 0}


def test_a_composite_key_is_named_whole(connection: Connection) -> None:
    table = replace(vector_table(2, bits=0), key=(PgColumn("a b", "text"), PgColumn("n", "integer")), metadata=())
    create(connection, table)
    connection.execute("INSERT INTO items VALUES ('x', 7, 'c', '[0,0]', 'f', 'm', 1, now())")
    assert [check.rows for check in check_vectors(connection, table) if not check.passed] == [(("x", "7"),)]
    # Zero is a valid vector if the metric does not depend on direction.
    assert all(check.passed for check in check_vectors(connection, replace(table, metric="l2")))


def test_an_index_that_is_missing_or_invalid_fails(connection: Connection) -> None:
    table = vector_table(8)
    filled(connection, table, 300)
    assert check_index(connection, table, IndexChoice(kind="none", reason="")) == []
    assert [check.passed for check in check_index(connection, table, BITS)] == [False, False]
    index = ensure_index(connection, table, BITS).index
    assert index
    assert [check.passed for check in check_index(connection, table, BITS)] == [True, True]
    # Valid, but not what was chosen.
    other = replace(BITS, on="float", opclass="vector_cosine_ops")
    assert [check.passed for check in check_index(connection, table, other)] == [False, False]
    connection.execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid = %s::regclass", (index.name,))
    failed = check_index(connection, table, BITS)
    assert [check.passed for check in failed] == [False, False]
    assert index.name in failed[0].detail
