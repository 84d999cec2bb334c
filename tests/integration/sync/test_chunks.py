"""Chunking: a long content has several vectors, and an edit pays only for the chunks that it changes."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from rowvec.embedders.provider import tokens
from rowvec.embedders.wordllama import load_model
from rowvec.errors import DeleteLimitExceeded, SourceError, TargetError, UsageError
from rowvec.ledger.runs import running
from rowvec.operations import rejects as rejects_stage
from rowvec.operations import search
from rowvec.operations.audit import audit
from rowvec.operations.repair import prepare_repair
from rowvec.operations.restore import finish_restore, restore_rows, restoring
from rowvec.operations.switch import retire_for_good
from rowvec.pipeline import Pipeline
from rowvec.pipeline.embedders import LocalEmbedder, OpenAIEmbedder
from rowvec.pipeline.model import Search
from rowvec.pipeline.sources import Chunks
from rowvec.postgres.connection import Connection
from rowvec.stages import index, merge, validate
from rowvec.stages.extract import chunks
from rowvec.stages.extract import stage as stage_stage
from rowvec.stages.extract.splitting import Splitting, splitting
from rowvec.stages.order import IN_PROCESS, bring_up_to_date, through_all_stages
from tests.support import paintings
from tests.support.paintings import Died, dying_after, sync
from tests.support.servers.openai_server import KEY, OpenAIServer, serve, vector

KINDS = ("beside", "database", "parquet", "csv")
BOTH = pytest.mark.parametrize("texts", ["beside", "database"], indirect=True)
SIZE, OVERLAP = 48, 8

EMBEDDER = OpenAIEmbedder(kind="openai", model="text-embedding-3-small", dimensions=32)


WORDS = (
    *("painter", "light", "river", "stone", "garden", "winter", "window"),
    *("silver", "horse", "bridge", "market", "evening", "shadow", "gold"),
)


def sentence(seed: int) -> str:
    """A sentence of about ten tokens."""
    return " ".join(random.Random(seed).choices(WORDS, k=9)).capitalize() + "."  # not a secret


def prose(sentences: int, seed: int = 0) -> str:
    """Paragraphs of four sentences."""
    made = [sentence(seed * 100_000 + i) for i in range(sentences)]
    return "\n\n".join(" ".join(made[i : i + 4]) for i in range(0, sentences, 4))


class Texts:
    """Rows of (id, text, author), kept in the target's database and copied to the source."""

    def __init__(self, kind: str, target: Connection, elsewhere: str, folder: Path, server: OpenAIServer) -> None:
        self.kind, self.target, self._elsewhere, self._folder, self._server = kind, target, elsewhere, folder, server
        target.execute("CREATE TABLE texts (id int PRIMARY KEY, text text, author text)")

    def put(self, id_: int, text: str | None, author: str = "somebody") -> None:
        """Write a row."""
        self.target.execute(
            "INSERT INTO texts VALUES (%s, %s, %s) ON CONFLICT (id) DO UPDATE SET text = excluded.text,"
            " author = excluded.author",
            (id_, text, author),
        )

    def publish(self) -> None:
        """Make the source equal to the table ``texts``."""
        rows = self.target.execute("SELECT * FROM texts ORDER BY random()").fetchall()
        columns = [list(values) for values in zip(*rows, strict=True)] if rows else [[], [], []]
        if self.kind == "database":
            with paintings.writer(self._elsewhere) as connection, connection.transaction():
                connection.execute("DROP TABLE IF EXISTS texts")
                connection.execute("CREATE TABLE texts (id int, text text, author text)")
                with connection.cursor() as cursor:
                    cursor.executemany("INSERT INTO texts VALUES (%s, %s, %s)", rows)
        elif self.kind == "parquet":
            table = pa.table(
                [
                    pa.array(columns[0], pa.int32()),
                    pa.array(columns[1], pa.string()),
                    pa.array(columns[2], pa.string()),
                ],
                names=["id", "text", "author"],
            )
            pq.write_table(table, self._folder / "texts.parquet", row_group_size=3)
        elif self.kind == "csv":
            with (self._folder / "texts.csv").open("w", encoding="utf-8", newline="") as file:
                file.write("id,text,author\r\n")
                for id_, text, author in rows:
                    written = "" if text is None else '"' + text.replace('"', '""') + '"'
                    file.write(f'{id_},{written},"{author}"\r\n')

    def pipeline(
        self, chunks: dict[str, Any] | None = None, *, empty: str = "skip", **parts: dict[str, Any]
    ) -> Pipeline:
        """The pipeline over the source; ``{}`` for no chunks."""
        where: dict[str, dict[str, Any]] = {
            "beside": {"kind": "postgres", "table": "public.texts"},
            "database": {"kind": "postgres", "table": "texts", "url": self._elsewhere},
            "parquet": {"kind": "parquet", "path": str(self._folder / "texts.parquet")},
            "csv": {"kind": "csv", "path": str(self._folder / "texts.csv"), "types": {"id": "integer"}},
        }
        if self.kind == "csv":
            where["csv"]["types"] = {"id": "bigint"}
        split = {"tokens": SIZE, "overlap": OVERLAP} if chunks is None else chunks
        source: dict[str, Any] = {**where[self.kind], "key": ["id"], "content": "{text}", "metadata": ["author"]}
        source["empty"] = empty
        source |= {"chunks": split} if split else {}
        embedder = {
            "kind": "openai",
            "model": EMBEDDER.model,
            "dimensions": EMBEDDER.dimensions,
            "base_url": self._server.url,
            "max_batch_inputs": 8,
        }
        target = {"table": "vectors.texts"}
        written = {"name": "texts", "source": source, "embedder": embedder, "target": target}
        return Pipeline.model_validate({**written, "artifacts": {"url": str(self._folder / "artifacts")}, **parts})

    def sync(self, pipeline: Pipeline | None = None) -> Any:
        """Publish the rows, and sync."""
        self.publish()
        return sync(pipeline or self.pipeline())

    def stored(self) -> dict[int, list[str]]:
        """The chunks in the vector table, by id and in order."""
        found: dict[int, list[str]] = {}
        rows = self.target.execute("SELECT id, chunk, content FROM vectors.texts ORDER BY id, chunk").fetchall()
        for id_, chunk, content in rows:
            assert chunk == len(found.setdefault(id_, []))
            found[id_].append(content)
        return found

    def wanted(self) -> dict[int, list[str]]:
        """What the vector table must hold, computed from the rows by the splitter."""
        how = splitter()
        rows = self.target.execute("SELECT id, text FROM texts").fetchall()
        return {id_: how.split(text) for id_, text in rows if text and text.strip(" \t\n\r\f\v")}

    def assert_in_step(self) -> None:
        """Every chunk is there with its author, and nothing else."""
        assert self.stored() == self.wanted()
        wrong = self.target.execute(
            "SELECT id FROM vectors.texts AS v JOIN texts USING (id) WHERE v.author IS DISTINCT FROM texts.author"
        ).fetchall()
        assert wrong == []


def splitter(size: int = SIZE, overlap: int = OVERLAP) -> Splitting:
    """The chunk settings of the pipelines in this module."""
    return splitting(Chunks(tokens=size, overlap=overlap), EMBEDDER)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Generator[OpenAIServer]:
    """The embedder's server, with its key in the environment."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serve(key=KEY, poison="POISON") as opened:
        yield opened


MakeTexts = Callable[[str], Texts]


@pytest.fixture
def make_texts(
    connection: Connection,
    database_url: str,
    another_url: str,
    server: OpenAIServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> MakeTexts:
    """Makes an empty source of some kind."""
    monkeypatch.setenv("ROWVEC_DATABASE_URL", database_url)
    monkeypatch.setenv("ROWVEC_HOME", str(tmp_path / "home"))
    return lambda kind: Texts(kind, connection, another_url, tmp_path, server)


# What a test says of a source in another database is shown of one beside the vector table, and of the other way to read
# by the tests with BOTH.
@pytest.fixture(params=["beside", pytest.param("database", marks=pytest.mark.soak)])
def texts(request: pytest.FixtureRequest, make_texts: MakeTexts) -> Texts:
    """Five rows: three long texts, a short one, and a blank one."""
    return filled(make_texts(request.param))


@pytest.fixture(params=["beside", "database", "parquet", pytest.param("csv", marks=pytest.mark.soak)])
def texts_anywhere(request: pytest.FixtureRequest, make_texts: MakeTexts) -> Texts:
    """The same rows in every kind of source. Files take the same path as another database, but are read differently."""
    return filled(make_texts(request.param))


@pytest.fixture
def beside(make_texts: MakeTexts) -> Texts:
    """The same rows in a table of the vector table's database."""
    return filled(make_texts("beside"))


def filled(made: Texts) -> Texts:
    """Fill a source with its rows."""
    for id_, sentences in ((1, 60), (2, 40), (3, 24), (4, 1)):
        made.put(id_, prose(sentences, seed=id_), f"author {id_}")
    made.put(5, " \n ")
    return made


@pytest.mark.parametrize("texts_anywhere", KINDS, indirect=True)
def test_each_chunk_has_a_vector_and_the_second_sync_pays_nothing(texts_anywhere: Texts, server: OpenAIServer) -> None:
    texts = texts_anywhere
    report = texts.sync()
    texts.assert_in_step()
    chunks = [chunk for each in texts.stored().values() for chunk in each]
    assert set(texts.stored()) == {1, 2, 3, 4}
    assert len(chunks) > 30
    assert sorted(server.paid) == sorted(set(chunks))
    assert (report.consistent, report.rows, report.pending) == (True, len(chunks), 0)
    again = texts.sync()
    assert (again.unchanged, again.new, again.changed, again.deleted) == (len(chunks), 0, 0, 0)
    assert len(server.paid) == len(set(chunks))
    assert again.checksum == report.checksum


@BOTH
def test_an_edit_in_the_middle_pays_for_the_chunks_that_changed(texts: Texts, server: OpenAIServer) -> None:
    texts.sync()
    before = set(server.paid)
    text = prose(60, seed=1)
    middle = text.index("\n\n", len(text) // 2)
    texts.put(1, text[:middle] + " One sentence more stands here." + text[middle:], "author 1")
    report = texts.sync()
    texts.assert_in_step()
    paid = set(server.paid) - before
    assert paid == {chunk for each in texts.wanted().values() for chunk in each} - before
    assert any("One sentence more" in chunk for chunk in paid)
    assert len(paid) <= 6 < len(texts.stored()[1])
    assert report.consistent
    assert len(server.paid) == len(before) + len(paid)


@BOTH
def test_rows_that_shrink_grow_go_and_change_their_metadata(texts: Texts, server: OpenAIServer) -> None:
    texts.sync()
    paid = len(server.paid)
    text = prose(60, seed=1)
    texts.put(1, text[: text.index("\n\n", len(text) // 4)], "author 1")
    texts.put(2, prose(40, seed=2), "another author")
    texts.target.execute("DELETE FROM texts WHERE id = 4")
    texts.put(5, "no blank any more")
    report = texts.sync()
    texts.assert_in_step()
    assert 4 not in texts.stored()
    assert len(server.paid) <= paid + 3
    assert report.metadata_only == len(texts.stored()[2])
    texts.put(1, None)
    texts.sync()
    assert set(texts.stored()) == {2, 3, 5}
    texts.assert_in_step()
    # No chunk is kept of deleted or changed rows.
    kept = texts.target.execute("SELECT id, chunk, content FROM rowvec.chunks_1 ORDER BY id, chunk").fetchall()
    assert kept == [(id_, n, chunk) for id_, each in sorted(texts.wanted().items()) for n, chunk in enumerate(each)]


def test_a_row_that_changes_while_its_chunks_are_embedded_is_left_to_the_next_round(
    texts_anywhere: Texts, server: OpenAIServer
) -> None:
    texts = texts_anywhere
    texts.publish()
    pipeline = texts.pipeline()
    with running(pipeline, "test") as run:
        plan = stage_stage.run(pipeline, run)
        batches = tuple(through_all_stages(pipeline, run, number) for number in range(plan.batches))
        texts.put(1, prose(60, seed=1).replace("river", "ocean"), "author 1")
        texts.put(2, prose(40, seed=2), "changed meanwhile")
        texts.target.execute("DELETE FROM texts WHERE id = 3")
        texts.put(6, prose(12, seed=6))
        texts.publish()
        merged = merge.run(pipeline, run)
        stored = texts.target.execute("SELECT id, chunk, content FROM vectors.texts").fetchall()
        wanted = texts.wanted()
        # Chunks may still be missing, but none is stale and none is an orphan.
        assert all(wanted[id_][number] == content for id_, number, content in stored)
        assert {id_ for id_, _, _ in stored} >= {2, 4}
        assert merged.pending > 0
        rounds = [merge.Round(plan=plan, batches=batches, merged=merged), bring_up_to_date(pipeline, run, IN_PROCESS)]
        report = validate.run(pipeline, run, rounds, index.run(pipeline, run))
    assert (report.consistent, report.pending) == (True, 0)
    texts.assert_in_step()
    assert texts.sync().embedded == 0


def test_texts_that_shrink_or_all_change_do_not_count_as_deleted_rows(texts: Texts, server: OpenAIServer) -> None:
    texts.sync()
    for id_ in (1, 2, 3):
        texts.put(id_, sentence(id_), f"author {id_}")
    report = texts.sync()
    texts.assert_in_step()
    assert report.deleted > 20
    texts.target.execute("DELETE FROM texts WHERE id <= 3")
    with pytest.raises(DeleteLimitExceeded):
        texts.sync()


def test_rows_deleted_before_the_merge_count_as_deleted_and_changed_rows_do_not(beside: Texts) -> None:
    beside.sync()
    for id_ in (1, 2, 3):
        beside.put(id_, prose(20, seed=id_ + 10), f"author {id_}")
    pipeline = beside.pipeline()
    with running(pipeline, "test") as run:
        plan = stage_stage.run(pipeline, run)
        for number in range(plan.batches):
            through_all_stages(pipeline, run, number)
        beside.target.execute("UPDATE texts SET text = text || ' And more.' WHERE id <= 3")
        assert merge.run(pipeline, run).pending == 3
    beside.sync()
    beside.assert_in_step()
    with running(pipeline, "test") as run:
        stage_stage.run(pipeline, run)
        beside.target.execute("DELETE FROM texts WHERE id <= 3")
        with pytest.raises(DeleteLimitExceeded):
            merge.run(pipeline, run)


@pytest.mark.parametrize(
    ("texts", "stage"),
    [
        ("beside", "extract"),
        ("beside", "embed"),
        ("beside", "merge"),
        ("database", "extract"),
        pytest.param("database", "embed", marks=pytest.mark.soak),
        pytest.param("database", "merge", marks=pytest.mark.soak),
    ],
    indirect=["texts"],
)
def test_a_run_that_dies_after_any_stage_is_continued_without_paying_again(
    texts: Texts, server: OpenAIServer, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with dying_after(stage, monkeypatch):
        texts.sync()
    texts.sync()
    texts.assert_in_step()
    assert len(server.paid) == len(set(server.paid)) == sum(map(len, texts.stored().values()))


@pytest.mark.parametrize("kind", ["beside", "parquet"])
def test_a_run_that_dies_while_it_splits_leaves_no_row_half_split(
    make_texts: MakeTexts, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = make_texts(kind)
    for id_ in range(1, 150):
        texts.put(id_, prose(8, seed=id_))

    real = chunks.add_chunks

    def dying(pages: Any) -> Any:
        yield from itertools.islice(pages, 2)
        raise Died

    def die(connection: Any, table: Any, columns: Any, pages: Any, how: Any) -> None:
        real(connection, table, columns, dying(pages), how)

    with monkeypatch.context() as patched:
        # First: the import of this module must find the real function.
        patched.setattr("rowvec.stages.extract.mirrored_chunks.add_chunks", die)
        patched.setattr(chunks, "add_chunks", die)
        with pytest.raises(Died):
            texts.sync()
    split = texts.target.execute("SELECT count(DISTINCT id) FROM rowvec.chunks_1").fetchone()
    # A table next to the vector table is split without a transaction, and its chunks are stored. Another source is read
    # in one transaction.
    assert split == ((128,) if kind == "beside" else (0,))
    texts.sync()
    texts.assert_in_step()


def test_audit_finds_a_tampered_chunk_and_repair_restores_it_for_nothing(texts: Texts, server: OpenAIServer) -> None:
    texts.sync()
    pipeline, paid = texts.pipeline(), len(server.paid)
    assert audit(pipeline).consistent
    texts.target.execute("UPDATE vectors.texts SET content = 'something else' WHERE id = 1 AND chunk = 2")
    texts.target.execute("DELETE FROM vectors.texts WHERE id = 2 AND chunk = 1")
    texts.target.execute("UPDATE vectors.texts SET chunk = 99 WHERE id = 3 AND chunk = 0")
    found = audit(pipeline)
    assert {(f.kind, f.key) for f in found.findings} >= {
        ("corrupt", ("1", "2")),
        ("missing", ("2", "1")),
        ("missing", ("3", "0")),
        ("orphaned", ("3", "99")),
    }
    prepare_repair(pipeline)
    assert texts.sync().consistent
    texts.assert_in_step()
    assert audit(pipeline).consistent
    assert len(server.paid) == paid


@BOTH
def test_audit_sees_what_the_source_has_by_now(texts: Texts) -> None:
    texts.sync()
    texts.put(3, prose(24, seed=3) + " One sentence more.", "author 3")
    texts.put(7, prose(8, seed=7))
    texts.publish()
    found = audit(texts.pipeline())
    assert {f.key[0] for f in found.findings} == {"3", "7"}
    assert {f.kind for f in found.findings} <= {"missing", "stale"}


def test_a_poisonous_chunk_is_rejected_alone_under_its_number(texts: Texts) -> None:
    long = prose(40, seed=2)
    at = long.index("\n\n", len(long) // 2)
    texts.put(2, long[:at] + " POISON." + long[at:], "author 2")
    report = texts.sync()
    numbers = [str(n) for n, chunk in enumerate(texts.wanted()[2]) if "POISON" in chunk]
    assert (report.rejected, report.consistent) == (len(numbers), True)
    rejects = rejects_stage.rejects(texts.pipeline()).as_json()["rejects"]
    assert [r["key"] for r in rejects] == [["2", number] for number in numbers]
    assert texts.sync().rejected == len(numbers)
    texts.put(2, long, "author 2")
    assert texts.sync().rejected == 0
    texts.assert_in_step()


def test_rows_that_share_a_key_or_are_blank_are_rejected_by_their_own_key(texts_anywhere: Texts) -> None:
    texts = texts_anywhere
    texts.target.execute("ALTER TABLE texts DROP CONSTRAINT texts_pkey")
    texts.target.execute("INSERT INTO texts VALUES (1, %s, 'another')", (prose(9),))
    pipeline = texts.pipeline(empty="reject")
    report = texts.sync(pipeline)
    rejects = rejects_stage.rejects(pipeline).as_json()["rejects"]
    assert {(tuple(r["key"]), r["reason"]) for r in rejects} == {(("1",), "duplicate_key"), (("5",), "empty")}
    assert set(texts.stored()) == {2, 3, 4}
    texts.target.execute("DELETE FROM texts WHERE id = 5 OR author = 'another'")
    assert (texts.sync(pipeline).rejected, report.rejected) == (0, 2)
    texts.assert_in_step()
    texts.target.execute("INSERT INTO texts VALUES (5, '', 'nobody')")
    with pytest.raises(SourceError, match=r"source\.empty is fail"):
        texts.sync(texts.pipeline(empty="fail"))


def test_a_restored_table_has_the_chunks_and_the_next_sync_nothing_to_do(texts: Texts, server: OpenAIServer) -> None:
    texts.sync()
    texts.put(1, prose(30, seed=1) + " The end.", "author 1")
    before = texts.sync()
    paid, stored, pipeline = len(server.paid), texts.stored(), texts.pipeline()
    texts.target.execute("DROP TABLE vectors.texts CASCADE")
    with restoring(pipeline) as restore:
        report = finish_restore(pipeline, restore.run, restore_rows(pipeline, restore))
    assert (report.consistent, report.checksum) == (True, before.checksum)
    assert texts.stored() == stored
    again = texts.sync()
    assert (again.new, again.changed, again.deleted, again.embedded) == (0, 0, 0, 0)
    assert audit(pipeline).consistent
    assert len(server.paid) == paid


def test_the_stored_chunks_may_be_lost(texts: Texts, server: OpenAIServer) -> None:
    texts.sync()
    paid = len(server.paid)
    texts.target.execute("DROP TABLE rowvec.chunks_1")
    report = texts.sync()
    assert (report.new, report.changed, report.deleted, report.consistent) == (0, 0, 0, True)
    assert len(server.paid) == paid


def test_a_table_without_chunks_is_rebuilt_with_them_and_back(texts: Texts, server: OpenAIServer) -> None:
    whole, split = texts.pipeline({}), texts.pipeline()
    texts.sync(whole)
    paid = len(server.paid)
    with pytest.raises(TargetError, match="rowvec rebuild"):
        sync(split)
    assert len(server.paid) == paid
    report = paintings.rebuild(split)
    assert (report.switched, report.consistent) == (True, True)
    # The comparison asks for source rows, and their neighbours are source rows, even if the keys of the two tables
    # differ.
    assert report.comparison.questions > 0
    assert report.comparison.shared > 0
    texts.assert_in_step()
    paid = len(server.paid)
    with pytest.raises(TargetError, match="rowvec rebuild"):
        sync(whole)
    back = paintings.rebuild(whole)
    assert (back.switched, back.rows, len(server.paid)) == (True, 4, paid)
    retire_for_good(whole)
    left = texts.target.execute("SELECT tablename FROM pg_tables WHERE tablename LIKE 'chunks%'").fetchall()
    assert left == []


def test_another_size_pays_for_the_chunks_that_came_out_otherwise(texts: Texts, server: OpenAIServer) -> None:
    texts.sync()
    how = splitter(SIZE * 2)
    before = set(server.paid)
    report = texts.sync(texts.pipeline({"tokens": SIZE * 2, "overlap": OVERLAP}))
    texts_now = texts.target.execute("SELECT id, text FROM texts WHERE id < 5").fetchall()
    assert texts.stored() == {id_: how.split(text) for id_, text in texts_now}
    assert report.consistent
    assert set(server.paid) - before == {c for each in texts.stored().values() for c in each} - before


def test_a_table_whose_format_is_said_later_has_the_paths_and_an_edited_heading_pays_for_what_lies_below(
    beside: Texts, server: OpenAIServer
) -> None:
    guide = f"# Guide\n\n## Install\n{prose(16, seed=7)}\n\n## Use\n{prose(8, seed=8)}"
    beside.put(1, guide)
    beside.sync()
    paid = server.paid.total()
    structured = {"tokens": SIZE, "overlap": OVERLAP, "format": "markdown"}
    how = splitting(Chunks.model_validate(structured), EMBEDDER)
    beside.sync(beside.pipeline(structured))
    wanted = how.split(guide)
    assert beside.stored()[1] == wanted
    assert {chunk.partition("\n\n")[0] for chunk in wanted} == {"Guide > Install", "Guide > Use"}
    beside.put(1, guide.replace("## Use", "## Operate"))
    before = server.paid.total()
    assert before > paid
    assert beside.sync(beside.pipeline(structured)).consistent
    assert server.paid.total() - before == sum(chunk.startswith("Guide > Use") for chunk in wanted)


def test_an_upgrade_of_the_splitter_splits_again_and_pays_for_what_differs(
    texts: Texts, server: OpenAIServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts.sync()
    paid = len(server.paid)
    before = texts.target.execute("SELECT DISTINCT rowvec_row FROM rowvec.chunks_1").fetchall()
    monkeypatch.setattr("rowvec.stages.extract.splitting.version", str.upper)
    report = texts.sync()
    after = texts.target.execute("SELECT DISTINCT rowvec_row FROM rowvec.chunks_1").fetchall()
    assert not set(before) & set(after)
    assert (report.new, report.changed, report.deleted, report.embedded) == (0, 0, 0, 0)
    assert len(server.paid) == paid


def test_a_search_says_which_chunk_it_found(beside: Texts) -> None:
    beside.sync()
    pipeline = beside.pipeline()
    chunk = beside.stored()[2][3]
    (first, *_) = [hit.as_json() for hit in search.search(pipeline, chunk, 3, mode="exact")]
    assert (first["id"], first["chunk"], first["content"], first["author"]) == (2, 3, chunk, "author 2")
    rows = beside.target.execute("SELECT id, chunk FROM vectors.texts_search(%s, 1)", (str(vector_of(chunk)),))
    assert rows.fetchall() == [(2, 3)]
    results = [hit.as_json() for hit in search.search(pipeline, chunk, 5, where="chunk = 0", mode="exact")]
    assert {r["chunk"] for r in results} == {0}


def test_a_search_by_row_finds_each_row_once_by_its_nearest_chunk_with_the_chunks_around_it(beside: Texts) -> None:
    beside.sync()
    pipeline = beside.pipeline()
    stored = beside.stored()
    every = search.search(pipeline, stored[2][3], 1000, mode="exact")
    nearest: dict[int, search.Hit] = {}
    for hit in every:
        nearest.setdefault(hit.key["id"], hit)
    assert len(nearest) == 4 < len(every)
    by_row = search.search(pipeline, stored[2][3], 4, mode="exact", group_by="row", neighbours=2)
    # The four nearest chunks are of fewer rows.
    assert len({hit.key["id"] for hit in every[:4]}) < 4
    assert [(hit.key, hit.distance) for hit in by_row] == [(hit.key, hit.distance) for hit in nearest.values()]
    for hit in by_row:
        row, place = stored[hit.key["id"]], hit.key["chunk"]
        near = [number for number in range(place - 2, place + 3) if number != place and 0 <= number < len(row)]
        assert [(chunk.number, chunk.content) for chunk in hit.neighbours or ()] == [(n, row[n]) for n in near]
    first = search.search(pipeline, stored[2][3], 1, group_by="row")
    assert [(hit.key, hit.neighbours) for hit in first] == [({"id": 2, "chunk": 3}, None)]
    hybrid = pipeline.model_copy(update={"search": Search(hybrid=True)})
    mixed = search.search(hybrid, stored[2][3], 4, mode="hybrid", group_by="row", neighbours=1)
    assert (mixed[0].key, len(mixed[0].neighbours or ())) == ({"id": 2, "chunk": 3}, 2)
    assert mixed[0].text_rank is not None
    assert sorted(hit.key["id"] for hit in mixed) == sorted(nearest)
    with pytest.raises(UsageError, match="k must be from 1 to 10,000"):
        search.search(pipeline, "a", 10_001, group_by="row")
    with pytest.raises(UsageError, match="neighbours must be from 0 to 10"):
        search.search(pipeline, "a", neighbours=11)
    with pytest.raises(UsageError, match="one vector per row, so there are no chunks to group"):
        search.search(beside.pipeline({}), "a", group_by="row")


def vector_of(text: str) -> list[float]:
    """The vector that the server gives a text."""
    return [float(x) for x in vector(EMBEDDER.model, text, EMBEDDER.dimensions)]


def test_other_keys_and_types(connection: Connection, make_texts: MakeTexts, tmp_path: Path) -> None:
    connection.execute(
        'CREATE TABLE odd ("a 100%" numeric, at timestamptz, raw bytea, t text, tags text[],'
        ' PRIMARY KEY ("a 100%", at, raw))'
    )
    connection.execute(
        "INSERT INTO odd SELECT i * 1.50, '2020-01-01'::timestamptz + i * interval '1 s', sha256(i::text::bytea), %s,"
        " ARRAY['x', NULL, i::text] FROM generate_series(1, 9) AS i",
        (prose(16),),
    )
    source = {
        "kind": "postgres",
        "query": "SELECT * FROM public.odd",
        "key": ["a 100%", "at", "raw"],
        "content": "{t}",
        "metadata": ["tags"],
        "chunks": {"tokens": SIZE, "overlap": 0},
    }
    pipeline = Pipeline.model_validate(
        {
            "name": "odd",
            "source": source,
            "embedder": {"kind": "local", "dimensions": 64},
            "target": {"table": "vectors.odd"},
            "artifacts": {"url": str(tmp_path / "artifacts")},
        }
    )
    report = sync(pipeline)
    per_row = len(splitting(Chunks(tokens=SIZE, overlap=0), pipeline.embedder).split(prose(16)))
    assert (report.rows, report.embedded, report.consistent) == (9 * per_row, per_row, True)
    assert sync(pipeline).unchanged == 9 * per_row
    assert audit(pipeline).consistent


def test_a_table_without_chunks_has_none(beside: Texts) -> None:
    assert beside.sync(beside.pipeline({})).rows == 4
    columns = beside.target.execute("SELECT * FROM vectors.texts LIMIT 0").description or []
    assert "chunk" not in {column.name for column in columns}
    assert beside.target.execute("SELECT to_regclass('rowvec.chunks_1')").fetchone() == (None,)


def test_chunk_settings_that_cannot_work_are_refused() -> None:
    written = paintings.pipeline("artifacts").model_dump(mode="json", exclude_none=True)
    for chunks_, embedder, match in (
        ({"tokens": 100, "overlap": 51}, None, "more than half of tokens"),
        ({"tokens": 8}, None, "greater than or equal to 16"),
        ({}, {"kind": "column", "column": "v", "dimensions": 3}, "nothing to split"),
        ({}, {"kind": "openai", "model": "m", "dimensions": 3, "max_input_tokens": 256}, "max_input_tokens, 256"),
    ):
        source = {**written["source"], "chunks": chunks_}
        with pytest.raises(ValidationError, match=match):
            Pipeline.model_validate({**written, "source": source, "embedder": embedder or written["embedder"]})


PIECES = st.one_of(
    st.text(max_size=40),
    st.sampled_from(["\n", "\n\n", "\r\n", " ", "\t", "\u00a0", "\u2028", "。", "🧑‍🎨", "a" * 300, "汉字" * 50, "é"]),
    st.integers(0, 50).map(sentence),
    st.integers(1, 30).map(prose),
)


@settings(max_examples=80)
@given(st.lists(PIECES, max_size=40).map("".join), st.sampled_from([(16, 0), (16, 8), (48, 8), (64, 32)]))
def test_chunks_hold_the_whole_text_and_never_more_tokens_than_allowed(text: str, how: tuple[int, int]) -> None:
    split = splitter(*how)
    made = split.split(text)
    assert all(tokens.count(chunk) <= how[0] for chunk in made)
    assert all(made) or not text
    assert made == split.split(text)
    covered = 0
    for chunk in made:
        # The furthest place at which the chunk may start if only white space is left out before it.
        begins = covered + len(text[covered:]) - len(text[covered:].lstrip())
        at = text.rfind(chunk, 0, begins + len(chunk))
        assert at >= 0
        covered = max(covered, at + len(chunk))
    assert text[covered:].strip() == ""


def shared(first: str, second: str) -> str:
    """The end of the one chunk that is also the beginning of the other."""
    return next((second[:n] for n in range(len(second), 0, -1) if first.endswith(second[:n])), "")


def test_each_chunk_repeats_as_much_of_the_one_before_as_overlap_says() -> None:
    text = prose(900)
    how = splitter(64, 24)
    made = how.split(text)
    repeated = [shared(a, b) for a, b in itertools.pairwise(made)]
    assert all(0 < tokens.count(again) <= 24 for again in repeated)
    assert sum(tokens.count(again) for again in repeated) / len(repeated) > 18
    assert all(tokens.count(chunk) <= 64 for chunk in made)
    plain = splitter(64, 0).split(text)
    assert "".join("".join(chunk.split()) for chunk in plain) == "".join(text.split())


@pytest.mark.parametrize("joint", ["\n\n", "\n", " "])
@pytest.mark.parametrize("overlap", [0, 16])
def test_an_edit_changes_the_chunks_around_it_and_no_others(joint: str, overlap: int) -> None:
    how = splitter(64, overlap)
    lines = [sentence(i) for i in range(1200)]
    before = set(how.split(joint.join(lines)))
    changed: list[int] = []
    for at in range(50, 1200, 300):
        after = how.split(joint.join([*lines[:at], "And here something else was said.", *lines[at:]]))
        changed.append(len(set(after) - before))
    assert max(changed) <= 20 < len(before) / 10
    assert sum(changed) / len(changed) <= 8


def test_tokens_are_counted_as_the_embedder_counts_them() -> None:
    local = splitting(Chunks(tokens=32, overlap=0), LocalEmbedder(kind="local"))
    text = "Übergrößenträger " * 60
    made = local.split(text)
    tokenizer = load_model(256).tokenizer
    assert all(0 < len(tokenizer.encode(chunk, add_special_tokens=False).ids) <= 32 for chunk in made)
    assert made != splitter(32, 0).split(text)
    assert local.digest() != splitter(32, 0).digest()
    assert splitter(32, 0).digest() != splitter(32, 1).digest() != splitter(33, 1).digest()
