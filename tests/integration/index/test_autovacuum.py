"""Autovacuum may start at any time, also on the tables of a run: the merge does not wait for it."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest

from rowvec.ledger.runs import running
from rowvec.operations.rebuild import begin_rebuild, switch
from rowvec.pipeline import Pipeline
from rowvec.pipeline.embedders import LocalEmbedder
from rowvec.postgres import connection as database
from rowvec.postgres.connection import Connection, connect
from rowvec.stages import index, merge, validate
from rowvec.stages.extract import stage
from rowvec.stages.merge import Round
from rowvec.stages.order import through_all_stages
from rowvec.stages.report import SyncReport
from tests.support import paintings as gallery
from tests.support.paintings import assert_in_step, fill
from tests.support.servers.disposable import own_postgres
from tests.support.waiting import wait_for

ROWS = 3_000

# Autovacuum runs every second, and only on tables that ask for it, because it has few workers.
_SERVER = ("autovacuum_naptime = '1s'", "autovacuum_vacuum_insert_threshold = 1000000")
# One page per tenth of a second: once a vacuum has begun, it lasts as long as the test.
_ASKED = """
    autovacuum_vacuum_insert_threshold = 1, autovacuum_vacuum_insert_scale_factor = 0,
    autovacuum_vacuum_cost_delay = 100, autovacuum_vacuum_cost_limit = 1
"""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[Connection]:
    """A server with the paintings whose autovacuum runs often."""
    with own_postgres() as server, connect(server.url) as connection:
        monkeypatch.setenv("ROWVEC_DATABASE_URL", server.url)
        monkeypatch.setenv("ROWVEC_HOME", str(tmp_path / "home"))
        connection.execute(gallery.SOURCE)
        fill(connection, ROWS)
        for setting in _SERVER:
            connection.execute_alone(f"ALTER SYSTEM SET {setting}".encode(), {})
        connection.execute("SELECT pg_reload_conf()")
        yield connection


def test_the_merge_takes_its_tables_from_an_autovacuum(
    server: Connection, paintings: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    # If a lock cannot be taken, the merge ends at once, and does not try again for half a minute.
    monkeypatch.setattr(database, "LOCK_PATIENCE_SECONDS", 0.0)
    assert _sync_beside_autovacuum(server, paintings).new == ROWS
    assert_in_step(server)
    server.execute("UPDATE paintings SET title = title || '!'")
    assert _sync_beside_autovacuum(server, paintings).changed == ROWS
    assert_in_step(server)


def test_generations_are_switched_during_an_autovacuum(
    server: Connection, paintings: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    gallery.sync(paintings)
    other = paintings.model_copy(update={"embedder": LocalEmbedder(kind="local", dimensions=128)})
    following = begin_rebuild(other, None)
    gallery.sync(following)
    _have_vacuumed(server, "vectors.paintings")
    monkeypatch.setattr(database, "LOCK_PATIENCE_SECONDS", 0.0)
    switch(other, following)
    assert_in_step(server)
    assert server.execute("SELECT DISTINCT vector_dims(embedding) FROM vectors.paintings").fetchall() == [(128,)]


def _sync_beside_autovacuum(connection: Connection, pipeline: Pipeline) -> SyncReport:
    with running(pipeline, "test") as run:
        plan = stage.run(pipeline, run)
        batches = tuple(through_all_stages(pipeline, run, number) for number in range(plan.batches))
        _have_vacuumed(connection, f"rowvec.staging_{run.run_id}")
        merged = merge.run(pipeline, run)
        one = Round(plan=plan, batches=batches, merged=merged)
        return validate.run(pipeline, run, [one], index.run(pipeline, run))


def _have_vacuumed(connection: Connection, table: str) -> None:
    """Return once autovacuum is at work on the table."""
    connection.execute(f"ALTER TABLE {table} SET ({_ASKED})".encode())
    statement = "SELECT FROM pg_stat_progress_vacuum WHERE relid = to_regclass(%s) AND heap_blks_scanned > 0"
    wait_for(lambda: connection.execute(statement, (table,)).fetchone() is not None)
