"""A role with the documented privileges alone, pgvector in a schema of its own, and a pgvector with known faults."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from rowvec.index import build
from rowvec.operations.audit import audit
from rowvec.operations.search import search
from rowvec.pipeline import Pipeline
from tests.support import paintings as gallery

# docs/operations.md, for a database in which the administrator has made the schemas.
GRANTS = """
    CREATE ROLE plain LOGIN;
    CREATE SCHEMA extensions;
    CREATE EXTENSION vector SCHEMA extensions;
    GRANT USAGE ON SCHEMA extensions TO plain;
    CREATE SCHEMA rowvec AUTHORIZATION plain;
    CREATE SCHEMA vectors AUTHORIZATION plain;
    GRANT SELECT ON paintings TO plain;
    REVOKE ALL ON DATABASE foreign_server FROM PUBLIC;
    GRANT CONNECT, TEMPORARY ON DATABASE foreign_server TO plain
"""


@pytest.fixture(params=["18", "16"])
def administrator(
    request: pytest.FixtureRequest, cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Generator[psycopg.Connection[tuple[object, ...]]]:
    """A superuser's session; pipelines without a URL connect as ``plain``."""
    url: str = cluster if request.param == "18" else request.getfixturevalue("postgres_16")
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute("CREATE DATABASE foreign_server")
    database = make_conninfo(url, dbname="foreign_server")
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(gallery.SOURCE)
        gallery.fill(connection, 60)
        connection.execute(GRANTS)
        monkeypatch.setenv("ROWVEC_DATABASE_URL", make_conninfo(database, user="plain"))
        monkeypatch.setenv("ROWVEC_HOME", str(tmp_path / "home"))
        yield connection
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute("DROP DATABASE foreign_server WITH (FORCE)")
        admin.execute("DROP ROLE plain")


def _pipeline(folder: Path, dimensions: int = 64) -> Pipeline:
    plain = gallery.pipeline(str(folder / "artifacts"), embedder={"kind": "local", "dimensions": dimensions})
    return Pipeline.model_validate({**plain.model_dump(), "index": {"kind": "hnsw"}, "search": {"hybrid": True}})


@pytest.mark.parametrize("path", ['"$user", public', ""])
def test_pgvector_may_lie_in_any_schema_and_no_right_on_the_database_is_needed(
    administrator: psycopg.Connection[tuple[object, ...]], path: str, tmp_path: Path
) -> None:
    administrator.execute(f"ALTER ROLE plain SET search_path = {path or chr(39) * 2}".encode())
    pipeline = _pipeline(tmp_path)
    assert gallery.sync(pipeline).new == 60
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
