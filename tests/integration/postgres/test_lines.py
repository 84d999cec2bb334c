"""Each server that `make test-matrix` runs the tests on does the main jobs, and a pgvector with faults is named."""

from __future__ import annotations

import sys
from collections.abc import Generator
from pathlib import Path

import psycopg
import pytest

from rowvec.index import build
from rowvec.operations.audit import audit
from rowvec.operations.search import search
from rowvec.pipeline import Pipeline
from rowvec.searches.index_kinds import hnsw
from tests.support import paintings as gallery
from tests.support.servers.lines import LINES, Server

_DATABASE = "one_of_a_line"


@pytest.fixture(params=sorted(LINES.keys() - {"pg18"}))
def line_of_table(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Generator[Server]:
    """A server of this line, with an empty database that an administrator has prepared; it shares what it can."""
    line = LINES[request.param]
    if line.wheel:
        # What the line's programs are found by is set back at the end.
        for name in ("PGSERVER_POSTGRES_VERSION", "PYTHONPATH"):
            monkeypatch.setenv(name, "")
        monkeypatch.setattr(sys, "path", [*sys.path])
        line.use_programs()
        serving = line.serving()
    else:
        serving = line.at(request.getfixturevalue("postgres_16" if line.postgres == "16" else "cluster"))
    with serving as server:
        with psycopg.connect(server.url, autocommit=True) as administrator:
            administrator.execute("CREATE DATABASE one_of_a_line")
        server.prepare(_DATABASE)
        yield server
        with psycopg.connect(server.url, autocommit=True) as administrator:
            administrator.execute("DROP DATABASE one_of_a_line WITH (FORCE)")
            administrator.execute("DROP ROLE IF EXISTS rowvec_plain")


def _pipeline(folder: Path, dimensions: int = 64) -> Pipeline:
    plain = gallery.pipeline(str(folder / "artifacts"), embedder={"kind": "local", "dimensions": dimensions})
    return Pipeline.model_validate({**plain.model_dump(), "index": {"kind": "hnsw"}, "search": {"hybrid": True}})


def test_the_main_jobs_work_on_the_server_of_each_line(
    line_of_table: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = line_of_table.line
    monkeypatch.setenv("ROWVEC_DATABASE_URL", line_of_table.for_rowvec(_DATABASE))
    monkeypatch.setenv("ROWVEC_HOME", str(tmp_path / "home"))
    postgres, pgvector = line_of_table.versions()
    assert (postgres.split(".")[0], pgvector) == (line.postgres, line.pgvector)
    pipeline = _pipeline(tmp_path)
    with psycopg.connect(line_of_table.direct(_DATABASE), autocommit=True) as administrator:
        administrator.execute(gallery.SOURCE)
        gallery.fill(administrator, 60)
        report = gallery.sync(pipeline)
        assert report.new == 60
        (kept,) = [check for check in report.checks if check.name == "index_kept_fit"]
        assert ("that 0.8.4 fixes" in kept.detail) == (line.wheel is not None)
        administrator.execute("UPDATE paintings SET title = 'other' WHERE id <= 4")
        assert gallery.sync(pipeline).changed == 4
        assert audit(pipeline).consistent
        assert len(search(pipeline, "other", 3, where="year > 1900")) == 3
        assert gallery.rebuild(_pipeline(tmp_path, 128)).switched
        found = administrator.execute(
            "SELECT count(*) FROM vectors.paintings_search((SELECT embedding FROM vectors.paintings LIMIT 1), 3)"
        )
        assert found.fetchone() == (3,)


def test_faults_of_an_older_pgvector_are_avoided_and_named(
    source: psycopg.Connection[tuple[object, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As if the pgvector here were one of those with faults.
    monkeypatch.setattr(build, "SOUND_PGVECTOR", (99,))
    monkeypatch.setattr(hnsw, "SOUND_PGVECTOR", (99,))
    monkeypatch.setattr(build, "_PARALLEL_FROM_ROWS", 0)
    settings: list[dict[str, str]] = []
    execute = build._execute  # pyright: ignore[reportPrivateUsage] # to look at what it is given

    def look(connection: object, statement: object, given: dict[str, str], *, readers: bool) -> None:
        settings.append(given)
        execute(connection, statement, given, readers=readers)  # pyright: ignore[reportArgumentType] # passed on

    monkeypatch.setattr(build, "_execute", look)
    report = gallery.sync(_pipeline(tmp_path))
    (kept,) = [check for check in report.checks if check.name == "index_kept_fit"]
    assert "has faults in HNSW that 0.8.4 fixes" in kept.detail
    assert [given["max_parallel_maintenance_workers"] for given in settings if len(given) > 1] == ["0"]
