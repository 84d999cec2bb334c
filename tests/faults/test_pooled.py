"""Behind PgBouncer in transaction mode, beside other clients, every command works and leaves their sessions alone."""

from __future__ import annotations

import threading
from collections.abc import Generator
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from rowvec.operations.audit import audit
from rowvec.operations.repair import prepare_repair
from rowvec.operations.restore import finish_restore, restore_rows, restoring
from rowvec.operations.search import search
from rowvec.operations.setup.check import Scope, check
from rowvec.pipeline import Pipeline
from rowvec.postgres.connection import connect
from rowvec.stages import dry_run
from tests.support import paintings as gallery
from tests.support.cli_process import write_pipeline
from tests.support.servers.pgbouncer import pooling

# What a session of the application must be like each time that the pooler gives it one.
_AS_IT_IS = """
    SELECT current_setting('lock_timeout'), current_setting('statement_timeout'), current_setting('search_path'),
        current_setting('DateStyle'), current_setting('maintenance_work_mem'), current_setting('client_min_messages'),
        (SELECT count(*) FROM pg_prepared_statements),
        (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()),
        (SELECT count(*) FROM pg_class WHERE relpersistence = 't' AND relnamespace = pg_my_temp_schema())
"""


@pytest.fixture
def own_database(postgres_16: str) -> Generator[str]:
    """The DSN of a database of this test's own; the pooler may reach this server, and only we reach the other one."""
    with psycopg.connect(postgres_16, autocommit=True) as admin:
        admin.execute("CREATE DATABASE pooled")
    yield make_conninfo(postgres_16, dbname="pooled")
    with psycopg.connect(postgres_16, autocommit=True) as admin:
        admin.execute("DROP DATABASE pooled WITH (FORCE)")


@pytest.fixture
def pooled(
    own_database: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Generator[str]:
    """The DSN through the pooler; pipelines without a URL use it."""
    shared = tmp_path_factory.getbasetemp().parent
    with pooling(own_database, shared) as url:
        monkeypatch.setenv("ROWVEC_DATABASE_URL", url)
        monkeypatch.setenv("ROWVEC_HOME", str(tmp_path / "home"))
        yield url


class Application(threading.Thread):
    """A client that takes a session from the pool, looks at it and gives it back, all the time."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.over, self.seen = threading.Event(), set[tuple[object, ...]]()
        self._url = url

    def run(self) -> None:
        with psycopg.connect(self._url, autocommit=True, prepare_threshold=None) as connection:
            while not self.over.wait(0.002):
                self.seen.add(connection.execute(_AS_IT_IS).fetchone() or ())


def test_every_command_works_and_other_sessions_stay_as_they_are(
    own_database: str, pooled: str, tmp_path: Path
) -> None:
    pipeline = gallery.pipeline(
        str(tmp_path / "artifacts"),
        index={"kind": "hnsw"},
        search={"hybrid": True},
        target={"table": "vectors.paintings"},
    )
    chunked = gallery.pipeline(str(tmp_path / "chunked"), source={"chunks": {}}, target={"table": "vectors.chunked"})
    chunked = chunked.model_copy(update={"name": "chunked"})
    with psycopg.connect(own_database, autocommit=True) as direct:
        direct.execute(gallery.SOURCE)
        gallery.fill(direct, 60)
        applications = [Application(pooled) for _ in range(3)]
        for application in applications:
            application.start()
        try:
            _whole_cycle(direct, pipeline)
            assert gallery.sync(chunked).new == 60
            assert audit(chunked).consistent
            checked = check(write_pipeline(chunked, tmp_path), Scope())
            assert {one.name: one.state for one in checked}["pooler"] == "warning"
        finally:
            for application in applications:
                application.over.set()
                application.join()
        left = "SELECT relname FROM pg_class WHERE relname ~ '^(scratch|staging)_[0-9]+(_[0-9a-f]{8}_.*)?$'"
        assert direct.execute(left).fetchall() == []
    with connect(pooled) as connection:
        assert connection.is_pooled
    seen = set[tuple[object, ...]]().union(*(application.seen for application in applications))
    assert seen == {("0", "0", '"$user", public', "ISO, MDY", "64MB", "notice", 0, 0, 0)}


def _whole_cycle(direct: psycopg.Connection[tuple[object, ...]], pipeline: Pipeline) -> None:
    assert dry_run.plan(pipeline).new == 60
    assert gallery.sync(pipeline).new == 60
    direct.execute("UPDATE paintings SET title = 'other' WHERE id <= 4")
    assert gallery.sync(pipeline).changed == 4
    direct.execute("UPDATE vectors.paintings SET content = 'tampered with' WHERE id = 3")
    assert not audit(pipeline).consistent
    prepare_repair(pipeline)
    assert gallery.sync(pipeline).consistent
    assert audit(pipeline).consistent
    assert search(pipeline, "number", 3, where="year > 1910")
    longer = pipeline.model_copy(update={"embedder": pipeline.embedder.model_copy(update={"dimensions": 128})})
    assert gallery.rebuild(longer).switched
    direct.execute("DROP SCHEMA vectors CASCADE")
    with restoring(longer, None) as restore:
        assert finish_restore(longer, restore.run, restore_rows(longer, restore)).consistent
    gallery.assert_in_step(direct)
