"""Behind PgBouncer in transaction mode, beside other clients, every command works and leaves their sessions alone."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from rowvec.errors import TargetError
from rowvec.index.tuning.tuner import Budget, tune
from rowvec.operations.audit import audit
from rowvec.operations.index import maintain
from rowvec.operations.repair import prepare_repair
from rowvec.operations.restore import finish_restore, restore_rows, restoring
from rowvec.operations.search import search
from rowvec.operations.setup.check import Scope, check
from rowvec.pipeline import Pipeline
from rowvec.pipeline.model import Recall
from rowvec.postgres.connection import connect
from rowvec.postgres.migrations import install
from rowvec.stages import dry_run
from tests.support import paintings as gallery
from tests.support.cli_process import write_pipeline
from tests.support.databases import database
from tests.support.other_clients import UNTOUCHED, beside
from tests.support.servers.pgbouncer import pooling
from tests.support.vector_tables import filled, vector_table


@pytest.fixture
def own_database(postgres_16: str) -> Generator[str]:
    """The DSN of a database of this test's own; the pooler may reach this server, and only we reach the other one."""
    with database(postgres_16) as url:
        yield url


@pytest.fixture
def pooled(own_database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[str]:
    """The DSN through the pooler; pipelines without a URL use it."""
    with pooling(own_database) as pooler:
        monkeypatch.setenv("ROWVEC_DATABASE_URL", pooler.url)
        monkeypatch.setenv("ROWVEC_HOME", str(tmp_path / "home"))
        yield pooler.url


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
        with beside(pooled) as seen:
            _whole_cycle(direct, pipeline)
            assert gallery.sync(chunked).new == 60
            assert audit(chunked).consistent
            checked = check(write_pipeline(chunked, tmp_path), Scope())
            assert {one.name: one.state for one in checked}["pooler"] == "warning"
        left = "SELECT relname FROM pg_class WHERE relname ~ '^(scratch|staging)_[0-9]+(_[0-9a-f]{8}_.*)?$'"
        assert direct.execute(left).fetchall() == []
    with connect(pooled) as connection:
        assert connection.is_pooled
    assert seen == {UNTOUCHED}


@pytest.fixture
def watched(own_database: str) -> Generator[psycopg.Connection[tuple[object, ...]]]:
    """A connection of an administrator; the table ``builds`` tells the memory that each index build had."""
    with psycopg.connect(own_database, autocommit=True) as admin:
        admin.execute(gallery.SOURCE)
        gallery.fill(admin, 60)
        admin.execute("CREATE TABLE builds (statement text, memory text, tables_from text)")
        admin.execute(
            "CREATE FUNCTION note_build() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN"
            " INSERT INTO public.builds SELECT current_query(), current_setting('maintenance_work_mem'),"
            " current_setting('min_parallel_table_scan_size'); END $$"
        )
        admin.execute(
            "CREATE EVENT TRIGGER note_build ON ddl_command_start WHEN TAG IN ('CREATE INDEX')"
            " EXECUTE FUNCTION note_build()"
        )
        yield admin


def test_an_index_is_built_directly_where_the_pipeline_says_how_and_else_with_the_servers_memory(
    own_database: str, pooled: str, watched: psycopg.Connection[tuple[object, ...]], tmp_path: Path
) -> None:
    index = {"kind": "hnsw"}
    through = gallery.pipeline(str(tmp_path / "artifacts"), index=index)
    watched.execute("ALTER ROLE postgres SET maintenance_work_mem = '7MB'")
    try:
        (kept,) = (check.detail for check in gallery.sync(through).checks if check.name == "index_kept_fit")
        assert "through a pooler, so it had the server's own maintenance_work_mem (7MB)" in kept
        assert kept.count("set target.direct_url") == 1
        direct = gallery.pipeline(
            str(tmp_path / "artifacts"), index=index, target={"table": "vectors.paintings", "direct_url": "${DIRECT}"}
        )
        with pytest.MonkeyPatch.context() as patched:
            patched.setenv("DIRECT", own_database)
            built = maintain(direct, rebuild=True)
            patched.setenv("DIRECT", make_conninfo(own_database, dbname="postgres"))
            with pytest.raises(TargetError, match=r"target\.direct_url leads to another database"):
                maintain(direct, rebuild=True)
    finally:
        watched.execute("ALTER ROLE postgres RESET maintenance_work_mem")
    assert built["built"]
    assert not any("target.direct_url" in said for said in built["said"])
    built_on = "SELECT memory, tables_from FROM builds WHERE statement LIKE 'CREATE INDEX CONCURRENTLY%'"
    assert watched.execute(built_on).fetchall() == [("7MB", "8MB"), ("64MB", "0")]


@pytest.mark.soak
def test_an_index_is_tuned_beside_other_clients(own_database: str, pooled: str) -> None:
    table = vector_table(64)
    with connect(own_database) as direct:
        install(direct)
        filled(direct, table, 1_200)
        with beside(pooled) as seen, connect(pooled) as connection:
            found = tune(connection, table, Recall(k=5, queries=20), Budget(seconds=2, rows=1_000))
        assert direct.execute("SELECT relname FROM pg_class WHERE relname ~ '^scratch_'").fetchall() == []
    assert found.sampled_rows >= 900
    assert seen == {UNTOUCHED}


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
