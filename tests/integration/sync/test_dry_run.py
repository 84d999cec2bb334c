"""``rowvec plan`` says what a sync would do, and leaves nothing behind; it needs no key, as it asks nobody."""

from __future__ import annotations

import csv
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from rowvec.operations.rebuild import plan_rebuild
from rowvec.pipeline import Pipeline
from rowvec.postgres.connection import Connection, connect
from rowvec.stages.batch_api import jobs
from rowvec.stages.dry_run import plan
from tests.integration.operations.test_generations import changed
from tests.support import paintings as gallery
from tests.support.fault_outcomes import paid, waits
from tests.support.servers.openai_server import KEY, OpenAIServer, serve
from tests.support.waiting import wait_for


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Generator[OpenAIServer]:
    """An embedder that costs money."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serve() as opened:
        yield opened


def everything(connection: Connection) -> dict[str, Any]:
    """All objects of the database, and the rows of the ledger."""
    objects: dict[str, Any] = {
        "objects": connection.execute(
            "SELECT c.oid::bigint, n.nspname, c.relname FROM pg_class AS c JOIN pg_namespace AS n ON n.oid ="
            " c.relnamespace WHERE n.nspname !~ '^pg_(toast|temp)' ORDER BY 1"
        ).fetchall(),
        "schemas": connection.execute("SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_' ORDER BY 1").fetchall(),
        "extensions": connection.execute("SELECT extname FROM pg_extension ORDER BY 1").fetchall(),
        "functions": connection.execute("SELECT count(*) FROM pg_proc").fetchone(),
    }
    for schema, table in [(schema, table) for _, schema, table in objects["objects"] if schema == "rowvec"]:
        kind = connection.execute("SELECT relkind FROM pg_class WHERE oid = %s::regclass", (f"{schema}.{table}",))
        if kind.fetchone() == ("r",):
            read = sql.SQL("SELECT t::text FROM {} AS t").format(sql.Identifier(schema, table))
            objects[table] = sorted(row for (row,) in connection.execute(read))
    return objects


@pytest.fixture
def odd(source: Connection, paintings: Pipeline) -> Pipeline:
    """Metadata of types that COPY does not write in their own form."""
    source.execute(
        "ALTER TABLE paintings ADD price numeric, ADD facts jsonb, ADD tags text[], ADD shown tstzrange;"
        "UPDATE paintings SET price = id / 3.0, facts = '{\"a\": 1}', tags = ARRAY['x', 'y'], shown = '[2020-01-01,)'"
    )
    return changed(paintings, source={"metadata": ["author", "year", "price", "facts", "tags", "shown"]})


def of_kind(kind: str, pipeline: Pipeline, url: str, folder: Path, connection: Connection) -> Pipeline:
    """The pipeline with its rows in another kind of source."""
    written = pipeline.model_dump(mode="json", exclude_none=True)
    if "chunks" in kind:
        written["source"]["chunks"] = {"tokens": 16, "overlap": 0}
    if "another database" in kind:
        # The same one by another address: rowvec compares by hashes.
        written["source"]["url"] = url + " application_name=elsewhere"
    elif kind == "csv":
        file = folder / "paintings.csv"
        with file.open("w", newline="") as out:
            found = connection.execute("SELECT id, title, description, author, year FROM paintings")
            csv.writer(out).writerows([("id", "title", "description", "author", "year"), *found.fetchall()])
        written["source"] = {k: v for k, v in written["source"].items() if k not in ("table", "kind", "metadata")} | {
            "kind": "csv",
            "path": str(file),
            "metadata": ["author", "year"],
        }
    return Pipeline.model_validate(written)


KINDS = ("table", "chunks", "another database", "chunks of another database", "csv")


@pytest.mark.needs("a superuser", "rowvec creates pgvector and the schemas")
@pytest.mark.parametrize("kind", KINDS)
def test_a_plan_before_the_first_sync_creates_nothing(
    source: Connection, odd: Pipeline, kind: str, database_url: str, direct_url: str, tmp_path: Path
) -> None:
    pipeline = of_kind(kind, odd, database_url, tmp_path, source)
    before = everything(source)
    assert plan(pipeline).new >= 50
    assert everything(source) == before
    # Without a ledger, and without the extension, too.
    source.execute("DROP SCHEMA rowvec CASCADE; DROP EXTENSION vector")
    with connect(direct_url) as fresh:
        before = everything(fresh)
        found = plan(pipeline)
        assert (found.new >= 50, found.deleted) == (True, 0)
        assert everything(fresh) == before
    assert gallery.sync(pipeline).new == found.new


@pytest.mark.parametrize("kind", KINDS)
def test_a_plan_after_a_sync_leaves_the_ledger_as_it_was(
    source: Connection, odd: Pipeline, kind: str, database_url: str, tmp_path: Path
) -> None:
    pipeline = of_kind(kind, odd, database_url, tmp_path, source)
    gallery.sync(pipeline)
    source.execute(
        "UPDATE paintings SET title = 'New' WHERE id <= 2; UPDATE paintings SET title = '', description = ''"
        " WHERE id = 3; DELETE FROM paintings WHERE id = 4"
    )
    pipeline = of_kind(kind, odd, database_url, tmp_path, source)
    before = everything(source)
    found = plan(pipeline)
    assert (found.changed >= 2, found.deleted >= 2, found.tokens) == (True, True, 0)
    assert everything(source) == before
    if kind == "table":
        planned = plan_rebuild(changed(pipeline, embedder={"dimensions": 128}))
        assert (planned["generation"], planned["table"], planned["begun"]) == (2, "vectors.paintings__2", False)
        assert everything(source) == before


def test_a_plan_needs_no_key_and_no_credential_of_the_store(
    source: Connection, server: OpenAIServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = paid(server, str(tmp_path / "artifacts"))
    stored = pipeline.artifacts.model_copy(
        update={"url": "https://nobody.blob.core.windows.net/none", "credential": "${NO_SUCH_CREDENTIAL}"}
    )
    monkeypatch.delenv("OPENAI_API_KEY")
    found = plan(pipeline.model_copy(update={"artifacts": stored}))
    assert (found.new, found.embedded) == (50, 50)
    assert [note for note in found.notes if "was not read" in note and "NO_SUCH_CREDENTIAL" in note] == list(
        found.notes
    )
    assert len(found.notes) == 1
    assert found.tokens > 0
    assert server.requests == []
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    gallery.sync(pipeline)
    monkeypatch.delenv("OPENAI_API_KEY")
    other = plan_rebuild(changed(pipeline, embedder={"model": "another-model"}))
    assert (other["embedded"], other["generation"]) == (50, 2)
    assert len(server.requests) > 0


def test_a_sync_does_not_wait_for_a_plan_under_way(
    source: Connection, paintings: Pipeline, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert source.execute("SELECT count(*) FROM paintings").fetchone() == (50,)

    def synced_meanwhile(*_: object) -> tuple[int, int]:
        monkeypatch.undo()
        monkeypatch.setenv("ROWVEC_DATABASE_URL", database_url)
        assert gallery.sync(paintings).new == 50
        return 0, 0

    monkeypatch.setattr(jobs, "at_work", synced_meanwhile)
    assert plan(paintings).new == 50
    assert gallery.sync(paintings).unchanged == 50


@pytest.mark.needs("a superuser", "rowvec creates the schema of its ledger again")
def test_a_first_sync_does_not_wait_for_a_plan_that_reads_its_source(
    source: Connection, paintings: Pipeline, database_url: str, direct_url: str, tmp_path: Path
) -> None:
    source.execute("DROP SCHEMA rowvec CASCADE; CREATE TABLE others AS SELECT * FROM paintings")
    other = changed(paintings, source={"table": "public.others"}, target={"table": "vectors.others"})
    other = other.model_copy(update={"name": "others"})
    slow = of_kind("another database", paintings, database_url, tmp_path, source)
    with ThreadPoolExecutor(1) as pool, psycopg.connect(direct_url) as holder:
        holder.execute("LOCK TABLE paintings")
        planned = pool.submit(plan, slow)
        wait_for(lambda: waits(source, "rowvec source"))
        assert gallery.sync(other).new == 50
        assert not planned.done()
        holder.rollback()
        # It looks again, at the ledger that there is now.
        assert planned.result().new == 50
