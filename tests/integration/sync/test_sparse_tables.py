"""A pipeline of sparse vectors: everything that holds for dense ones holds for them, from the source to the search."""

from __future__ import annotations

import json
import logging
from datetime import timedelta
from pathlib import Path
from typing import Any, LiteralString, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from psycopg import sql
from pydantic import ValidationError

from rowvec.errors import UsageError
from rowvec.index.build import ensure_index, index_state
from rowvec.index.checks import check_index, check_vectors
from rowvec.index.choice import Facts, Sparsity, choose
from rowvec.index.recall import measure
from rowvec.index.tuning.tuner import Budget, tune
from rowvec.operations import rejects
from rowvec.operations import search as search_stage
from rowvec.operations.audit import audit
from rowvec.operations.index import maintain
from rowvec.operations.prune import prune
from rowvec.operations.rebuild import rollback
from rowvec.operations.repair import prepare_repair
from rowvec.operations.restore import finish_restore, restore_rows, restoring
from rowvec.pipeline import Pipeline
from rowvec.pipeline.indexes import Index
from rowvec.pipeline.model import Recall
from rowvec.postgres.connection import Connection, connect
from rowvec.postgres.vector_index import IndexChoice
from rowvec.searches.index_kinds.hnsw import LIMIT_NONZEROS
from rowvec.searches.query import explain, search
from rowvec.searches.request import SearchRequest
from rowvec.searches.sql_function import install_search_function
from rowvec.store.artifact import SPARSE_FORMAT
from rowvec.vectors import sparse
from rowvec.vectors.layout import Layout
from rowvec.vectors.sparse import SparseVectors
from tests.support import paintings
from tests.support.cli_process import PrefectServer, start, write_pipeline
from tests.support.vector_tables import create, vector_table

DIMENSIONS = 30_522
NONE = IndexChoice(kind="none", reason="")

_GIVEN = (
    "UPDATE paintings SET given = (SELECT ('{' || string_agg(((id * 7 + i * 131) % 30522 + 1) || ':' || (1 + i / 7.0),"
    " ',') || '}/30522')::sparsevec FROM generate_series(1, 60) AS i)"
)
_AGREE = (
    "SELECT count(*) FROM paintings AS s JOIN vectors.paintings AS t USING (id) WHERE s.given::sparsevec = t.embedding"
)


@pytest.fixture
def given(source: Connection) -> Connection:
    """The paintings with a sparse vector each."""
    source.execute("ALTER TABLE paintings ADD COLUMN given sparsevec(30522)")
    source.execute(_GIVEN)
    return source


def pipeline(folder: Path, dimensions: int = DIMENSIONS, **parts: dict[str, Any]) -> Pipeline:
    """The paintings' pipeline over the column ``given``, sparse unless ``parts`` say otherwise."""
    embedder = {"kind": "column", "column": "given", "dimensions": dimensions}
    target = {"precision": "sparse", **parts.pop("target", {})}
    return paintings.pipeline(str(folder / "artifacts"), embedder=embedder, target=target, **parts)


def one(connection: Connection, statement: str) -> Any:
    """The one value that a query returns."""
    row = connection.execute(sql.SQL(cast("LiteralString", statement))).fetchone()
    return row and row[0]


def drawn(rows: int, *, dimensions: int = DIMENSIONS, nonzeros: int = 24) -> SparseVectors:
    """Vectors with about ``nonzeros`` nonzeros each, in groups of about 20 that share a topic."""
    random = np.random.default_rng(7)
    topics = [random.choice(dimensions, 2 * nonzeros, replace=False) for _ in range(rows // 20 + 1)]
    found: list[np.ndarray[Any, Any]] = []
    for row in range(rows):
        of_topic = random.choice(topics[row % len(topics)], nonzeros * 3 // 4, replace=False)
        # As in any language, some words occur in most texts.
        everywhere = random.integers(0, 50, nonzeros // 4)
        found.append(np.unique(np.concatenate([of_topic, everywhere])))
    starts = sparse.ends_of(np.array([len(one) for one in found], np.int64))
    values = random.gamma(2.0, 0.5, starts[-1]).astype(np.float32) + np.float32(0.01)
    return SparseVectors(dimensions, starts, np.concatenate(found).astype(np.int32), values)


def fill(connection: Connection, vectors: SparseVectors, metric: Any = "cosine") -> Any:
    """A vector table of these vectors; the year is one of 1,000."""
    table = vector_table(vectors.dimensions, precision="sparse", bits=0, metric=metric)
    create(connection, table)
    with connection.cursor() as cursor, cursor.copy("COPY items FROM STDIN") as copy:
        for i, vector in enumerate(vectors):
            pairs = zip((vector.indices + 1).tolist(), vector.values.tolist(), strict=True)
            text = "{" + ",".join(f"{index}:{value!r}" for index, value in pairs) + f"}}/{vectors.dimensions}"
            copy.write_row(
                [i, f"author {i % 10}", 1000 + i % 1000, f"text {i}", text, b"f" * 32, b"m" * 32, 1, "2024-01-01"]
            )
    connection.execute_alone("VACUUM (ANALYZE) public.items", {})
    return table


def test_edits_are_followed_audited_repaired_and_restored(
    given: Connection, tmp_path: Path, direct_url: str, another_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = pipeline(tmp_path)
    assert paintings.sync(ours).rows == 50
    assert one(given, "SELECT pg_typeof(embedding)::text FROM vectors.paintings LIMIT 1") == "sparsevec"
    assert paintings.sync(ours).embedded == 0
    given.execute("DELETE FROM paintings WHERE id <= 3")
    given.execute("UPDATE paintings SET author = 'other' WHERE id IN (4, 5)")
    given.execute("UPDATE paintings SET given = '{30522:0.5,1:2}/30522' WHERE id IN (6, 7)")
    given.execute("UPDATE paintings SET given = NULL WHERE id = 8")
    given.execute("UPDATE paintings SET id = 1000 WHERE id = 9")
    report = paintings.sync(ours)
    assert (report.changed, report.metadata_only, report.deleted, report.reused) == (2, 2, 5, 1)
    assert one(given, _AGREE) == 46
    assert audit(ours).consistent

    given.execute("UPDATE vectors.paintings SET embedding = '{3:1}/30522' WHERE id = 11")
    given.execute("UPDATE vectors.paintings SET embedding = '{}/30522' WHERE id = 12")
    given.execute("DELETE FROM vectors.paintings WHERE id = 13")
    found = audit(ours)
    assert (found.counts["corrupt"], found.counts["missing"]) == (2, 1)
    assert {finding.key[0]: finding.reason for finding in found.findings}["12"].startswith("zero_norm")
    prepare_repair(ours)
    assert paintings.sync(ours).embedded == 0
    assert (audit(ours).consistent, one(given, _AGREE)) == (True, 46)

    for artifact in (tmp_path / "artifacts" / "artifacts").rglob("*.parquet"):
        artifact.write_bytes(artifact.read_bytes()[:-9])
    assert not audit(ours).consistent
    prepare_repair(ours)
    last = paintings.sync(ours)
    assert (audit(ours).consistent, one(given, _AGREE), last.embedded) == (True, 46, 0)
    prune(ours, timedelta(0), apply=True, compact=True)
    assert audit(ours).consistent

    rows = "SELECT t::text FROM vectors.paintings AS t ORDER BY id"
    monkeypatch.setenv("ROWVEC_DATABASE_URL", another_url)
    with restoring(ours, None) as restore:
        restored = finish_restore(ours, restore.run, restore_rows(ours, restore))
    assert (restored.consistent, restored.rows, restored.checksum) == (True, 46, last.checksum)
    with connect(another_url) as there, connect(direct_url) as here:
        assert there.execute(rows).fetchall() == here.execute(rows).fetchall()


def test_what_is_known_is_not_read_again_but_the_table_is_its_last_resort(given: Connection, tmp_path: Path) -> None:
    ours = pipeline(tmp_path)
    paintings.sync(ours)
    given.execute("INSERT INTO paintings SELECT id + 100, title, description, author, year, given FROM paintings")
    assert (report := paintings.sync(ours)).reused == 50
    assert report.embedded == 0
    given.execute("DELETE FROM rowvec.embeddings; DELETE FROM rowvec.artifacts")
    given.execute(
        "INSERT INTO paintings SELECT id + 200, title, description, author, year, given FROM paintings WHERE id < 9"
    )
    assert (report := paintings.sync(ours)).reused == 8
    assert report.embedded == 0
    assert one(given, _AGREE) == 108


def test_an_artifact_is_plain_parquet_of_its_own_format(given: Connection, tmp_path: Path) -> None:
    paintings.sync(pipeline(tmp_path))
    (path,) = (tmp_path / "artifacts" / "artifacts").rglob("*.parquet")
    table = pq.read_table(path)
    assert table.schema.metadata[b"rowvec.format"] == SPARSE_FORMAT
    assert "embedding_bits" not in table.schema.names
    by_content = {row["content"]: row["embedding"] for row in table.to_pylist()}
    text = one(given, "SELECT given::text FROM paintings WHERE id = 5")
    pairs = [pair.split(":") for pair in text.partition("}")[0][1:].split(",")]
    wanted = {
        "indices": [int(index) - 1 for index, _ in pairs],
        "values": np.array([value for _, value in pairs], np.float32).tolist(),
    }
    assert by_content["Painting 5\nIt shows the number 5"] == wanted
    # One dense row would take 122,088 bytes.
    assert path.stat().st_size < 50_000


def test_bad_vectors_of_every_kind_are_rejected_one_by_one(source: Connection, tmp_path: Path) -> None:
    source.execute("ALTER TABLE paintings ADD COLUMN given text")
    source.execute("UPDATE paintings SET given = '{7:1,' || id + 10 || ':2}/20000'")
    many = "{" + ",".join(f"{i}:1" for i in range(1, 16_002)) + "}/20000"
    bad = {
        1: ("{20001:1}/20000", "the index 20,001 is not one of 1 to 20,000"),
        2: ("{3:1,3:2}/20000", "occurs twice"),
        3: ("{3:NaN}/20000", "NaN"),
        4: ("{3:1}/30522", "30,522 numbers"),
        5: (many, "16,001 nonzeros"),
        6: ("the sea", "2 numbers"),
        7: ("{}/20000", "zero"),
        8: ("{3:Infinity}/20000", "infinity"),
        9: ("{0:1}/20000", "the index 0"),
    }
    for id_, (text, _) in bad.items():
        source.execute("UPDATE paintings SET given = %s WHERE id = %s", (text, id_))
    source.execute("UPDATE paintings SET given = '{9:3,2:1}/20000' WHERE id = 10")
    ours = pipeline(tmp_path, 20_000)
    report = paintings.sync(ours)
    assert (report.rows, report.rejected) == (41, 9)
    listed = {int(r["key"][0]): r for r in rejects.rejects(ours).as_json()["rejects"]}
    assert listed.keys() == bad.keys()
    for id_, (_, detail) in bad.items():
        assert listed[id_]["reason"] == "invalid_vector"
        assert detail in listed[id_]["detail"]
    assert one(source, "SELECT embedding::text FROM vectors.paintings WHERE id = 10") == "{2:1,9:3}/20000"
    source.execute("UPDATE paintings SET given = '{1:1}/20000' WHERE id <= 9")
    assert paintings.sync(ours).rows == 50


def test_a_file_of_indices_and_values(source: Connection, tmp_path: Path) -> None:
    kind = pa.struct([("indices", pa.list_(pa.int32())), ("values", pa.list_(pa.float32()))])
    vectors = drawn(300)
    rows: list[Any] = vectors.arrow().to_pylist()
    rows[5] = {"indices": [30_522], "values": [1.0]}
    # In the order in which models write them: the largest weight first.
    rows[6] = {"indices": [30_000, 2], "values": [3.0, 1.0]}
    path = tmp_path / "source.parquet"
    pq.write_table(
        pa.table({"id": range(300), "title": [f"t {i}" for i in range(300)], "v": pa.array(rows, kind)}), path
    )
    ours = paintings.pipeline(
        str(tmp_path / "artifacts"),
        source={"kind": "parquet", "path": str(path), "key": ["id"], "content": "{title}"},
        embedder={"kind": "column", "column": "v", "dimensions": DIMENSIONS},
        target={"precision": "sparse"},
    )
    report = paintings.sync(ours)
    assert (report.rows, report.rejected) == (299, 1)
    sent = source.execute("SELECT sparsevec_send(embedding) FROM vectors.paintings WHERE id > 6 ORDER BY id").fetchall()
    assert [wire for (wire,) in sent] == vectors[7:].wires().to_pylist()
    assert one(source, "SELECT embedding::text FROM vectors.paintings WHERE id = 6") == "{3:1,30001:3}/30522"
    assert (paintings.sync(ours).unchanged, audit(ours).consistent) == (299, True)


@pytest.mark.parametrize("metric", ["cosine", "l2", "inner_product"])
def test_the_index_is_used_and_finds_what_an_exact_search_does(connection: Connection, metric: Any) -> None:
    vectors = drawn(500)
    table = fill(connection, vectors, metric)
    choice = choose(
        Facts(
            rows=1_000_000,
            dimensions=DIMENSIONS,
            precision="sparse",
            bits=0,
            metric=metric,
            sparsity=Sparsity(mean=24),
        ),
        Index(),
    )
    assert (choice.kind, choice.on) == ("hnsw", "float")
    built = ensure_index(connection, table, choice).index
    assert built is not None
    assert "sparsevec" in built.definition
    assert built.present.opclass == choice.opclass
    plan = explain(connection, table, choice, SearchRequest(vectors[3], 10))
    assert plan.indexes == {built.name}
    assert not plan.sequential_shortlist
    found = measure(connection, table, choice, Recall(queries=50))
    assert found.index == built.name
    assert found.recall is not None
    # The graph is random, and with l2 the short vectors are near to all others.
    assert found.recall > (0.6 if metric == "l2" else 0.85)
    assert [check.passed for check in (*check_vectors(connection, table), *check_index(connection, table, choice))] == [
        True
    ] * (6 if metric == "cosine" else 5)
    near, exact = (search(connection, table, choice, SearchRequest(vectors[3], 5, mode)) for mode in ("ann", "exact"))
    assert len(near) == len(exact) == 5
    assert all(a.distance >= b.distance - 1e-6 for a, b in zip(near, exact, strict=True))
    dense = search(connection, table, choice, SearchRequest(vectors[3].dense()[0], 5, "exact"))
    assert dense == exact
    assert all(
        hit.metadata["year"] == 1003
        for hit in search(connection, table, choice, SearchRequest(vectors[3], 5, where="year = 1003"))
    )
    with pytest.raises(UsageError, match="keeps no bits, which mode bits needs: search with mode adaptive"):
        search(connection, table, choice, SearchRequest(vectors[3], 5, "bits"))
    name = install_search_function(connection, table, choice)
    text = one(connection, "SELECT embedding::text FROM items WHERE id = 3")
    for filter_ in (None, json.dumps({"author": "author 3"})):
        statement = f"SELECT id FROM {name}(%s, 5, filter => %s)"  # noqa: S608 # a name that rowvec quotes
        rows = connection.execute(statement, (text, filter_)).fetchall()  # pyright: ignore[reportArgumentType] # ours
        assert len(rows) == 5
        assert filter_ is None or {row[0] % 10 for row in rows} == {3}


def test_recall_is_measured_exactly(connection: Connection) -> None:
    """Recall is compared with the answers of SQL, also for an index that cannot find enough."""
    vectors = drawn(150)
    table = fill(connection, vectors)
    poor = choose(
        Facts(rows=10**6, dimensions=DIMENSIONS, precision="sparse", bits=0),
        Index(kind="hnsw", m=2, ef_construction=4),
    )
    ensure_index(connection, table, poor)
    true = [
        {hit.key["id"] for hit in search(connection, table, NONE, SearchRequest(v, 11))} - {i}
        for i, v in enumerate(vectors)
    ]
    found = [
        {hit.key["id"] for hit in search(connection, table, poor, SearchRequest(v, 11))} - {i}
        for i, v in enumerate(vectors)
    ]
    wanted = np.mean([len(t & f) / 10 for t, f in zip(true, found, strict=True)])
    report = measure(connection, table, poor, Recall(queries=150))
    assert report.recall == pytest.approx(wanted, abs=0.002)


def test_an_index_is_built_when_the_rows_are_many(given: Connection, tmp_path: Path) -> None:
    ours = pipeline(tmp_path, index={"kind": "hnsw"})
    report = paintings.sync(ours)
    assert report.recall_at_k == 1.0
    given.execute("UPDATE paintings SET given = (SELECT given FROM paintings WHERE id = 2) WHERE id = 1")
    assert paintings.sync(ours).consistent
    assert maintain(ours, rebuild=True)["built"]
    question = one(given, "SELECT given::text FROM paintings WHERE id = 2")
    nearest = [hit.as_json() for hit in search_stage.search(ours, question, 2, mode="ann")]
    assert [found["id"] for found in nearest] == [1, 2]
    assert one(given, "SELECT held FROM rowvec.indexes WHERE index_name IS NOT NULL") == "float"
    with pytest.raises(UsageError, match="vector of 30522 numbers"):
        search_stage.search(ours, "the sea", 3, mode="exact")


_WIDE = (
    "UPDATE paintings SET given = (SELECT ('{' || string_agg(i || ':1', ',') || '}/30522')::sparsevec"
    " FROM generate_series(1, 1001) AS i) WHERE id = 7"
)


def test_a_vector_too_wide_for_the_index_ends_it_and_not_the_run(
    given: Connection, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rowvec.index.choice.EXACT_ELEMENTS", 1_000)
    ours = pipeline(tmp_path)
    paintings.sync(ours)
    table_name = "SELECT count(*) FROM rowvec.indexes WHERE index_name IS NOT NULL"
    assert one(given, table_name) == 1
    given.execute(_WIDE)
    with caplog.at_level(logging.WARNING):
        report = paintings.sync(ours)
    assert "the row (7) has 1,001 nonzeros, and pgvector indexes sparse vectors of at most 1,000" in caplog.text
    assert (report.consistent, one(given, table_name), one(given, _AGREE)) == (True, 0, 50)
    assert search_stage.search(ours, "{1:1}/30522", 1)[0].key["id"] == 7
    (sentence,) = [check.detail for check in report.checks if check.name == "index"]
    assert "the row (7) has 1,001 nonzeros" in sentence.lower()
    given.execute("UPDATE paintings SET given = '{1:1}/30522' WHERE id = 7")
    paintings.sync(ours)
    assert one(given, table_name) == 1


def test_a_required_index_that_cannot_be_built_is_refused_at_once(given: Connection, tmp_path: Path) -> None:
    ours = pipeline(tmp_path, index={"kind": "hnsw"})
    paintings.sync(ours)
    given.execute(_WIDE)
    with pytest.raises(UsageError, match=r"index.kind is hnsw, but the vector of the row \(7\) has 1,001 nonzeros"):
        paintings.sync(ours)
    assert one(given, _AGREE) == 49
    first = ours.model_copy(
        update={"name": "first", "target": ours.target.model_copy(update={"table": "vectors.first"})}
    )
    with pytest.raises(UsageError, match=r"index.kind is hnsw, but the vector of the row \(7\)"):
        paintings.sync(first)
    assert one(given, "SELECT to_regclass('vectors.first')") is None
    given.execute("DELETE FROM paintings WHERE id = 7")
    assert paintings.sync(ours).consistent


def test_from_dense_to_sparse_and_back_without_reading_a_vector_twice(source: Connection, tmp_path: Path) -> None:
    source.execute("ALTER TABLE paintings ADD COLUMN given vector(40)")
    source.execute(
        "UPDATE paintings SET given = (SELECT array_agg(CASE WHEN i % 9 = id % 9 THEN i + id ELSE 0 END)::vector"
        " FROM generate_series(1, 40) AS i)"
    )
    dense = pipeline(tmp_path, 40, target={"precision": "float32", "bits": True})
    thin = pipeline(tmp_path, 40)
    paintings.sync(dense)
    report = paintings.rebuild(thin)
    assert (report.consistent, report.rows, report.embedded, report.reused) == (True, 50, 0, 50)
    assert report.comparison.shared == 1.0
    assert (
        one(
            source,
            "SELECT count(*) FROM paintings AS s JOIN vectors.paintings AS t USING (id)"
            " WHERE s.given = t.embedding::vector",
        )
        == 50
    )
    assert audit(thin).consistent
    assert source.execute("SELECT id FROM vectors.paintings_search((SELECT given FROM paintings WHERE id = 3), 1)")
    rollback(dense)
    assert paintings.sync(dense).consistent
    back = paintings.rebuild(pipeline(tmp_path, 40, target={"precision": "float16"}))
    assert (back.consistent, back.embedded) == (True, 0)


def test_another_precision_in_place_is_refused(given: Connection, tmp_path: Path) -> None:
    given.execute("ALTER TABLE paintings ALTER given TYPE text")
    given.execute("UPDATE paintings SET given = '{1:1}/40'")
    paintings.sync(pipeline(tmp_path, 40))
    with pytest.raises(
        Exception, match=r"embedding as sparsevec\(40\), the pipeline wants vector\(40\).*rowvec rebuild"
    ):
        paintings.sync(pipeline(tmp_path, 40, target={"precision": "float32", "bits": False}))


def test_artifacts_are_restored_in_either_precision(
    source: Connection, tmp_path: Path, another_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.execute("ALTER TABLE paintings ADD COLUMN given text")
    source.execute("UPDATE paintings SET given = '{' || id % 40 + 1 || ':2,41:1}/50'")
    paintings.sync(pipeline(tmp_path, 50))
    monkeypatch.setenv("ROWVEC_DATABASE_URL", another_url)
    dense = pipeline(tmp_path, 50, target={"precision": "float32", "bits": True})
    with restoring(dense, None) as restore:
        assert finish_restore(dense, restore.run, restore_rows(dense, restore)).consistent
    with connect(another_url) as there:
        assert one(there, "SELECT pg_typeof(embedding)::text FROM vectors.paintings LIMIT 1") == "vector"
        assert one(there, "SELECT embedding::sparsevec::text FROM vectors.paintings WHERE id = 3") == "{4:2,41:1}/50"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"target": {"bits": True}}, "bits is true, and pgvector makes none of sparse vectors"),
        ({"index": {"kind": "ivfflat"}}, "index.kind is ivfflat, which pgvector cannot build on sparse vectors"),
        ({"index": {"on": "bits"}}, "index.on is bits, but target.bits is false"),
        ({"target": {"precision": "float32"}}, "embedder.dimensions is 30,522, and pgvector holds no more than 16,000"),
    ],
)
def test_what_sparse_vectors_cannot_have_is_refused_by_its_key(
    tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValidationError, match=sentence):
        pipeline(tmp_path, **changes)


def test_other_embedders_give_no_sparse_vectors(tmp_path: Path) -> None:
    with pytest.raises(
        ValidationError, match=r"target\.precision is sparse, and the embedder local gives dense vectors"
    ):
        paintings.pipeline(str(tmp_path), target={"precision": "sparse"})


def test_bits_left_out_are_off_however_often_a_pipeline_is_written_and_read(tmp_path: Path) -> None:
    ours = pipeline(tmp_path)
    assert not ours.target.bits
    assert Pipeline.model_validate_json(ours.model_dump_json()) == ours
    assert Pipeline.model_validate(ours.model_dump(exclude_defaults=True)) == ours


def test_the_tuner_measures_the_one_kind_of_index_there_is(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rowvec.index.tuning.tuner._QUERIES", 20)
    table = fill(connection, drawn(1_000, nonzeros=8))
    tuned = tune(connection, table, Recall(queries=20), Budget(seconds=60))
    assert {m.name.partition(",")[0].partition(" m ")[0] for m in tuned.measured} == {"sparse hnsw"}
    assert {m.choice.opclass for m in tuned.measured} == {"sparsevec_cosine_ops"}
    wide = "{" + ",".join(f"{i}:1" for i in range(1, LIMIT_NONZEROS + 2)) + f"}}/{DIMENSIONS}"
    connection.execute("UPDATE items SET embedding = %s WHERE id = 5", (wide,))
    with pytest.raises(UsageError, match=r"no index to tune for: the vector of the row \(5\) has 1,001 nonzeros"):
        tune(connection, table, Recall(), Budget(seconds=60))


def test_the_choice_says_why(connection: Connection) -> None:
    def chosen(rows: int, mean: float, most: int = 0, **index: Any) -> IndexChoice:
        found = Sparsity(mean=mean, most=most, key="7")
        return choose(
            Facts(rows=rows, dimensions=DIMENSIONS, precision="sparse", bits=0, sparsity=found), Index(**index)
        )

    assert chosen(1_000, 100).reason.startswith("1,000 rows of 100 nonzeros are searched exactly")
    assert (chosen(1_000_000, 100).kind, chosen(1_000_000, 100, 1_000).kind) == ("hnsw", "hnsw")
    assert chosen(1_000_000, 100, 1_001).reason.startswith("The vector of the row (7) has 1,001 nonzeros")
    assert chosen(1_000_000, 100, 1_001, kind="none").reason == "The pipeline wants no index."
    with pytest.raises(UsageError, match=r"set index\.kind to auto"):
        chosen(1_000_000, 100, 1_001, kind="hnsw")
    unit = Layout("sparse", 3).unit()
    assert isinstance(unit, SparseVectors)
    assert unit.dense().tolist() == [[1, 0, 0]]
    assert index_state(connection, vector_table(3)) == []


def test_the_command_with_a_file_written_by_hand(
    given: Connection, tmp_path: Path, prefect_server: PrefectServer
) -> None:
    file = write_pipeline(pipeline(tmp_path), tmp_path)
    file.write_text(file.read_text("utf-8").replace("  bits: false\n", ""), "utf-8")
    synced = start(prefect_server.api, "sync", file, "--json").wait()
    assert (synced.status, synced.json["consistent"], synced.json["new"]) == (0, True, 50), synced.stderr
    given.execute("UPDATE vectors.paintings SET embedding = '{3:1}/30522' WHERE id = 11")
    repaired = start(prefect_server.api, "audit", file, "--repair", "--json").wait()
    assert (repaired.status, repaired.json["consistent"], repaired.json["repaired"]) == (0, True, 1), repaired.stderr
    found = start(prefect_server.api, "search", file, "{139:1}/30522", "-k", "1", "--json").wait()
    assert (found.status, len(found.json["results"])) == (0, 1), found.stderr
    assert one(given, _AGREE) == 50
