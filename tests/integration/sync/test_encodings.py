"""Databases that are not in UTF-8: a row whose text cannot be read or stored is rejected, and all others land."""

from __future__ import annotations

from collections.abc import Callable

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from rowvec.operations import rejects, search
from rowvec.operations.audit import audit
from rowvec.pipeline import Pipeline
from rowvec.postgres.connection import Connection, connect
from rowvec.postgres.migrations import install
from tests.support import paintings as gallery
from tests.support.paintings import fill, sync

Database = Callable[[str], str]


@pytest.fixture
def database_in(cluster: str) -> Database:
    """Makes a database in an encoding; returns its DSN."""

    def make(encoding: str) -> str:
        name = f"encoded_{encoding.lower()}"
        create = sql.SQL("CREATE DATABASE {} TEMPLATE template0 ENCODING {} LOCALE 'C'")
        drop = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
        with psycopg.connect(cluster, autocommit=True) as admin:
            admin.execute(drop)
            admin.execute(create.format(sql.Identifier(name), sql.Literal(encoding)))
        url = make_conninfo(cluster, dbname=name)
        with connect(url) as connection:
            install(connection)
            connection.execute(gallery.SOURCE)
            fill(connection, 20)
        return url

    return make


@pytest.mark.parametrize("away", [False, True])
def test_a_byte_that_is_no_utf_8_in_a_database_without_encoding(
    source: Connection, paintings: Pipeline, database_in: Database, monkeypatch: pytest.MonkeyPatch, away: bool
) -> None:
    url = database_in("SQL_ASCII")
    if not away:
        monkeypatch.setenv("ROWVEC_DATABASE_URL", url)
    part = paintings.source.model_copy(update={"url": url} if away else {})
    made = paintings.model_copy(update={"source": part})
    with connect(url) as odd:
        odd.execute("UPDATE paintings SET title = 'äöü € 😀' WHERE id = 1")
        assert sync(made).rows == 20
        odd.execute(rb"UPDATE paintings SET title = E'caf\351' WHERE id = 2")
        odd.execute(rb"UPDATE paintings SET author = E'\355\240\200' WHERE id = 3")
        odd.execute("UPDATE paintings SET title = 'other' WHERE id = 4")
        odd.execute("ALTER TABLE paintings ADD note text")
        odd.execute(rb"UPDATE paintings SET note = E'\377' WHERE id = 5")
        report = sync(made)
        assert (report.changed, report.rejected, report.rows, report.consistent) == (1, 2, 18, True)
        found = rejects.rejects(made).as_json()["rejects"]
        assert {(reject["key"][0], reject["reason"]) for reject in found} == {("2", "unreadable"), ("3", "unreadable")}
        assert audit(made).consistent
        assert search.search(made, "äöü € 😀", 1, mode="exact")[0].key["id"] == 1
        odd.execute("UPDATE paintings SET title = 'café', author = 'x' WHERE id IN (2, 3)")
        report = sync(made)
        assert (report.rejected, report.rows) == (0, 20)


def test_a_key_that_is_no_utf_8_is_named_by_its_bytes(
    source: Connection, paintings: Pipeline, database_in: Database
) -> None:
    url = database_in("SQL_ASCII")
    with connect(url) as odd:
        odd.execute("CREATE TABLE keyed (k text, title text)")
        odd.execute(rb"INSERT INTO keyed VALUES ('a', 'one'), (E'b\\\351', 'two'), (E'b\\\351', 'three')")
    part = paintings.source.model_copy(
        update={"url": url, "table": "public.keyed", "key": ["k"], "content": "{title}", "metadata": []}
    )
    made = paintings.model_copy(update={"source": part})
    for _ in range(2):
        report = sync(made)
        assert (report.rows, report.rejected, report.consistent) == (1, 1, True)
    (reject,) = rejects.rejects(made).as_json()["rejects"]
    assert (reject["key"], reject["reason"]) == (["b\\\\\\351"], "unreadable")


def test_characters_that_the_targets_encoding_does_not_have(
    source: Connection, paintings: Pipeline, database_in: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROWVEC_DATABASE_URL", database_in("LATIN1"))
    part = paintings.source.model_copy(update={"url": database_url})
    made = paintings.model_copy(update={"source": part})
    source.execute("UPDATE paintings SET title = 'café' WHERE id = 1")
    source.execute("UPDATE paintings SET title = '東京' WHERE id = 2")
    source.execute("UPDATE paintings SET author = '€' WHERE id = 3")
    report = sync(made)
    assert (report.rows, report.rejected, report.consistent) == (48, 2, True)
    found = {reject["key"][0]: reject for reject in rejects.rejects(made).as_json()["rejects"]}
    assert {key: (reject["reason"], reject["sqlstate"]) for key, reject in found.items()} == {
        "2": ("refused", "22P05"),
        "3": ("refused", "22P05"),
    }
    again = sync(made)
    assert (again.new, again.changed, again.rejected, again.unchanged) == (0, 0, 2, 48)
    assert audit(made).consistent
    source.execute("UPDATE paintings SET author = 'E' WHERE id = 3")
    source.execute("UPDATE paintings SET title = '大阪' WHERE id = 4")
    report = sync(made)
    assert (report.new, report.rows, report.rejected, report.consistent) == (1, 48, 2, True)
    chunked = source_in_chunks(made)
    report = sync(chunked)
    assert (report.rows, report.rejected, report.consistent) == (48, 2, True)
    assert sync(chunked).unchanged == 48


@pytest.mark.parametrize(("encoding", "stored"), [("LATIN1", 2), ("SQL_ASCII", 3)])
def test_a_key_that_the_targets_encoding_does_not_have(
    source: Connection,
    paintings: Pipeline,
    database_in: Database,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
    encoding: str,
    stored: int,
) -> None:
    monkeypatch.setenv("ROWVEC_DATABASE_URL", database_in(encoding))
    source.execute("CREATE TABLE keyed (k text PRIMARY KEY, title text)")
    source.execute("INSERT INTO keyed VALUES ('a', 'one'), ('é', 'two'), ('東京', 'three')")
    part = paintings.source.model_copy(
        update={"url": database_url, "table": "public.keyed", "key": ["k"], "content": "{title}", "metadata": []}
    )
    made = paintings.model_copy(update={"source": part})
    for _ in range(2):
        report = sync(made)
        assert (report.rows, report.rejected, report.consistent) == (stored, 3 - stored, True)
        found = rejects.rejects(made, retry=False).as_json()["rejects"]
        assert [(reject["key"], reject["sqlstate"]) for reject in found] == [(["\\u6771\\u4eac"], "22P05")][
            : 3 - stored
        ]
        assert audit(made).consistent
    source.execute("INSERT INTO keyed VALUES ('大阪', 'four'), ('b', 'five')")
    assert [finding.key for finding in audit(made).findings if "b" not in finding.key] == [
        ("\\u5927\\u962a",) if stored == 2 else ("大阪",)
    ]
    report = sync(made)
    assert (report.rows, report.rejected, report.consistent) == ({2: 3, 3: 5}[stored], 2 * (3 - stored), True)
    source.execute("DELETE FROM keyed WHERE k = '東京'")
    report = sync(made)
    assert (report.rows, report.rejected, report.consistent) == ({2: 3, 3: 4}[stored], 3 - stored, True)


def source_in_chunks(pipeline: Pipeline) -> Pipeline:
    """The same source, split, in another vector table."""
    return gallery.pipeline(
        pipeline.artifacts.url,
        source={"url": pipeline.source.model_dump()["url"], "chunks": {}},
        target={"table": "vectors.chunks"},
    ).model_copy(update={"name": "chunks"})
