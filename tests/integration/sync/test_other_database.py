"""Syncs of sources that are not in the target's database: CSV and Parquet files, and another database."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from psycopg.conninfo import make_conninfo

from rowvec.embedders import open_embedder
from rowvec.errors import SourceError, TargetError
from rowvec.ledger.runs import running
from rowvec.operations import rejects
from rowvec.operations.audit import audit
from rowvec.pipeline import Pipeline
from rowvec.pipeline.references import resolve
from rowvec.postgres.connection import Connection, connect
from rowvec.postgres.vector_table import stored_table
from rowvec.sources.hash_stream import digest_of_key
from rowvec.stages import merge
from rowvec.stages.extract import stage
from rowvec.stages.extract.recheck import compare_by_hash, moved_since
from tests.support import paintings
from tests.support.paintings import assert_in_step, fill, sync, vectors

KINDS = ("csv", "parquet", "database")
# Files are read differently, and compared in the same way.
SOAK = pytest.mark.soak
ONE_FILE = pytest.mark.parametrize("apart", [pytest.param("csv", marks=SOAK), "parquet", "database"], indirect=True)
ONLY_CSV = pytest.mark.parametrize("apart", ["csv", pytest.param("parquet", marks=SOAK), "database"], indirect=True)
_COLUMNS = ("id", "title", "description", "author", "year")


class Apart:
    """The paintings, kept in the target's database for comparison and copied to the source."""

    def __init__(self, kind: str, beside: Connection, url: str, folder: Path) -> None:
        self.kind, self._beside, self._url, self._folder = kind, beside, url, folder

    def write(self) -> None:
        """Make the source equal to ``paintings`` in the target's database."""
        rows = self._beside.execute("SELECT * FROM paintings ORDER BY random()").fetchall()
        if self.kind == "database":
            with connect(self._url) as connection:
                connection.execute("DROP TABLE IF EXISTS paintings")
                connection.execute(paintings.SOURCE.replace("PRIMARY KEY", "UNIQUE").encode())
                with connection.cursor() as cursor, cursor.copy("COPY paintings FROM STDIN") as copy:
                    for row in rows:
                        copy.write_row(row)
        elif self.kind == "csv":
            with (self._folder / "paintings.csv").open("w", newline="", encoding="utf-8") as file:
                file.write(",".join(_COLUMNS) + "\r\n")
                for row in rows:
                    file.write(",".join(map(_field, row)) + "\r\n")
        else:
            types = (pa.int32(), pa.string(), pa.large_string(), pa.string(), pa.int32())
            columns = zip(*rows, strict=True) if rows else [()] * 5
            arrays = [pa.array(values, kind) for values, kind in zip(columns, types, strict=True)]
            arrays[3] = arrays[3].dictionary_encode()
            pq.write_table(pa.table(arrays, names=list(_COLUMNS)), self._folder / "paintings.parquet", row_group_size=9)

    def pipeline(self, artifacts: str, **source: Any) -> Pipeline:
        """The pipeline over the source; ``source`` extends that part."""
        written = paintings.pipeline(artifacts).source.model_dump(exclude={"kind", "table", "query", "url", "changes"})
        if self.kind == "database":
            written |= {"kind": "postgres", "table": "paintings", "url": self._url}
        elif self.kind == "csv":
            types = {"id": "bigint", "year": "bigint"}
            written |= {"kind": "csv", "path": str(self._folder / "paintings.csv"), "types": types}
        else:
            written |= {"kind": "parquet", "path": str(self._folder / "paintings.parquet")}
        return paintings.pipeline(artifacts, source={**written, **source})


def _field(value: object) -> str:
    if value is None:
        return ""
    return '"' + value.replace('"', '""') + '"' if isinstance(value, str) else str(value)


@pytest.fixture(params=KINDS)
def apart(request: pytest.FixtureRequest, source: Connection, another_url: str, tmp_path: Path) -> Apart:
    """The paintings as each kind of source."""
    made = Apart(request.param, source, another_url, tmp_path)
    made.write()
    return made


@pytest.fixture
def kept(apart: Apart, tmp_path: Path) -> Pipeline:
    """The pipeline over them."""
    return apart.pipeline(str(tmp_path / "artifacts"))


def test_the_second_sync_embeds_what_changed_and_the_third_nothing(
    source: Connection, apart: Apart, kept: Pipeline
) -> None:
    first = sync(kept)
    assert (first.new, first.embedded, first.reused, first.rows) == (50, 50, 0, 50)
    assert_in_step(source)
    fill(source, 3, start=101)
    source.execute("UPDATE paintings SET title = title || '!' WHERE id <= 4")
    source.execute("UPDATE paintings SET author = E'some\"body, \\\\ (x)\\n' WHERE id = 10")
    source.execute("DELETE FROM paintings WHERE id IN (20, 21)")
    apart.write()
    second = sync(kept)
    assert (second.new, second.changed, second.metadata_only, second.deleted) == (3, 4, 1, 2)
    assert (second.unchanged, second.embedded) == (43, 7)
    assert_in_step(source)
    apart.write()
    third = sync(kept)
    assert (third.new, third.changed, third.metadata_only, third.deleted) == (0, 0, 0, 0)
    assert (third.unchanged, third.embedded, third.artifacts) == (51, 0, 0)


@ONLY_CSV
def test_empty_content_is_listed_or_stops_the_run_by_policy(source: Connection, apart: Apart, tmp_path: Path) -> None:
    source.execute("UPDATE paintings SET title = '', description = '' WHERE id <= 2")
    apart.write()
    listing = apart.pipeline(str(tmp_path / "artifacts"), empty="reject")
    assert sync(listing).rejected == 2
    found = rejects.rejects(listing).as_json()["rejects"]
    assert {(r["key"][0], r["reason"]) for r in found} == {("1", "empty"), ("2", "empty")}
    source.execute("UPDATE paintings SET title = 'there' WHERE id = 1")
    apart.write()
    assert sync(listing).rejected == 1
    with pytest.raises(SourceError, match="1 row has empty content"):
        sync(apart.pipeline(str(tmp_path / "artifacts"), empty="fail"))


def test_swapped_contents_metadata_and_emptied_texts_cost_nothing(
    source: Connection, apart: Apart, kept: Pipeline
) -> None:
    sync(kept)
    before = vectors(source)
    source.execute(
        "UPDATE paintings AS p SET title = o.title, description = o.description FROM paintings AS o"
        " WHERE p.id IN (1, 2) AND o.id = 3 - p.id"
    )
    apart.write()
    report = sync(kept)
    assert (report.changed, report.embedded, report.reused) == (2, 0, 2)
    after = vectors(source)
    assert (after[1][2], after[2][2]) == (before[2][2], before[1][2])
    assert_in_step(source)

    at = "SELECT id, embedded_at, run_id FROM vectors.paintings ORDER BY id"
    written = source.execute(at).fetchall()
    source.execute("UPDATE paintings SET author = NULL, year = year + 1 WHERE id <= 20")
    source.execute("UPDATE paintings SET author = '' WHERE id > 20")
    apart.write()
    report = sync(kept)
    assert (report.metadata_only, report.embedded, report.artifacts) == (50, 0, 0)
    assert source.execute(at).fetchall() == written
    assert_in_step(source)

    source.execute("UPDATE paintings SET title = '', description = E' \\n\\t' WHERE id = 1")
    source.execute("UPDATE paintings SET title = NULL, description = NULL WHERE id = 2")
    apart.write()
    report = sync(kept)
    assert (report.deleted, report.rows, report.rejected) == (2, 48, 0)
    assert_in_step(source)


@ONE_FILE
def test_an_audit_compares_with_the_source_and_repairs(source: Connection, apart: Apart, kept: Pipeline) -> None:
    sync(kept)
    assert audit(kept).consistent
    source.execute("UPDATE vectors.paintings SET content = 'edited' WHERE id = 1")
    source.execute("UPDATE vectors.paintings SET author = 'edited' WHERE id = 2")
    source.execute("DELETE FROM vectors.paintings WHERE id = 3")
    source.execute("UPDATE vectors.paintings SET fingerprint = ''::bytea WHERE id = 7")
    source.execute("UPDATE paintings SET title = 'other' WHERE id = 4")
    source.execute("UPDATE paintings SET year = 1 WHERE id = 5")
    source.execute("DELETE FROM paintings WHERE id = 6")
    apart.write()
    found = {(f.kind, f.key) for f in audit(kept).findings}
    kinds = [("corrupt", "1"), ("corrupt", "2"), ("missing", "3"), ("stale", "4"), ("stale", "5"), ("orphaned", "6")]
    assert found == {*((kind, (key,)) for kind, key in kinds), ("stale", ("7",))}
    report = sync(kept)
    assert (report.new, report.changed, report.metadata_only, report.deleted) == (1, 3, 2, 1)
    assert report.embedded == 1
    assert audit(kept).consistent
    assert_in_step(source)


@ONE_FILE
def test_source_and_table_have_one_checksum(source: Connection, apart: Apart, kept: Pipeline) -> None:
    source.execute("UPDATE paintings SET title = 'x' || id, description = '' WHERE id <= 3")
    apart.write()
    report = sync(kept)
    pipeline_id = source.execute("SELECT pipeline_id FROM rowvec.pipelines").fetchone()
    assert pipeline_id is not None
    resolved = resolve(kept)
    identity, table = open_embedder(resolved.embedder).identity, stored_table(source, resolved)
    compared = compare_by_hash(source, resolved, identity, pipeline_id[0], table)
    assert compared.source == compared.table == (50, report.checksum)
    source.execute("DELETE FROM vectors.paintings WHERE id = 9")
    compared = compare_by_hash(source, resolved, identity, pipeline_id[0], table)
    assert compared.differences == (("missing", ("9",), "the source has this row, the vector table has not"),)
    assert compared.source[1] != compared.table[1]


@ONE_FILE
def test_rows_that_cannot_be_embedded_are_not_tried_again(source: Connection, apart: Apart, kept: Pipeline) -> None:
    sync(kept)
    source.execute(
        "INSERT INTO rowvec.rejects (pipeline_id, key, fingerprint, reason, detail, run_id)"
        " SELECT pipeline_id, '[\"5\"]', fingerprint, 'too_long', 'x', 1"
        " FROM vectors.paintings, rowvec.pipelines WHERE id = 5"
    )
    source.execute("DELETE FROM vectors.paintings WHERE id = 5")
    report = sync(kept)
    assert (report.new, report.rejected, report.rows) == (0, 1, 49)
    source.execute("UPDATE paintings SET title = 'short' WHERE id = 5")
    apart.write()
    report = sync(kept)
    assert (report.new, report.rejected, report.rows) == (1, 0, 50)


def test_composite_keys_and_types_of_another_database(source: Connection, another_url: str, tmp_path: Path) -> None:
    with connect(another_url) as other:
        other.execute(
            "CREATE TYPE room AS ENUM ('east', 'west');"
            "CREATE TABLE hung (room room, day date, price numeric(10, 2), doc jsonb, note text, words text[]);"
            "INSERT INTO hung SELECT (ARRAY['east', 'west']::room[])[1 + i % 2], date '2020-01-01' + i / 2, i / 3.0,"
            " jsonb_build_object('i', i), 'note ' || i, ARRAY['a \"b', NULL] FROM generate_series(1, 40) AS i;"
            "INSERT INTO hung SELECT * FROM hung WHERE day = '2020-01-05';"
            "INSERT INTO hung (day, note) VALUES ('2021-01-01', 'no room')"
        )
    hung = paintings.pipeline(
        str(tmp_path / "artifacts"),
        source={
            "kind": "postgres",
            "query": "SELECT *, note || '%' AS odd FROM hung;",
            "key": ["room", "day"],
            "content": "{odd} {doc}",
            "metadata": ["price", "doc", "words"],
            "url": another_url,
        },
        target={"table": "vectors.hung"},
    )
    with pytest.raises(TargetError, match=r"column room is public.room.*no such type"):
        sync(hung)
    source.execute("CREATE TYPE room AS ENUM ('east', 'west')")
    report = sync(hung)
    assert (report.rows, report.rejected) == (38, 3)
    with connect(another_url) as other:
        other.execute("UPDATE hung SET note = 'other' WHERE day = '2020-01-10' AND room = 'east'")
        other.execute("UPDATE hung SET words = NULL WHERE day = '2020-01-11'")
    report = sync(hung)
    assert (report.changed, report.metadata_only, report.unchanged, report.embedded) == (1, 2, 35, 1)


def test_a_source_database_that_cannot_be_read_is_named(source: Connection, another_url: str, tmp_path: Path) -> None:
    del source
    missing = paintings.pipeline(str(tmp_path / "artifacts"), source={"url": another_url})
    with pytest.raises(SourceError, match=r"there is no table public\.paintings"):
        sync(missing)
    nowhere = make_conninfo(another_url, dbname="nowhere")
    with pytest.raises(SourceError, match=r"source\.url: the database refused the connection.*nowhere"):
        sync(paintings.pipeline(str(tmp_path / "artifacts"), source={"url": nowhere}))


def test_the_column_embedder_takes_vectors_from_parquet(source: Connection, tmp_path: Path) -> None:
    vectors = [[1.0, 0.1], [0.3, -2.5], None]
    columns = {"id": [1, 2, 3], "v": pa.array(vectors, pa.list_(pa.float32(), 2))}
    path = tmp_path / "vectors.parquet"
    pq.write_table(pa.table(columns), path)
    own = paintings.pipeline(
        str(tmp_path / "artifacts"),
        source={"kind": "parquet", "path": str(path), "key": ["id"]},
        embedder={"kind": "column", "column": "v", "dimensions": 2},
        target={"table": "vectors.own"},
    )
    assert sync(own).rows == 2
    stored = source.execute("SELECT embedding::text FROM vectors.own ORDER BY id").fetchall()
    assert stored == [("[1,0.1]",), ("[0.3,-2.5]",)]
    columns["v"] = pa.array([[1.0, 0.1], [0.3, -2.25], None], pa.list_(pa.float32()))
    pq.write_table(pa.table(columns), path)
    report = sync(own)
    assert (report.changed, report.unchanged) == (1, 1)


@ONE_FILE
def test_rows_that_move_after_the_plan_are_known(source: Connection, apart: Apart, kept: Pipeline) -> None:
    sync(kept)
    source.execute("CREATE TABLE gone AS SELECT * FROM paintings WHERE id IN (11, 12)")
    source.execute("UPDATE paintings SET title = 'one' WHERE id <= 4")
    source.execute("DELETE FROM paintings WHERE id IN (11, 12)")
    apart.write()
    with running(kept, "test") as run:
        plan = stage.run(kept, run)
        assert moved_since(source, resolve(kept), plan) == []
        source.execute("UPDATE paintings SET title = 'two' WHERE id = 1")
        source.execute("UPDATE paintings SET year = 1 WHERE id = 2")
        source.execute("DELETE FROM paintings WHERE id = 3")
        source.execute("INSERT INTO paintings SELECT * FROM gone WHERE id = 12")
        source.execute("UPDATE paintings SET title = 'not planned' WHERE id = 20")
        source.execute("UPDATE paintings SET year = 1 WHERE id = 21")  # also not planned, and its vector is right
        apart.write()
        assert sorted(moved_since(source, resolve(kept), plan)) == sorted(
            digest_of_key([str(i)]) for i in (1, 2, 3, 12, 20)
        )


MEANWHILE = {
    "deleted": "DELETE FROM paintings WHERE id <= 5",
    "edited": "UPDATE paintings SET title = 'edited meanwhile' WHERE id <= 5",
    "other keys": "UPDATE paintings SET id = id + 1000 WHERE id <= 5",
    "emptied": "UPDATE paintings SET title = '', description = '' WHERE id <= 5",
    "inserted": "INSERT INTO paintings VALUES (500, 'came', 'later', 'x', 1)",
}


@pytest.mark.parametrize(
    ("change", "first_load"),
    [
        *((change, False) for change in MEANWHILE),
        ("deleted", True),
        ("other keys", True),
        *(pytest.param(change, True, marks=SOAK) for change in ("edited", "emptied", "inserted")),
    ],
)
def test_rows_of_another_database_that_change_while_they_are_embedded(
    source: Connection,
    another_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: str,
    first_load: bool,
) -> None:
    apart = Apart("database", source, another_url, tmp_path)
    apart.write()
    pipeline = apart.pipeline(str(tmp_path / "artifacts"))
    if not first_load:
        sync(pipeline)
        source.execute("UPDATE paintings SET title = 'edited before' WHERE id <= 10")
        apart.write()
    merge_run, left = merge.run, [MEANWHILE[change]]

    def merge_after_a_change(*arguments: Any) -> Any:
        while left:
            source.execute(left[0].encode())
            with connect(another_url) as other:
                other.execute(left.pop().encode())
        return merge_run(*arguments)

    monkeypatch.setattr(merge, "run", merge_after_a_change)
    report = sync(pipeline)
    assert (report.pending, report.consistent) == (0, True)
    assert_in_step(source)
