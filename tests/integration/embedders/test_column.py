"""Vectors that the source brings: every format they can have, and every defect."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rowvec.embedders import column as module
from rowvec.embedders import embed_query, open_embedder
from rowvec.embedders.protocol import Embedder
from rowvec.errors import UsageError
from rowvec.operations.audit import audit
from rowvec.pipeline import embedders
from rowvec.postgres.connection import Connection
from tests.support import paintings

numbers = st.floats(2.0**-20, 2.0**20, width=32) | st.floats(-(2.0**20), -(2.0**-20), width=32)
rows = st.integers(1, 5).flatmap(lambda d: st.lists(st.lists(numbers, min_size=d, max_size=d), min_size=1, max_size=20))


def _column(dimensions: int) -> Embedder:
    return open_embedder(embedders.ColumnEmbedder(kind="column", column="v", dimensions=dimensions))


def _written(row: list[float], style: str) -> str:
    texts = [repr(x) for x in row]
    if style == "json":
        return json.dumps(row)
    if style == "array":
        return "{" + ",".join(texts) + "}"
    if style == "numpy":
        return "[" + " ".join(texts).replace(".0 ", ". ") + "]"
    return "  ".join(texts)


@settings(deadline=None)
@given(rows, st.sampled_from(["json", "array", "numpy", "spaces"]))
def test_every_format_is_read_to_the_bit(rows: list[list[float]], style: str) -> None:
    (answer,) = _column(len(rows[0])).embed(_written(row, style) for row in rows)
    assert answer.positions.tolist() == list(range(len(rows)))
    np.testing.assert_array_equal(answer.vectors, np.array(rows, np.float32))
    assert not answer.rejected


def test_what_postgres_writes_is_read_to_the_bit(connection: Connection) -> None:
    drawn = np.random.default_rng(0).standard_normal((50, 33)).astype(np.float32)
    drawn[0, :3] = 1e-20, 3.4e18, -0.0
    for cast in ("vector", "real[]", "double precision[]"):
        texts = [
            row[0]
            for row in connection.execute(
                "SELECT CASE %(cast)s WHEN 'vector' THEN v::real[]::vector::text WHEN 'real[]' THEN v::real[]::text "
                "ELSE v::text END FROM jsonb_array_elements(%(rows)s::jsonb) WITH ORDINALITY AS r (j, n), "
                "LATERAL (SELECT array_agg(x::float8 ORDER BY i) FROM jsonb_array_elements_text(j) "
                "WITH ORDINALITY AS e (x, i)) AS a (v) ORDER BY n",
                {"cast": cast, "rows": json.dumps(drawn.astype(float).tolist())},
            ).fetchall()
        ]
        (answer,) = _column(33).embed(texts)
        assert len(answer.positions) == 50
        np.testing.assert_array_equal(answer.vectors, drawn)


@pytest.mark.parametrize(
    ("text", "detail"),
    [
        ("[1,2]", "2 numbers, and the pipeline wants 3"),
        ("[1,2,3,4]", "4 numbers"),
        ("[]", "0 numbers"),
        ("", "0 numbers"),
        ("[1,2,x]", "no list of numbers"),
        ("{1,NULL,3}", "no list of numbers"),
        ("{{1,2},{3}}", "no list of numbers"),
        ("{1:1,3:2}/5", "numbers"),
        ("[1,2,3],[4", "numbers"),
        ("[1,,3]", "no list of numbers"),
        ("[1,2,NaN]", "NaN"),
        ("[1,2,null]", "NaN"),
        ("{1,2,Infinity}", "infinity"),
        ("[1,2,-inf]", "infinity"),
        ("[1,2,1e39]", "infinity"),
        ("[0,0,-0]", "zero"),
        ("[1e-30,0,0]", "norm"),
        ("[1e30,0,0]", "norm"),
        ("half a \ud800 pair", "numbers"),
    ],
)
def test_a_bad_vector_is_rejected_and_the_others_are_embedded(text: str, detail: str) -> None:
    (answer,) = _column(3).embed(["[1,2,3]", text, "{4,5,6}"])
    assert answer.positions.tolist() == [0, 2]
    np.testing.assert_array_equal(answer.vectors, [[1, 2, 3], [4, 5, 6]])
    assert answer.rejected.keys() == {1}
    assert answer.rejected[1].reason == "invalid_vector"
    assert detail in answer.rejected[1].detail


def test_positions_run_through_all_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ANSWER_NUMBERS", 8)
    texts = [f"[{i},1]" if i % 5 else "[1]" for i in range(23)]
    answers = list(_column(2).embed(iter(texts)))
    assert len(answers) == 6
    found = {int(p): row[0] for answer in answers for p, row in zip(answer.positions, answer.vectors, strict=True)}
    rejected = {position for answer in answers for position in answer.rejected}
    assert rejected == {0, 5, 10, 15, 20}
    assert found == {i: i for i in range(23) if i % 5}


def test_no_vector_at_all_is_no_answer() -> None:
    assert list(_column(3).embed([])) == []


def test_a_query_must_be_a_vector() -> None:
    embedder = _column(3)
    assert not embedder.paid
    assert embedder.identity.provider == "column"
    np.testing.assert_array_equal(embed_query(embedder, "[1, 2, 3]"), [1, 2, 3])
    with pytest.raises(UsageError, match="vector of 3 numbers"):
        embed_query(embedder, "a painting of the sea")


def test_values_too_small_for_float16_have_the_bits_that_the_table_gives_them(
    source: Connection, tmp_path: Path
) -> None:
    """A thousand of a million vectors of 1,536 dimensions have such a value: a run must not fail because of them."""
    source.execute("ALTER TABLE paintings ADD COLUMN given text")
    source.execute("UPDATE paintings SET given = '[1, ' || id || ', 1e-9, -1e-9]'")
    pipeline = paintings.pipeline(
        str(tmp_path / "artifacts"),
        embedder={"kind": "column", "column": "given", "dimensions": 4},
        target={"precision": "float16"},
    )
    assert paintings.sync(pipeline).consistent
    assert audit(pipeline).consistent
