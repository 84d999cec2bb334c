"""Data of each earlier state of the ledger is migrated, and a run by this program pays for nothing again."""

from __future__ import annotations

from collections.abc import Collection, Generator
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from psycopg import sql

from rowvec.operations.audit import audit
from rowvec.operations.restore import finish_restore, restore_rows, restoring
from rowvec.operations.search import search
from rowvec.operations.sync import sync
from rowvec.operations.verify import prove, verify
from rowvec.pipeline import Pipeline
from rowvec.postgres.connection import connect
from rowvec.postgres.queries import blocks
from rowvec.stages.dry_run import plan
from rowvec.stages.report import conclude
from tests.support.ledger_states import scene
from tests.support.ledger_states.states import COMMITS, archive, load
from tests.support.servers.openai_server import KEY, OpenAIServer, serve, vector

pytestmark = pytest.mark.needs("pgvector in public", "the dumps name its types there")

SCHEMA = """
    SELECT c.relkind::text, c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull,
           a.attidentity::text, pg_get_expr(d.adbin, d.adrelid)
    FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    LEFT JOIN pg_attrdef AS d ON d.adrelid = c.oid AND d.adnum = a.attnum
    WHERE c.relnamespace = 'rowvec'::regnamespace AND c.relname !~ '_[0-9]+(_|$)'
    UNION ALL
    SELECT 'constraint', conrelid::regclass::text, conname, pg_get_constraintdef(oid), NULL, NULL, NULL
    FROM pg_constraint
    WHERE connamespace = 'rowvec'::regnamespace AND contype <> 'n' AND conrelid::regclass::text !~ '_[0-9]+$'
    UNION ALL
    SELECT 'function', p.oid::regprocedure::text, NULL, pg_get_functiondef(p.oid), NULL, NULL, NULL
    FROM pg_proc AS p WHERE pronamespace = 'rowvec'::regnamespace
    UNION ALL
    SELECT 'definition', viewname, NULL, definition, NULL, NULL, NULL FROM pg_views WHERE schemaname = 'rowvec'
    UNION ALL
    SELECT 'index', indexname, NULL, indexdef, NULL, NULL, NULL FROM pg_indexes
    WHERE schemaname = 'rowvec' AND tablename !~ '_[0-9]+$'
    ORDER BY 1, 2, 3, 4
"""

Client = psycopg.Connection[tuple[Any, ...]]


@pytest.fixture(scope="module")
def embedder() -> Generator[OpenAIServer]:
    with serve(key=KEY) as server:
        yield server


@pytest.fixture(scope="module")
def fresh(line_server: Any) -> list[tuple[Any, ...]]:
    """The schema of a ledger that this program has made."""
    with psycopg.connect(line_server.url, dbname="template_rowvec") as connection:
        return connection.execute(SCHEMA).fetchall()


@pytest.fixture
def environment(
    direct_url: str, database_url: str, tmp_path: Path, embedder: OpenAIServer, monkeypatch: pytest.MonkeyPatch
) -> OpenAIServer:
    """Where the pipelines' references lead; returns the embedder, which was asked for nothing yet."""
    monkeypatch.setenv(scene.STORE, str(tmp_path / "store"))
    monkeypatch.setenv(scene.EMBEDDER, embedder.url)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("ROWVEC_DATABASE_URL", database_url)
    monkeypatch.setenv("ROWVEC_HOME", str(tmp_path / "home"))
    embedder.reset()
    return embedder


def pipelines(number: int) -> dict[str, Pipeline]:
    """By name, as the files of that time read; a file of an earlier version needs no edit."""
    return {name: Pipeline.model_validate(scene.settings(name, number)) for name in scene.names(number)}


def places(connection: Client, name: str) -> dict[str, tuple[str, str]]:
    """Where each row of a vector table lies, and the transaction that has written it, by key."""
    key = "concat_ws('-', id, chunk)" if name == "notes" else "id::text"
    select = sql.SQL("SELECT {}, ctid::text, xmin::text FROM {}").format(sql.SQL(key), sql.Identifier("vectors", name))
    return {key: (place, written) for key, place, written in connection.execute(select)}


def assert_right(connection: Client, pipeline: Pipeline) -> None:
    """The vector table is what the source says, and each vector is that of its text, without a word of rowvec."""
    name, model = pipeline.name, str(getattr(pipeline.embedder, "model", ""))
    if name != "notes":
        columns = "author, year, " if name == "paintings" else ""
        content = "coalesce(title, '') || E'\\n' || coalesce(description, '')" if name == "paintings" else "body"
        blank = " WHERE id <> 7 AND coalesce(title, '') || coalesce(description, '') ~ '[^ ]'" if columns else ""
        source = f"SELECT id, {columns}{content} FROM {name}{blank} ORDER BY id"  # noqa: S608 # ours
        table = f"SELECT id, {columns}content FROM vectors.{name} ORDER BY id"  # noqa: S608 # ours
        assert connection.execute(table.encode()).fetchall() == connection.execute(source.encode()).fetchall()
    rows = connection.execute(f"SELECT content, embedding::text FROM vectors.{name}".encode()).fetchall()  # noqa: S608 # ours
    assert rows
    for text, embedding in rows:
        stored = np.array(embedding.strip("[]").split(","), np.float32)
        np.testing.assert_allclose(stored, vector(model, text, stored.size), rtol=1e-5, atol=1e-6)


def check(pipeline: Pipeline, text: str, id_: str) -> None:
    """Nothing is left to do, audit and search find what they should, and the certificate of the last run holds."""
    left = plan(pipeline)
    assert (left.new, left.changed, left.metadata_only, left.deleted) == (0, 0, 0, 0)
    assert audit(pipeline).consistent
    (hit,) = search(pipeline, text, 1)
    assert (str(hit.key["id"]), round(hit.distance, 4)) == (id_, 0.0)
    assert verify(pipeline).verified


def test_there_is_data_of_each_earlier_state_of_the_ledger() -> None:
    newest = max(int(name.removeprefix("migration_")) for name in blocks("schema") if name.startswith("migration_"))
    assert {*range(1, newest)} - {3, 10} <= {*COMMITS}, "tests/support/ledger_states/make.py makes it"
    assert all(archive(number).exists() for number in COMMITS)


OFTEN = {1: "all migrations", 12: "generations, chunks and a queue", 18: "certificates"}
"""What `make test` migrates; `make soak` migrates the others too."""


def states(often: Collection[int], first: int = 1) -> list[Any]:
    return [
        pytest.param(number, marks=() if number in often else (pytest.mark.soak,))
        for number in COMMITS
        if number >= first
    ]


@pytest.mark.parametrize("number", states(OFTEN))
def test_an_upgrade_pays_for_nothing_again_and_moves_no_vector(
    number: int, direct_url: str, tmp_path: Path, environment: OpenAIServer, fresh: list[tuple[Any, ...]]
) -> None:
    state = load(number, direct_url, tmp_path)
    with psycopg.connect(direct_url, autocommit=True) as connection:
        settled = "SELECT run_id, cause, state, report, manifest FROM rowvec.runs WHERE state <> 'running' ORDER BY 1"
        rejected = "SELECT key, fingerprint, reason, attempts, first_seen FROM rowvec.rejects ORDER BY key, first_seen"
        before = connection.execute(settled).fetchall(), connection.execute(rejected).fetchall()
        lay = {name: places(connection, name) for name in scene.names(number)}
        for name, pipeline in pipelines(number).items():
            foreseen, done = plan(pipeline), sync(pipeline)
            counts = ("new", "changed", "metadata_only", "deleted", "unchanged", "empty", "rejected")
            assert [getattr(foreseen, count) for count in counts] == [getattr(done, count) for count in counts]
            assert_right(connection, pipeline)
            # One painting was deleted, and one letter waits in the queue.
            stayed = places(connection, name).items() & lay[name].items()
            assert len(lay[name]) - len(stayed) == {"paintings": 1, "notes": 0, "letters": 1}[name]
        waiting = [scene.WAITING] if number >= scene.QUEUE else []
        assert sorted(environment.texts) == sorted([*state.in_flight, *waiting])
        assert connection.execute(SCHEMA).fetchall() == fresh
        after = connection.execute(settled).fetchall(), connection.execute(rejected).fetchall()
        assert after[0][: len(before[0])] == before[0]
        assert after[1] == before[1]
        killed = connection.execute("SELECT count(*) FROM rowvec.runs WHERE state IN ('running', 'planned')")
        assert killed.fetchone() == (0,)
        # What the first migrations have filled in: a generation's name begins with that of its family.
        other = "SELECT name, family FROM rowvec.pipelines WHERE family <> split_part(name, '.', 1)"
        assert connection.execute(other).fetchall() == []
    check(pipelines(number)["paintings"], "Late 24\nIt comes last", "24")


@pytest.mark.parametrize("number", states(()))
def test_after_an_upgrade_everything_goes_on(
    number: int,
    direct_url: str,
    another_url: str,
    tmp_path: Path,
    environment: OpenAIServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Edits, plan, audit, search and certificates; and a restore from a store that two programs have written to."""
    load(number, direct_url, tmp_path)
    # A new table may have more bits per dimension than one that an earlier program has made.
    columns = "id, content, embedding, fingerprint, metadata_hash"
    with psycopg.connect(direct_url, autocommit=True) as connection:
        for pipeline in pipelines(number).values():
            sync(pipeline)
        environment.reset()
        for name in scene.names(number):
            column = "title" if name == "paintings" else "body"
            connection.execute(f"UPDATE {name} SET {column} = 'After the upgrade' WHERE id = 3".encode())  # noqa: S608 # ours
            connection.execute(f"DELETE FROM {name} WHERE id = 1".encode())  # noqa: S608 # ours
        for name, pipeline in pipelines(number).items():
            assert plan(pipeline).changed + plan(pipeline).new > 0
            sync(pipeline)
            assert_right(connection, pipeline)
            check(pipeline, "After the upgrade" + "\nIt shows the number 3" * (name == "paintings"), "3")
            assert prove(pipeline, "2" if name != "notes" else "[2, 0]").fingerprint
        monkeypatch.setenv("ROWVEC_DATABASE_URL", another_url)
        with connect(another_url) as restored:
            for name, pipeline in pipelines(number).items():
                environment.reset()
                with restoring(pipeline) as under_way:
                    conclude(finish_restore(pipeline, under_way.run, restore_rows(pipeline, under_way)))
                assert environment.requests == []
                every = f"SELECT ({columns})::text FROM vectors.{name} ORDER BY 1".encode()  # noqa: S608 # ours
                assert restored.execute(every).fetchall() == connection.execute(every).fetchall()


@pytest.mark.parametrize("number", states({2}, first=2))
def test_a_store_of_an_earlier_program_alone_gives_the_table_back(
    number: int, direct_url: str, tmp_path: Path, environment: OpenAIServer
) -> None:
    """The database is lost before the upgrade: the first command of this program is a restore."""
    load(number, direct_url, tmp_path)
    with psycopg.connect(direct_url, autocommit=True) as connection:
        connection.execute("DROP SCHEMA IF EXISTS rowvec, vectors, rowvec_changes CASCADE")
        for pipeline in pipelines(number).values():
            with restoring(pipeline) as under_way:
                conclude(finish_restore(pipeline, under_way.run, restore_rows(pipeline, under_way)))
            assert environment.requests == []
        for pipeline in pipelines(number).values():
            sync(pipeline)
            assert_right(connection, pipeline)
    # Only what no manifest has.
    assert {text.split("\n")[0] for text in environment.texts} <= {
        "Merged, and in no manifest",
        "Painting 23",
        *(f"Late {i}" for i in range(24, 29)),
        scene.WAITING,
    }
    assert max(environment.sent.values()) == 1
