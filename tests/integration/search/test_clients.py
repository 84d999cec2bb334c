"""Every block of docs/how-to/clients.md runs, by a role with the page's grants, against a table that a sync made."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, LiteralString, cast

import numpy as np
import psycopg
import pytest
import yaml
from psycopg import sql
from sqlalchemy import make_url

from rowvec.pipeline import Pipeline
from rowvec.postgres.connection import Connection, connect
from tests.support.paintings import sync
from tests.support.servers.openai_server import KEY, serve

pytestmark = pytest.mark.needs("pgvector in public", "the page writes public.vector")

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/how-to/clients.md").read_text("utf-8")
CLIENTS = ["psycopg", "SQLAlchemy", "LangChain", "LlamaIndex"]
OWN_SEARCHES = {"psycopg": 2, "SQLAlchemy": 4, "LangChain": 2, "LlamaIndex": 2}
"""What a section queries from the table itself, in its clients' own SQL; each also calls the function twice."""
GIRL_WITH_A_PEARL_EARRING = 61

HALFVEC = {
    "public.vector": "public.halfvec",
    "import register_vector": "import register_vector; from pgvector import HalfVector",
    "(question,": "(HalfVector(question),",
    "VECTOR": "HALFVEC",
    "AS vector": "AS halfvec",
    "use_jsonb=True": "use_jsonb=True, use_halfvec=True",
}
"""What the page says to write differently if the table holds halfvec."""


@dataclass(frozen=True, slots=True)
class Library:
    """A database with the page's table."""

    on: str
    """What its index is on: float, bits, or halfvec for float with a table that holds halfvec."""
    url: str
    """The DSN of the role that may do everything."""
    searcher: str
    """The DSN of the role of the page."""

    def scans(self) -> tuple[int, int]:
        """How often the index on vectors was scanned so far, and how often the whole table."""
        with connect(self.url) as connection:
            # A session reports its counts when it ends, at the latest.
            while _one(connection, "SELECT count(*) FROM pg_stat_activity WHERE usename = 'searcher'"):
                time.sleep(0.01)
            index = _one(
                connection,
                "SELECT sum(s.idx_scan) FROM pg_stat_user_indexes AS s JOIN pg_class AS c ON c.oid = s.indexrelid"
                " JOIN pg_am AS am ON am.oid = c.relam WHERE am.amname = 'hnsw' AND s.relname = 'articles'",
            )
            whole = _one(connection, "SELECT seq_scan FROM pg_stat_user_tables WHERE relname = 'articles'")
            return int(index), int(whole)

    def state(self) -> list[tuple[Any, ...]]:
        """All objects of the database, and the rows of the table: a client that only reads changes neither."""
        with connect(self.url) as connection:
            return connection.execute(
                "SELECT relnamespace::regnamespace::text, relname, relkind::text FROM pg_class"
                " WHERE relnamespace::regnamespace::text !~ '^pg_'"
                " UNION ALL SELECT 'rows', md5(string_agg(a::text, '' ORDER BY id)), '' FROM vectors.articles AS a"
                " ORDER BY 1, 2"
            ).fetchall()


@dataclass(frozen=True, slots=True)
class Outcome:
    """The names and results that a section of the page leaves."""

    names: dict[str, Any]
    index_scans: int


def blocks(heading: str, language: str, on: str = "float") -> list[str]:
    """The code of one section of the page, as the page gives it for such a table."""
    section = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert section, heading
    found = re.findall(rf"^```{language}\n(.*?)^```", section[1], re.MULTILINE | re.DOTALL)
    assert found, f"{heading} has no {language}"
    for written, instead in HALFVEC.items() if on == "halfvec" else ():
        found = [block.replace(written, instead) for block in found]
    return found


def run(heading: str, on: str, names: dict[str, Any]) -> dict[str, Any]:
    """Run a section's Python from top to bottom; returns all its names."""
    names = {"__name__": "page", **names}
    for number, block in enumerate(blocks(heading, "python", on)):
        exec(compile(block, f"docs/how-to/clients.md, {heading}, {number}", "exec", dont_inherit=True), names)  # noqa: S102 # the page's own code is what is tested
    return names


@contextmanager
def complaints() -> Generator[list[str]]:
    """The warnings that any library logs in the ``with`` block."""
    logged: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: logged.append(record.getMessage())
    logging.getLogger().addHandler(handler)
    try:
        yield logged
    finally:
        logging.getLogger().removeHandler(handler)


def grant(url: str, statements: list[str]) -> None:
    with connect(url) as connection:
        for statement in statements:
            connection.execute(cast("LiteralString", statement))


@pytest.fixture(scope="module", params=["float", "bits", "halfvec"])
def library(
    request: pytest.FixtureRequest, cluster: str, tmp_path_factory: pytest.TempPathFactory
) -> Generator[Library]:
    """The demo's paintings as ``vectors.articles``, synced; PUBLIC has no privileges."""
    on, folder = str(request.param), tmp_path_factory.mktemp("clients")
    name = f"clients_{on}"
    admin = make_url(cluster).set(database=name)
    library = Library(
        on,
        admin.render_as_string(hide_password=False),
        admin.set(username="searcher", password=None).render_as_string(hide_password=False),
    )
    with psycopg.connect(cluster, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template_rowvec").format(sql.Identifier(name)))
    pipeline = {
        "name": "articles",
        "source": {
            "kind": "csv",
            "path": str(ROOT / "rowvec/cli/demo/paintings.csv"),
            "key": ["id"],
            "content": "{title}\n{description}",
            "metadata": ["author", "year"],
            "types": {"id": "bigint", "year": "bigint"},
        },
        "embedder": {"kind": "local", "dimensions": 256},
        "target": {"table": "vectors.articles", "precision": "float16" if on == "halfvec" else "float32"},
        "artifacts": {"url": str(folder / "artifacts")},
        "index": {"kind": "hnsw", "on": "bits" if on == "bits" else "float"},
    }
    (folder / "articles.yaml").write_text(yaml.safe_dump(pipeline), "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROWVEC_DATABASE_URL", library.url)
        patch.setenv("ROWVEC_HOME", str(folder / "home"))
        sync(Pipeline.model_validate(pipeline))
        grant(
            library.url,
            [
                "REVOKE ALL ON SCHEMA public FROM PUBLIC",
                "REVOKE EXECUTE ON FUNCTION vectors.articles_search FROM PUBLIC",
                *blocks("A role that only reads", "sql"),
                *blocks("LlamaIndex", "sql", on),
            ],
        )
        patch.setenv("DATABASE_URL", library.searcher)
        patch.setenv("LANGSMITH_TRACING", "false")
        patch.chdir(folder)
        yield library
    grant(library.url, ["DROP OWNED BY searcher", "DROP ROLE searcher"])
    with psycopg.connect(cluster, autocommit=True) as connection:
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture(scope="module")
def embed(library: Library) -> Callable[[str], list[float]]:
    """The page's ``embed``, by the pipeline's own embedder."""
    del library  # made the pipeline file
    names: dict[str, Any] = {}
    exec(blocks("The question's vector", "python")[1], names)  # noqa: S102 # the page's own code is what is tested
    return names["embed"]


@pytest.fixture(scope="module")
def outcomes(library: Library, embed: Callable[[str], list[float]]) -> Callable[[str], Outcome]:
    """Runs a section of the page, once."""
    done: dict[str, Outcome] = {}

    def outcome(heading: str) -> Outcome:
        if heading not in done:
            state, before = library.state(), library.scans()
            with complaints() as logged:
                names = run(heading, library.on, {"embed": embed})
            after = library.scans()
            assert library.state() == state, f"{heading} writes"
            assert logged == [], f"{heading} tries what it has no privilege for, and reports that only in the log"
            done[heading] = Outcome(names, after[0] - before[0])
        return done[heading]

    return outcome


def nearest(library: Library, question: list[float], condition: LiteralString = "true") -> list[int]:
    """The five ids that are nearest, from the distances of all rows."""
    exact = sql.SQL(
        "SELECT id FROM vectors.articles WHERE {} ORDER BY (embedding::vector <=> %s::vector) + 0, id LIMIT 5"
    )
    with connect(library.url) as connection:
        rows = connection.execute(exact.format(sql.SQL(condition)), (str(question),)).fetchall()
    return [row[0] for row in rows]


def found(name: str, client: str, names: dict[str, Any]) -> list[int]:
    """The ids of a result, in each client's own form."""
    result = names[name]
    match client:
        case "LangChain":
            documents = [entry[0] if isinstance(entry, tuple) else entry for entry in result]
            return [int(document.id) for document in documents]
        case "LlamaIndex":
            return [int(entry.node.node_id) for entry in result]
        case _:
            return [row.id if hasattr(row, "id") else row[0] for row in result]


@pytest.mark.parametrize("client", CLIENTS)
def test_a_search_finds_what_is_nearest(
    library: Library, embed: Callable[[str], list[float]], outcomes: Callable[[str], Outcome], client: str
) -> None:
    names, question = outcomes(client).names, embed("a girl with a pearl")
    true = nearest(library, question)
    assert true[0] == GIRL_WITH_A_PEARL_EARRING
    old = nearest(library, question, "year < 1800")
    vermeer = nearest(library, question, "author = 'Johannes Vermeer'")
    assert len({*old, *vermeer, *true}) > 5
    assert found("nearest", client, names) == true
    assert found("filtered", client, names) == old
    assert found("by_function", client, names) == true
    assert found("by_author", client, names) == vermeer


@pytest.mark.parametrize("client", CLIENTS)
def test_a_search_goes_through_the_index_where_the_page_says_so(
    library: Library, outcomes: Callable[[str], Outcome], client: str
) -> None:
    outcome = outcomes(client)
    before = library.scans()
    for filtered in (None, "{}", '{"author": "Johannes Vermeer"}'):
        with psycopg.connect(library.searcher) as connection:
            call = "SELECT FROM vectors.articles_search(%s, 5, filter => %s)"
            connection.execute(call, (str(outcome.names["embed"]("a girl with a pearl")), filtered))
        if filtered != '{"author": "Johannes Vermeer"}':
            after = library.scans()
            assert after == (before[0] + 1, before[1]), "the function does not go through the index alone"
            before = after
    by_author = library.scans()[0] - before[0]
    own = OWN_SEARCHES[client] if library.on != "bits" else 0
    assert outcome.index_scans == own + 1 + by_author


def test_a_filter_that_only_far_rows_pass_still_finds_them(
    library: Library, embed: Callable[[str], list[float]]
) -> None:
    """With the role's settings a plain query goes on; with pgvector's own it would stop after the nearest rows."""
    question = str(embed("a girl with a pearl"))
    distance = sql.SQL("embedding <=> {}::halfvec" if library.on == "halfvec" else "embedding <=> {}::vector")
    statement = sql.SQL("SELECT id FROM vectors.articles WHERE {} ORDER BY {} LIMIT 5")
    by_distance = distance.format(sql.Literal(question))
    with connect(library.url) as connection:
        from_afar = sql.SQL("{} DESC").format(by_distance)
        far = [row[0] for row in connection.execute(statement.format(sql.SQL("true"), from_afar)).fetchall()]
    with psycopg.connect(library.searcher) as connection:
        rows = connection.execute(statement.format(sql.SQL("id + 0 = ANY ({})").format(far), by_distance)).fetchall()
    assert [row[0] for row in rows] == far[::-1]


@pytest.mark.parametrize("client", ["psycopg", "SQLAlchemy", "LlamaIndex"])
def test_vectors_are_read_as_they_are(library: Library, outcomes: Callable[[str], Outcome], client: str) -> None:
    vectors = outcomes(client).names["vectors"]
    assert vectors.dtype == (np.float16 if (library.on, client) == ("halfvec", "psycopg") else np.float32)
    with connect(library.url) as connection:
        rows = connection.execute(
            "SELECT embedding::real[] FROM vectors.articles ORDER BY id LIMIT %s", (len(vectors),)
        ).fetchall()
    assert vectors.shape == (len(rows), 256)
    assert np.array_equal(vectors, np.array([row[0] for row in rows], np.float32))


def test_the_plan_shows_the_index(library: Library, outcomes: Callable[[str], Outcome]) -> None:
    plan = "\n".join(line for (line,) in outcomes("psycopg").names["plan"])
    assert ("Index Scan using articles_rowvec_" in plan) == (library.on != "bits")


def test_a_model_reads_what_reflection_reads(outcomes: Callable[[str], Outcome]) -> None:
    names = outcomes("SQLAlchemy").names
    assert [article.id for article in names["nearest_articles"]] == [row.id for row in names["nearest"]]
    assert [article.id for article in names["filtered_articles"]] == [row.id for row in names["filtered"]]
    assert names["nearest_articles"][0].author == "Johannes Vermeer"
    assert names["vector"].shape == (256,)
    assert set(names["articles"].columns.keys()) >= {"id", "author", "year", "content", "embedding", "embedding_bits"}


def test_documents_and_nodes_carry_content_and_metadata(outcomes: Callable[[str], Outcome]) -> None:
    names = outcomes("LangChain").names
    document, distance = names["nearest"][0]
    assert document.page_content.startswith("Girl with a Pearl Earring\n")
    assert document.metadata == {"author": "Johannes Vermeer", "year": 1665}
    assert names["by_function"][0].metadata["distance"] == pytest.approx(distance)
    names = outcomes("LlamaIndex").names
    for name in ("nearest", "by_function"):
        first = names[name][0]
        assert first.node.get_content().startswith("Girl with a Pearl Earring\n")
        assert first.node.metadata == {"author": "Johannes Vermeer", "year": 1665}
        assert first.score == pytest.approx(1 - distance)


def test_llamaindex_writes_a_filters_values_into_its_sql(outcomes: Callable[[str], Outcome]) -> None:
    """The page warns of it; when this test fails, the warning can be removed."""
    from llama_index.core.vector_stores import MetadataFilter, MetadataFilters
    from sqlalchemy.exc import ProgrammingError

    names = outcomes("LlamaIndex").names
    quoted = MetadataFilters(filters=[MetadataFilter(key="author", value="O'Keeffe")])
    with pytest.raises(ProgrammingError, match="syntax error"):
        names["index"].as_retriever(filters=quoted).retrieve("a flower")
    names["store"]._engine.dispose()
    assert names["Articles"](filter={"author": "O'Keeffe"}).retrieve("a flower") == []


GRANTS = [
    statement.removesuffix(";")
    for statement in blocks("A role that only reads", "sql")[0].splitlines()
    if statement.startswith("GRANT")
]


@pytest.mark.parametrize("statement", GRANTS)
def test_no_grant_of_the_page_is_one_too_many(library: Library, statement: str) -> None:
    def search() -> None:
        with psycopg.connect(library.searcher) as connection:
            connection.execute("SELECT * FROM vectors.articles_search(%s)", (str([1] * 256),))

    search()
    grant(library.url, [statement.replace("GRANT", "REVOKE", 1).replace(" TO ", " FROM ")])
    try:
        # A role that may not use their schema does not see pgvector's operators at all.
        with pytest.raises((psycopg.errors.InsufficientPrivilege, psycopg.errors.UndefinedFunction)):
            search()
    finally:
        grant(library.url, [statement])
    search()


def test_the_role_can_only_read(library: Library) -> None:
    refused: list[LiteralString] = [
        "UPDATE vectors.articles SET author = 'nobody'",
        "DELETE FROM vectors.articles",
        "INSERT INTO vectors.articles (id) VALUES (0)",
        "TRUNCATE vectors.articles",
        "CREATE TABLE vectors.mine (id int)",
        "SELECT * FROM rowvec.runs",
    ]
    with psycopg.connect(library.searcher, autocommit=True) as connection:
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            connection.execute(refused[0])
        # The setting is a convenience; the grants decide what the role may do.
        connection.execute("SET default_transaction_read_only = off")
        for statement in refused:
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement)


def test_a_table_that_is_created_later_can_be_read_too(library: Library) -> None:
    grant(library.url, ["CREATE TABLE vectors.later AS SELECT 1 AS id"])
    try:
        with psycopg.connect(library.searcher) as connection:
            assert connection.execute("SELECT id FROM vectors.later").fetchall() == [(1,)]
    finally:
        grant(library.url, ["DROP TABLE vectors.later"])


def test_a_view_for_llamaindex_does_not_hold_the_table(library: Library) -> None:
    with connect(library.url) as connection, connection.transaction(force_rollback=True):
        connection.execute("ALTER TABLE vectors.articles RENAME TO articles_old")
        connection.execute("CREATE TABLE vectors.articles (LIKE vectors.articles_old)")
        connection.execute("DROP TABLE vectors.articles_old")
        assert _one(connection, "SELECT count(*) FROM vectors.data_articles") == 0


def test_the_page_names_the_versions_it_was_tried_with() -> None:
    tried = re.findall(r"^\| ([\w-]+) \| (\d[\d.]*) \|$", PAGE, re.MULTILINE)
    assert len(tried) >= 7
    for library, tried_version in tried:
        assert f"{version(library)}.".startswith(f"{tried_version}."), library


def test_the_question_is_embedded_by_openai(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(key=KEY) as server:
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        names: dict[str, Any] = {}
        exec(blocks("The question's vector", "python")[0], names)  # noqa: S102 # the page's own code is what is tested
        assert len(names["embed"]("a girl with a pearl")) == 256
        names["openai"].close()


def _one(connection: Connection, statement: LiteralString) -> Any:
    row = connection.execute(statement).fetchone()
    assert row
    return row[0]
