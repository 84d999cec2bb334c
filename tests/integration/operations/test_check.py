"""``rowvec check``: what it finds, that its remedies are enough, and that it leaves nothing behind."""

from __future__ import annotations

import csv
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from rowvec.operations.setup.check import Scope, check
from rowvec.operations.setup.finding import Finding
from rowvec.pipeline import Pipeline
from rowvec.postgres.connection import Connection
from rowvec.runtime.prefect_server import PrefectServer
from tests.support import paintings as gallery
from tests.support.cli_process import write_pipeline
from tests.support.images import save
from tests.support.paintings import SOURCE, Client, fill
from tests.support.servers.openai_server import KEY, failing, serve

OFFLINE = Scope(online=False)
SERVERS = Scope(embedder=False)
NOWHERE = "http://127.0.0.1:1/api"
ROW = Scope(embedder=False, row=True)


def states(found: list[Finding]) -> dict[str, str]:
    """The worst state by name."""
    order = ("ok", "warning", "fault")
    return {one.name: max((f.state for f in found if f.name == one.name), key=order.index) for one in found}


def faults(found: list[Finding]) -> list[str]:
    return [f"{one.detail}: {one.remedy}" for one in found if one.state == "fault"]


@pytest.mark.needs("pgvector 0.8.4", "an older one is a warning")
@pytest.mark.needs("no pooler", "it is a warning")
@pytest.mark.needs("a superuser", "the schema of the ledger is not there")
def test_all_is_well_and_nothing_is_left(source: Connection, paintings: Pipeline, tmp_path: Path) -> None:
    source.execute("ANALYZE paintings; DROP SCHEMA rowvec CASCADE")
    found = list(check(write_pipeline(paintings, tmp_path), Scope()))
    names = "file variables target server pgvector privileges connections source index store embedder prefect"
    assert states(found) == dict.fromkeys(names.split(), "ok")
    assert any("about 50 rows" in one.detail for one in found)
    assert source.execute("SELECT to_regnamespace('rowvec'), to_regnamespace('vectors')").fetchone() == (None, None)
    assert list((tmp_path / "artifacts").rglob("*")) == []


def test_offline_asks_no_server(paintings: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROWVEC_DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none")
    file = write_pipeline(paintings, tmp_path)
    assert states(list(check(file, OFFLINE))) == {"file": "ok", "variables": "ok"}
    # And with servers, one that does not answer is a fault, after which the others are still asked.
    found = states(list(check(file, SERVERS)))
    assert (found["target"], found["store"]) == ("fault", "ok")


def test_each_mistake_of_a_file_and_each_missing_variable_is_a_finding(
    paintings: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bad.yaml").write_text("name: X\nsource: {kind: csv, paht: a.csv}\n", "utf-8")
    assert len(faults(list(check(tmp_path / "bad.yaml", Scope())))) >= 4
    monkeypatch.delenv("ROWVEC_DATABSE_URL", raising=False)
    monkeypatch.setenv("ROWVEC_DATABASE_URL", "postgresql://")
    written = gallery.pipeline(str(tmp_path), target={"url": "${ROWVEC_DATABSE_URL}"})
    (only,) = faults(list(check(write_pipeline(written, tmp_path), Scope())))
    assert "target.url: the environment variable ROWVEC_DATABSE_URL is not set" in only
    assert "did you mean 'ROWVEC_DATABASE_URL'?" in only


def test_a_table_and_columns_that_are_misspelt_are_named_with_what_was_meant(
    source: Connection, tmp_path: Path
) -> None:
    def told(**changes: Any) -> str:
        whole = {**gallery.pipeline(str(tmp_path)).source.model_dump(exclude_none=True), **changes}
        written = gallery.pipeline(str(tmp_path), source={"kind": "postgres", **whole})
        return " ".join(faults(list(check(write_pipeline(written, tmp_path), SERVERS))))

    assert "did you mean 'public.paintings'?" in told(table="public.paintngs")
    assert "did you mean 'title'?" in told(content="{titel}")
    assert "has no column 'yaer'" in told(metadata=["yaer"])
    source.execute("ALTER TABLE paintings DROP CONSTRAINT paintings_pkey")
    assert told() == ""
    assert (
        states(list(check(write_pipeline(gallery.pipeline(str(tmp_path)), tmp_path), SERVERS)))["source key"]
        == "warning"
    )


@pytest.fixture
def poor(direct_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[Client]:
    """An administrator's session; pipelines connect as a role that may nothing but connect."""
    with psycopg.connect(direct_url, autocommit=True) as admin:
        admin.execute(SOURCE)
        fill(admin, 5)
        database = sql.Identifier(admin.info.dbname)
        admin.execute('CREATE ROLE "poor one" LOGIN')
        admin.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(database))
        admin.execute(sql.SQL('GRANT CONNECT ON DATABASE {} TO "poor one"').format(database))
        admin.execute("REVOKE ALL ON SCHEMA public FROM PUBLIC; DROP EXTENSION vector CASCADE; CREATE SCHEMA vectors")
        monkeypatch.setenv("ROWVEC_DATABASE_URL", make_conninfo(direct_url, user="poor one"))
        monkeypatch.setenv("ROWVEC_HOME", str(tmp_path / "home"))
        yield admin
        admin.execute('REASSIGN OWNED BY "poor one" TO postgres; DROP OWNED BY "poor one"; DROP ROLE "poor one"')


@pytest.mark.needs("a superuser", "the role of the test begins without a schema")
def test_the_statements_of_the_remedies_are_enough(poor: Client, paintings: Pipeline, tmp_path: Path) -> None:
    file = write_pipeline(paintings, tmp_path)
    ran: list[str] = []
    found: list[Finding] = []
    for _ in range(4):
        found = list(check(file, SERVERS))
        needed = [f.remedy.partition(" runs: ")[2] for f in found if f.state == "fault" and f.remedy]
        if not needed:
            break
        for statement in needed:
            poor.execute(statement.encode())
        ran += needed
    assert "fault" not in states(found).values()
    words = " ".join(ran)
    for wanted in (
        "CREATE EXTENSION vector",
        "GRANT TEMPORARY",
        "OWNER TO",
        "GRANT USAGE, CREATE ON SCHEMA",
        "GRANT SELECT",
    ):
        assert wanted in words
    assert gallery.sync(paintings).new == 5


def ledger(connection: Connection) -> dict[str, int]:
    """The rows of each table of the ledger, and each relation outside it."""
    tables = connection.execute(
        "SELECT n.nspname, c.relname FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace"
        " WHERE c.relkind IN ('r', 'v') AND n.nspname IN ('rowvec', 'vectors', 'public')"
    ).fetchall()
    return {
        f"{schema}.{name}": (
            connection.execute(sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(schema, name))).fetchone()
            or (0,)
        )[0]
        for schema, name in tables
    }


@pytest.mark.parametrize("kind", ["postgres", "csv", "images"])
def test_one_row_goes_through_all_stages_and_nothing_of_it_is_left(
    kind: str, source: Connection, paintings: Pipeline, tmp_path: Path
) -> None:
    gallery.sync(paintings)
    before = ledger(source)
    objects = sorted((tmp_path / "artifacts").rglob("*"))
    parts: dict[str, dict[str, Any]] = {
        "postgres": {},
        "csv": {"source": {"kind": "csv", "path": str(tmp_path / "a.csv"), "key": ["id"], "content": "{title}"}},
        "images": {
            "source": {
                "kind": "images",
                "path": str(tmp_path / "i"),
                "key": ["image_file"],
                "content": {"image": "image_file"},
            },
            "embedder": {"kind": "local_image"},
        },
    }
    with (tmp_path / "a.csv").open("w") as file:
        csv.writer(file).writerows([("id", "title"), ("1", ""), ("2", "a title")])
    save(1, tmp_path / "i/deep/one.png", side=32)
    written = gallery.pipeline(str(tmp_path / "artifacts"), **parts[kind])
    found = list(check(write_pipeline(written, tmp_path), ROW))
    assert faults(found) == []
    assert states(found)["one row"] == "ok"
    assert ledger(source) == before
    assert [path for path in sorted((tmp_path / "artifacts").rglob("*")) if path.is_file()] == [
        path for path in objects if path.is_file()
    ]


def test_the_embedder_is_asked_once_and_its_cost_is_said(
    source: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serve() as server:
        config = {"kind": "openai", "model": "text-embedding-3-small", "dimensions": 64, "base_url": server.url}
        file = write_pipeline(gallery.pipeline(str(tmp_path), embedder=config), tmp_path)
        (told,) = [one for one in check(file, Scope()) if one.name == "embedder"]
        assert (told.state, len(server.texts)) == ("ok", 1)
        assert "it cost less than $0.0001" in told.detail
        list(check(file, SERVERS))
        assert len(server.texts) == 1
    with serve(faults=[failing(500, times=-1)]) as server:
        config["base_url"] = server.url
        file = write_pipeline(gallery.pipeline(str(tmp_path), embedder=config), tmp_path)
        assert states(list(check(file, Scope())))["embedder"] == "fault"
        assert len(server.requests) <= 2


def test_a_store_that_cannot_be_written_is_a_fault(source: Connection, tmp_path: Path) -> None:
    (tmp_path / "full").write_text("a file in place of the folder", "utf-8")
    file = write_pipeline(gallery.pipeline(str(tmp_path / "full")), tmp_path)
    (told,) = [one for one in check(file, SERVERS) if one.name == "store"]
    assert told.state == "fault"
    assert str(tmp_path / "full") in told.detail


@pytest.mark.parametrize(("api", "state", "words"), [(None, "ok", "starts its own"), (NOWHERE, "fault", "a test")])
def test_prefect_is_asked_at_the_address_that_is_known(
    api: str | None,
    state: str,
    words: str,
    paintings: Pipeline,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ROWVEC_DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none")
    scope = replace(SERVERS, server=PrefectServer(api=api, named_by="a test") if api else None)
    (told,) = [one for one in check(write_pipeline(paintings, tmp_path), scope) if one.name == "prefect"]
    assert told.state == state
    assert words in told.detail
