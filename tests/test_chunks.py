"""Chunking: long contents in several vectors, of which an edit pays for those that changed and no others."""

from __future__ import annotations

import random
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg.conninfo import make_conninfo
from pydantic import ValidationError

from rowvec import commands, stages
from rowvec.audit import run_audit
from rowvec.database import Connection
from rowvec.embedders import open_embedder, tokens
from rowvec.errors import DeleteLimitExceeded, TargetError
from rowvec.pipeline import Chunks, OpenAIEmbedder, Pipeline
from rowvec.restore import restoring
from rowvec.splitting import Splitting, splitting
from tests import gallery
from tests.gallery import sync
from tests.openai_server import KEY, OpenAIServer, serve

KINDS = ("beside", "database", "parquet", "csv")
SIZE, OVERLAP = 48, 8

EMBEDDER = OpenAIEmbedder(kind="openai", model="text-embedding-3-small", dimensions=32)


def sentence(seed: int) -> str:
    """A sentence of some ten tokens."""
    words = "painter light river stone garden winter window silver horse bridge market evening shadow gold".split()
    return " ".join(random.Random(seed).choices(words, k=9)).capitalize() + "."  # noqa: S311 # no secret


def prose(sentences: int, seed: int = 0) -> str:
    """Paragraphs of four sentences."""
    made = [sentence(seed * 100_000 + i) for i in range(sentences)]
    return "\n\n".join(" ".join(made[i : i + 4]) for i in range(0, sentences, 4))


class Texts:
    """Rows of (id, text, author), kept in the target's database and brought to where the source is."""

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
        """Bring the source to what ``texts`` is."""
        rows = self.target.execute("SELECT * FROM texts ORDER BY random()").fetchall()
        columns = [list(values) for values in zip(*rows, strict=True)] if rows else [[], [], []]
        if self.kind == "database":
            with gallery.writer(self._elsewhere) as connection, connection.transaction():
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

    def pipeline(self, chunks: dict[str, int] | None = None, **parts: dict[str, Any]) -> Pipeline:
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
        """Publish, and bring the vectors in step."""
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
        """What the vector table ought to hold, by the splitter and the rows themselves."""
        how = splitter()
        rows = self.target.execute("SELECT id, text FROM texts").fetchall()
        return {id_: how.split(text) for id_, text in rows if text and text.strip(" \t\n\r\f\v")}

    def assert_in_step(self) -> None:
        """Every chunk is there, and its author, and nothing else."""
        assert self.stored() == self.wanted()
        wrong = self.target.execute(
            "SELECT id FROM vectors.texts AS v JOIN texts USING (id) WHERE v.author IS DISTINCT FROM texts.author"
        ).fetchall()
        assert wrong == []


def splitter(size: int = SIZE, overlap: int = OVERLAP) -> Splitting:
    """How the pipelines of these tests split."""
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
    cluster: str,
    server: OpenAIServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Generator[MakeTexts]:
    """Makes an empty source of some kind."""
    monkeypatch.setenv("ROWVEC_DATABASE_URL", database_url)
    monkeypatch.setenv("ROWVEC_HOME", str(tmp_path / "home"))
    name = f"elsewhere_{connection.info.dbname}"
    with psycopg.connect(cluster, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}".encode())
    yield lambda kind: Texts(kind, connection, make_conninfo(cluster, dbname=name), tmp_path, server)
    with psycopg.connect(cluster, autocommit=True) as admin:
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@pytest.fixture(params=KINDS)
def texts(request: pytest.FixtureRequest, make_texts: MakeTexts) -> Texts:
    """Five rows: three long texts, a short one, and a blank."""
    made = make_texts(request.param)
    for id_, sentences in ((1, 60), (2, 40), (3, 24), (4, 1)):
        made.put(id_, prose(sentences, seed=id_), f"author {id_}")
    made.put(5, " \n ")
    return made


@pytest.fixture
def beside(make_texts: MakeTexts) -> Texts:
    """The same beside the vector table."""
    made = make_texts("beside")
    for id_, sentences in ((1, 60), (2, 40), (3, 24), (4, 1)):
        made.put(id_, prose(sentences, seed=id_), f"author {id_}")
    made.put(5, " \n ")
    return made


def test_each_chunk_has_a_vector_and_the_second_sync_pays_nothing(texts: Texts, server: OpenAIServer) -> None:
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
