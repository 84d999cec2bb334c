"""Full text and vectors ranked together: rows of one list alone are found, and the fusion is the published one."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rowvec.errors import UsageError
from rowvec.index.build import ensure_index
from rowvec.operations import search as dry_run
from rowvec.pipeline import Pipeline
from rowvec.pipeline.model import Search
from rowvec.postgres.connection import Connection
from rowvec.postgres.vector_index import IndexChoice
from rowvec.postgres.vector_table import VectorTable
from rowvec.searches.hybrid import Hybrid, drop_text_indexes, ensure_text_index, hybrid_search
from rowvec.searches.hybrid_function import install_hybrid_function
from rowvec.searches.query import search
from rowvec.searches.request import SearchRequest
from tests.support.paintings import rebuild, sync
from tests.support.vector_tables import filled, vector_table

ENGLISH = Hybrid(language="english")
NONE = IndexChoice(kind="none", reason="")
BITS = IndexChoice(kind="hnsw", on="bits", opclass="bit_hamming_ops", reason="")
WORDS = ("harbour", "storm", "portrait", "ships", "Rembrandt", "K491", "winter", "mill")


def written(connection: Connection, table: VectorTable, rows: int) -> npt.NDArray[np.float32]:
    """Rows whose contents are words of ``WORDS``, unrelated to their vectors."""
    vectors = filled(connection, table, rows)
    random = np.random.default_rng(3)
    for i in range(rows):
        text = " ".join(random.choice(WORDS[:5], size=random.integers(1, 6)))
        connection.execute("UPDATE items SET content = %s WHERE id = %s", (text, i))
    return vectors


def fused(by_vector: list[int], by_words: list[int], k: int) -> list[tuple[int, float]]:
    """Cormack, Clarke and Buettcher 2009, in plain Python."""
    scores: dict[int, float] = {}
    for found in (by_vector, by_words):
        for rank, key in enumerate(found, 1):
            scores[key] = scores.get(key, 0.0) + 1 / (60 + rank)
    return sorted(scores.items(), key=lambda item: (-item[1], item[0]))[:k]


def by_words(connection: Connection, words: str, where: str, depth: int) -> list[int]:
    rows = connection.execute(
        "SELECT id FROM items, websearch_to_tsquery('english', %s) AS q WHERE to_tsvector('english', content) @@ q"
        " AND (%s = '' OR year >= 1100)"
        " ORDER BY ts_rank_cd(to_tsvector('english', content), q) DESC, id LIMIT %s",
        (words, where, depth),
    )
    return [row[0] for row in rows]


def test_what_one_side_alone_finds_comes_up(connection: Connection) -> None:
    table = vector_table(32)
    vectors = written(connection, table, 600)
    far = int(np.argmin(vectors @ vectors[5]))
    connection.execute("UPDATE items SET content = 'etching K491 on laid paper' WHERE id = %s", (far,))
    connection.execute("UPDATE items SET content = NULL WHERE id = 5")
    assert ensure_text_index(connection, table, ENGLISH)
    for choice in (NONE, BITS):
        ensure_index(connection, table, choice)
        hits = hybrid_search(connection, table, choice, ENGLISH, "K491", SearchRequest(vectors[5], 5))
        found = {hit.key["id"]: hit for hit in hits}
        assert found[5].vector_rank == 1
        assert found[5].text_rank is None
        assert found[far].text_rank == 1
        assert found[far].vector_rank is None
        assert found[far].distance > 1  # its own, though the vector did not find it
        assert len(hits) == 5
        # Stop words change nothing in the order by vector; quotes and minus are understood.
        plain = [hit.key["id"] for hit in search(connection, table, choice, SearchRequest(vectors[5], 5))]
        for words in ("", "the of", "zebra", '"laid etching"', "K491 -paper"):
            answer = hybrid_search(connection, table, choice, ENGLISH, words, SearchRequest(vectors[5], 5))
            assert [hit.key["id"] for hit in answer] == plain
    # Both filters are the same.
    hits = hybrid_search(connection, table, BITS, ENGLISH, "K491", SearchRequest(vectors[5], 5, where=f"id <> {far}"))
    assert far not in {hit.key["id"] for hit in hits}


@pytest.fixture
def gallery(connection: Connection) -> tuple[Connection, VectorTable, npt.NDArray[np.float32]]:
    table = vector_table(16)
    vectors = written(connection, table, 300)
    ensure_text_index(connection, table, ENGLISH)
    install_hybrid_function(connection, table, NONE, ENGLISH)
    return connection, table, vectors


@given(
    row=st.integers(0, 299),
    words=st.lists(st.sampled_from([*WORDS, "or", "-ships"]), max_size=3).map(" ".join),
    k=st.integers(1, 80),
    where=st.sampled_from(["", "year >= 1100"]),
)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_fusion_is_the_published_one(gallery: Any, row: int, words: str, k: int, where: str) -> None:
    connection, table, vectors = gallery
    depth = max(4 * k, 50)
    near = [
        hit.key["id"]
        for hit in search(connection, table, NONE, SearchRequest(vectors[row], depth, where=where or None))
    ]
    expected = fused(near, by_words(connection, words, where, depth), k)
    hits = hybrid_search(connection, table, NONE, ENGLISH, words, SearchRequest(vectors[row], k, where=where or None))
    assert [(hit.key["id"], round(hit.score or 0, 12)) for hit in hits] == [(i, round(s, 12)) for i, s in expected]
    if not where:
        rows = connection.execute(
            "SELECT id, score FROM items_hybrid_search(%s, %s, %s)", (json.dumps(vectors[row].tolist()), words, k)
        )
        assert [(i, round(s, 12)) for i, s in rows] == [(i, round(s, 12)) for i, s in expected]


def test_the_function_takes_the_filter(gallery: Any) -> None:
    connection, _, vectors = gallery
    text = json.dumps(vectors[3].tolist())
    rows = connection.execute(
        "SELECT * FROM items_hybrid_search(%s, 'storm', filter => '{\"author\": \"author 3\"}')", (text,)
    ).fetchall()
    assert {row[1] for row in rows} == {"author 3"}
    assert len(rows) == 3
    assert rows[0][0] == 3
    assert rows[0][-2] == 1  # vector_rank


def test_the_text_index_is_used_and_kept_valid(connection: Connection) -> None:
    table = vector_table(8)
    written(connection, table, 200)
    name = "items_rowvec_text_english"
    assert ensure_text_index(connection, table, ENGLISH)
    assert not ensure_text_index(connection, table, ENGLISH)
    with connection.transaction():
        connection.execute("SET LOCAL enable_seqscan = off")
        plan = connection.execute(
            "EXPLAIN SELECT id FROM items AS t WHERE to_tsvector('english'::regconfig, t.content)"
            " @@ websearch_to_tsquery('english'::regconfig, 'storm')"
        ).fetchall()
    assert any(name in row[0] for row in plan)
    # An interrupted build leaves an invalid index of the same name, which must not be taken for a valid one.
    connection.execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid = %s::regclass", (name,))
    assert ensure_text_index(connection, table, ENGLISH)
    valid = "SELECT indisvalid FROM pg_index WHERE indexrelid = %s::regclass"
    assert connection.execute(valid, (name,)).fetchone() == (True,)
    # Another language needs another index, and only one index is kept.
    assert ensure_text_index(connection, table, Hybrid(language="german"))
    assert connection.execute("SELECT to_regclass(%s)", (name,)).fetchone() == (None,)
    with pytest.raises(UsageError, match="klingon"):
        ensure_text_index(connection, table, Hybrid(language="klingon"))
    assert drop_text_indexes(connection, table) == ("items_rowvec_text_german",)


def test_a_sync_makes_the_hybrid_function_if_the_pipeline_wants_it_and_drops_it_if_not(
    source: Connection, paintings: Pipeline
) -> None:
    hybrid = paintings.model_copy(update={"search": Search(hybrid=True)})
    source.execute("UPDATE paintings SET title = 'Xanthippe' WHERE id = 31")
    sync(hybrid)
    found = [hit.as_json() for hit in dry_run.search(hybrid, "the number 7", 5, mode="hybrid", words="xanthippe")]
    by_words = next(one for one in found if one["id"] == 31)
    assert by_words["text_rank"] == 1
    assert {one["id"] for one in found} >= {31, 7}
    assert [one["score"] for one in found] == sorted((one["score"] for one in found), reverse=True)
    count = "SELECT count(*) FROM pg_proc WHERE proname = 'paintings_hybrid_search'"
    assert source.execute(count).fetchone() == (1,)
    with pytest.raises(UsageError, match=r"search\.hybrid"):
        dry_run.search(paintings, "x", 5, mode="hybrid")
    with pytest.raises(UsageError, match="words are for mode hybrid"):
        dry_run.search(hybrid, "x", 5, mode="exact", words="y")
    sync(paintings)
    assert source.execute(count).fetchone() == (0,)
    assert source.execute("SELECT count(*) FROM pg_indexes WHERE indexdef ~ 'to_tsvector'").fetchone() == (0,)


def test_a_rebuild_gives_the_new_table_its_own_index_and_the_next_sync_builds_no_other(
    source: Connection, paintings: Pipeline
) -> None:
    hybrid = paintings.model_copy(update={"search": paintings.search.model_copy(update={"hybrid": True})})
    sync(hybrid)
    longer = hybrid.model_copy(update={"embedder": hybrid.embedder.model_copy(update={"dimensions": 128})})
    assert rebuild(longer).switched
    on_table = (
        "SELECT indexname FROM pg_indexes WHERE schemaname = 'vectors' AND tablename = 'paintings'"
        " AND indexname LIKE '%_text_%'"
    )
    assert len(built := source.execute(on_table).fetchall()) == 1
    sync(longer)
    assert source.execute(on_table).fetchall() == built
