"""Sparse vectors without a database: equal whether read from Arrow, the wire format, text or dense vectors."""

from __future__ import annotations

import struct
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rowvec.embedders import embed_query, open_embedder
from rowvec.errors import ArtifactCorrupt
from rowvec.index.recall import distances
from rowvec.pipeline import embedders
from rowvec.postgres.columns import PgColumn
from rowvec.postgres.copy_encoder import Encoder
from rowvec.postgres.vector_table import Metric
from rowvec.sources.files.rows import is_vector, vector_bytes, vector_text
from rowvec.stages.vector_spool import open_spool
from rowvec.vectors import sparse
from rowvec.vectors.layout import Layout, dense
from rowvec.vectors.sparse import SparseVectors
from tests.support.sparse_vectors import Row, answers_of, assert_same, made, sparse_rows

_values = st.floats(width=32, allow_nan=False, allow_infinity=False).filter(bool)
_modest = st.floats(2.0**-20, 2.0**20, width=32) | st.floats(-(2.0**20), -(2.0**-20), width=32)
_close = st.floats(2.0**-4, 2.0**4, width=32)


def _text(dimensions: int, row: Row) -> str:
    return "{" + ",".join(f"{i + 1}:{v!r}" for i, v in row.items()) + f"}}/{dimensions}"


@given(sparse_rows(_values))
def test_arrow_and_the_wire_give_the_very_vectors_back(drawn: tuple[int, list[Row]]) -> None:
    dimensions, rows = drawn
    vectors = made(dimensions, rows)
    assert_same(sparse.of_arrow(vectors.arrow(), dimensions), vectors)
    sent = vectors.wires().to_pylist()
    for wire, row in zip(sent, rows, strict=True):
        pairs = sorted(row.items())
        wanted = struct.pack(f">iii{len(row)}i", dimensions, len(row), 0, *(i for i, _ in pairs))
        assert wire == wanted + struct.pack(f">{len(row)}f", *(v for _, v in pairs))
    assert_same(sparse.of_wires(sent, dimensions), vectors)


@given(sparse_rows(_values), st.data())
def test_selected_vectors_come_in_the_requested_order(drawn: tuple[int, list[Row]], data: st.DataObject) -> None:
    dimensions, rows = drawn
    vectors = made(dimensions, rows)
    which = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=9) if rows else st.just([]))
    assert_same(vectors[np.array(which, np.int64)], made(dimensions, [rows[i] for i in which]))
    mask = np.array([i in which for i in range(len(rows))], np.bool_)
    assert_same(vectors[mask], made(dimensions, [row for i, row in enumerate(rows) if i in which]))
    assert_same(sparse.together([vectors[i : i + 1] for i in range(len(rows))], dimensions), vectors)
    sliced = vectors.arrow().slice(1)
    assert_same(sparse.of_arrow(sliced, dimensions), made(dimensions, rows[1:]))


@given(st.integers(1, 9).flatmap(lambda d: st.lists(st.lists(_values | st.just(0.0), min_size=d, max_size=d))))
def test_dense_vectors_come_back_from_their_nonzeros(rows: list[list[float]]) -> None:
    full = np.array(rows, np.float32).reshape(len(rows), -1 if rows else 3)
    found = sparse.of_dense(full)
    np.testing.assert_array_equal(found.dense(), full)
    assert found.values.all()


@given(sparse_rows(_close, least=1), sparse_rows(_close, least=1), st.sampled_from(["cosine", "l2", "inner_product"]))
def test_distances_are_those_of_the_dense_vectors(
    drawn: tuple[int, list[Row]], queried: tuple[int, list[Row]], metric: Metric
) -> None:
    vectors, queries = (made(9, [{i % 9: v for i, v in row.items()} for row in rows]) for _, rows in (drawn, queried))
    wide = vectors.dense().astype(np.float64), queries.dense().astype(np.float64)
    np.testing.assert_allclose(distances(metric, vectors, queries), distances(metric, *wide), rtol=1e-6, atol=1e-5)


@given(sparse_rows(_values))
def test_what_is_copied_is_what_pgvector_sends(drawn: tuple[int, list[Row]]) -> None:
    """The encoder's stream is parsed again; it has some NULLs and a second column."""
    dimensions, rows = drawn
    vectors = made(dimensions, rows)
    valid = [i % 3 != 1 for i in range(len(rows))]
    column = vectors.arrow().take(pa.array([i if v else None for i, v in enumerate(valid)], pa.int64()))
    encoder = Encoder([PgColumn("v", f"sparsevec({dimensions})"), PgColumn("id", "bigint")])
    batch = pa.record_batch({"id": pa.array(range(len(rows)), pa.int64()), "v": column})
    stream = b"".join(bytes(block) for block in encoder.encode(batch))
    at = 0
    for i, wire in enumerate(vectors.wires().to_pylist()):
        fields, length = struct.unpack_from(">hi", stream, at)
        at += 6
        assert (fields, length) == (2, len(wire) if valid[i] else -1)
        if valid[i]:
            assert stream[at : at + length] == wire
            at += length
        assert struct.unpack_from(">iq", stream, at) == (8, i)
        at += 12
    assert at == len(stream)


@given(sparse_rows(_modest, least=1))
def test_texts_are_read_to_the_bit_in_any_order_and_without_zeros(drawn: tuple[int, list[Row]]) -> None:
    dimensions, rows = drawn
    texts = [_text(dimensions, row) for row in rows]
    # pgvector accepts zeros in a text, but does not count them as nonzeros.
    texts = [text.replace("{", "{" + "1:0.0," if 0 not in row else "{") for text, row in zip(texts, rows, strict=True)]
    answers = answers_of(dimensions, texts)
    if not rows:
        assert answers == []
        return
    (answer,) = answers
    assert isinstance(answer.vectors, SparseVectors)
    assert not answer.rejected
    assert_same(answer.vectors, made(dimensions, rows))


_MANY = "{" + ",".join(f"{i}:1" for i in range(1, 16_002)) + "}/20000"


@pytest.mark.parametrize(
    ("text", "detail"),
    [
        ("{20001:1}/20000", "the index 20,001 is not one of 1 to 20,000"),
        ("{0:1}/20000", "the index 0 is not one of 1 to 20,000"),
        ("{99999999999999999999:1}/20000", "is not one of 1 to 20,000"),
        ("{-1:1}/20000", "no sparse vector"),
        ("{1.5:1}/20000", "no sparse vector"),
        ("{7:1,2:1,7:2}/20000", "the index 7 occurs twice"),
        ("{1:NaN}/20000", "NaN"),
        ("{1:null}/20000", "NaN"),
        ("{1:Infinity}/20000", "infinity"),
        ("{1:-inf,2:1}/20000", "infinity"),
        ("{1:1e39}/20000", "infinity"),
        ("{1:1e30}/20000", "norm"),
        ("{1:1e-30}/20000", "norm"),
        ("{}/20000", "zero"),
        ("{1:0,2:-0.0}/20000", "zero"),
        ("{1:1}/30522", "of 30,522 numbers, and the pipeline wants 20,000"),
        ("{1:1}/99999999999", "no sparse vector"),
        (_MANY, "16,001 nonzeros, and pgvector holds at most 16,000"),
        ("{1:1,2}/20000", "no sparse vector"),
        ("{1:1:1}/20000", "no sparse vector"),
        ("{1:}/20000", "no sparse vector"),
        ("{1:one}/20000", "no sparse vector"),
        ("{1:1}/", "no sparse vector"),
        ("1:1/20000", "no sparse vector"),
        ("a picture and/or a text", "no sparse vector"),
        ("{1:[2]}/20000", "no sparse vector"),
        ("3 indices / 2 values", "no sparse vector of numbers, {1:0.5,7:2}/9: '3 indices / 2 values'"),
    ],
)
def test_a_bad_vector_is_rejected_and_the_others_are_not(text: str, detail: str) -> None:
    answers = answers_of(20_000, ["{1:1,5:2}/20000", text, "{20000:.5}/20000", "{3:1.}/20000"])
    rejected = {position: error for answer in answers for position, error in answer.rejected.items()}
    landed = [answer for answer in answers if len(answer.positions)]
    assert len(landed) == 1
    assert landed[0].positions.tolist() == [0, 2, 3]
    assert isinstance(landed[0].vectors, SparseVectors)
    assert_same(landed[0].vectors, made(20_000, [{0: 1, 4: 2}, {19_999: 0.5}, {2: 1}]))
    assert rejected.keys() == {1}
    assert rejected[1].reason == "invalid_vector"
    assert detail in rejected[1].detail


def test_dense_and_sparse_texts_stand_side_by_side() -> None:
    answers = answers_of(3, ["[1,0,2]", "{2:1}/3", "{0,0,1}", "{3:1,1:2}/3"])
    found = {int(p): a.vectors[i] for a in answers for i, p in enumerate(a.positions)}
    assert [type(found[p]) for p in range(4)] == [np.ndarray, SparseVectors, np.ndarray, SparseVectors]
    layout = Layout("float32", 3)
    wanted = [[1, 0, 2], [0, 1, 0], [0, 0, 1], [2, 0, 1]]
    assert [np.asarray(layout.question(found[p])).tolist() for p in range(4)] == wanted


@given(
    st.integers(1, 4).flatmap(lambda d: st.lists(st.lists(_values | st.just(0.0), min_size=d, max_size=d))), st.data()
)
def test_a_spool_gives_back_what_was_put_last_whichever_way_it_came(
    rows: list[list[float]], data: st.DataObject
) -> None:
    wanted = np.array(rows, np.float32).reshape(len(rows), -1 if rows else 3)
    order = np.array(data.draw(st.permutations(range(len(rows)))), np.int64)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(rows)), max_size=3)))
    for precision in ("float32", "sparse"):
        layout = Layout(precision, wanted.shape[1])
        with tempfile.TemporaryDirectory() as folder:
            spool = open_spool(Path(folder), layout, len(rows))
            spool.put(order, np.ones_like(wanted))
            for number, part in enumerate(np.split(order, cuts)):
                spool.put(part, sparse.of_dense(wanted[part]) if number % 2 else wanted[part])
            some = order[: len(rows) // 2]
            np.testing.assert_array_equal(dense(spool.take(some)), wanted[some])
            assert isinstance(spool.take(some), SparseVectors) == (precision == "sparse")


def test_a_query_vector_may_be_sparse() -> None:
    embedder = open_embedder(embedders.ColumnEmbedder(kind="column", column="v", dimensions=3))
    vector = embed_query(embedder, "{3:2}/3")
    assert isinstance(vector, SparseVectors)
    np.testing.assert_array_equal(vector.dense(), [[0, 0, 2]])


@given(st.lists(st.none() | st.dictionaries(st.integers(0, 8), _modest, min_size=1), max_size=6))
def test_structs_of_a_file_are_the_texts_that_pgvector_would_write(rows: list[Row | None]) -> None:
    for index, value in ((pa.int32(), pa.float32()), (pa.uint16(), pa.float64())):
        kind = pa.struct([("indices", pa.list_(index)), ("values", pa.large_list(value))])
        assert is_vector(kind)
        written = [None if row is None else {"indices": list(row), "values": list(row.values())} for row in rows]
        column = pa.array([None, *written], kind).slice(1)
        texts = vector_text(column, 9).to_pylist()
        assert [text is None for text in texts] == [row is None for row in rows]
        assert vector_bytes(column, 9) == [None if text is None else text.encode() for text in texts]
        present = [row for row in rows if row is not None]
        for answer in answers_of(9, [text for text in texts if text is not None]):
            assert isinstance(answer.vectors, SparseVectors)
            assert_same(answer.vectors, made(9, present))


def test_malformed_structs_of_sparse_vectors_are_rejected() -> None:
    kind = pa.struct([("indices", pa.list_(pa.int32())), ("values", pa.list_(pa.float32()))])
    rows = [
        {"indices": [1, 2], "values": [0.5]},
        {"indices": [1, None], "values": [0.5, 1.0]},
        {"indices": [1, 2], "values": [0.5, None]},
        {"indices": [2, 1], "values": [0.5, 1.0]},
        {"indices": [9], "values": [0.5]},
        {"indices": None, "values": None},
    ]
    answers = answers_of(9, vector_text(pa.array(rows, kind), 9).to_pylist())
    rejected = {position: error.detail for answer in answers for position, error in answer.rejected.items()}
    assert rejected == {
        0: "the column holds no sparse vector of numbers, {1:0.5,7:2}/9: '2 indices / 1 values'",
        1: "the index 0 is not one of 1 to 9",
        2: "the vector holds NaN",
        4: "the index 10 is not one of 1 to 9",
        5: "the vector is zero",
    }


def test_columns_that_do_not_hold_vectors_are_recognised() -> None:
    numbers, whole = pa.list_(pa.float32()), pa.list_(pa.int32())
    assert not is_vector(pa.struct([("indices", whole)]))
    assert not is_vector(pa.struct([("indices", numbers), ("values", numbers)]))
    assert not is_vector(pa.struct([("indices", whole), ("values", whole)]))
    assert not is_vector(pa.struct([("indices", pa.int32()), ("values", pa.float32())]))


@pytest.mark.parametrize(
    ("indices", "values"),
    [([2, 1], [1, 1]), ([1, 1], [1, 1]), ([1, 9], [1, 1]), ([-1], [1]), ([1, 2], [1, 0]), ([1], [])],
)
def test_an_artifact_that_holds_no_sound_vectors_is_refused(indices: list[int], values: list[float]) -> None:
    column = pa.array([{"indices": [0], "values": [1]}, {"indices": indices, "values": values}], sparse.ARROW)
    with pytest.raises(ArtifactCorrupt, match="sparse vectors"):
        sparse.of_arrow(column, 9)
