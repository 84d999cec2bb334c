"""The work for a long text grows with the text, and not with the text times the number of its chunks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg
import pytest

from rowvec.operations.audit import audit
from rowvec.pipeline import Pipeline
from rowvec.postgres.connection import Connection
from rowvec.stages import dry_run
from tests.support.paintings import sync
from tests.support.row_counts import hand_in_counts

CHUNK_TOKENS = 16

# Of two rows by one command: its statements that read the source, times two rows, times two, because a row is rendered
# to see whether it is blank, and again to be hashed.
MOST_RENDERINGS = 60

# The planner takes it for as cheap as sha256, which is what hides the cost of a call in a join.
COUNTED = """
    CREATE FUNCTION public.counted(value text) RETURNS text LANGUAGE plpgsql IMMUTABLE COST 1 PARALLEL SAFE
    AS 'BEGIN RETURN value; END'
"""


@pytest.fixture(params=["beside", "database"])
def elsewhere(request: pytest.FixtureRequest, another_url: str) -> str | None:
    """The DSN of the source's database, if it is another one than the target's."""
    return another_url if request.param == "database" else None


def text(words: int) -> str:
    """A text of different words."""
    return " ".join(f"word{i}" for i in range(words))


def renderings(url: str, pipeline: Pipeline, words: int) -> dict[str, int]:
    """How often each command renders the contents of a source of two rows, one of which has ``words`` words."""

    def execute(statement: str, *values: object) -> None:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(statement.encode(), values)

    def counted(command: Any) -> int:
        with psycopg.connect(url, autocommit=True) as connection:
            hand_in_counts(connection)
            connection.execute("SELECT pg_stat_reset()")
            command(pipeline)
            hand_in_counts(connection)
            calls = connection.execute(
                "SELECT sum(calls)::int FROM pg_stat_user_functions WHERE funcname = 'counted'"
            ).fetchone()
        assert calls is not None
        return calls[0]

    execute("TRUNCATE texts")
    execute("INSERT INTO texts VALUES (1, %s), (2, 'short')", text(words))
    found = {"plan": counted(dry_run.plan), "first sync": counted(sync), "sync": counted(sync)}
    execute("UPDATE texts SET text = 'before ' || text WHERE id = 1")
    found["sync of an edit"] = counted(sync)
    execute("UPDATE texts SET text = left(text, length(text) / 2) WHERE id = 1")
    found["sync of a shorter text"] = counted(sync)
    return {**found, "audit": counted(audit)}


def test_a_text_is_rendered_a_few_times_whatever_the_number_of_its_chunks(
    elsewhere: str | None, connection: Connection, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = elsewhere or connection.info.dsn
    monkeypatch.setenv("ROWVEC_DATABASE_URL", database_url)
    monkeypatch.setenv("ROWVEC_HOME", str(tmp_path / "home"))
    with psycopg.connect(url, autocommit=True) as made:
        made.execute(f"ALTER DATABASE {made.info.dbname} SET track_functions = 'all'".encode())
        made.execute(COUNTED)
        made.execute("CREATE TABLE texts (id int PRIMARY KEY, text text)")
    source: dict[str, Any] = {
        "kind": "postgres",
        "query": "SELECT id, public.counted(text) AS text FROM public.texts",
        "key": ["id"],
        "content": "{text}",
        "chunks": {"tokens": CHUNK_TOKENS, "overlap": 0},
    }
    written = {
        "name": "long",
        "source": {**source, **({"url": elsewhere} if elsewhere else {})},
        "embedder": {"kind": "local", "dimensions": 64},
        "target": {"table": "vectors.long"},
        "artifacts": {"url": str(tmp_path / "artifacts")},
        "index": {"kind": "none"},
        # A shortened text is much shorter here, and its vectors count as deleted.
        "validation": {"max_delete_fraction": 1.0},
    }
    counts = renderings(url, Pipeline.model_validate(written), words=1_200)
    stored = connection.execute("SELECT count(*) FROM vectors.long").fetchone()
    assert stored is not None
    assert stored[0] > 2 * MOST_RENDERINGS
    assert {name: count for name, count in counts.items() if count > MOST_RENDERINGS} == {}
