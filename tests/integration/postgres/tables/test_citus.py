"""A vector table on Citus, as far as that can be tested without Citus: a stand-in records the calls.

Here ``create_distributed_table`` is a function of the test database. It records its arguments, and checks what Citus
checks: that the table has a key, and that the key has the column. How Citus then runs the queries is not tested.
"""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from rowvec.errors import TargetError
from rowvec.pipeline import Pipeline
from rowvec.postgres.connection import Connection
from tests.support.paintings import fill, pipeline, rebuild, sync

pytestmark = pytest.mark.needs("pgvector in public", "the stand-in is in public, which sessions then find")

STAND_IN = """
    CREATE TABLE asked (name text, by text);
    CREATE FUNCTION create_distributed_table(asked_for regclass, by text) RETURNS void LANGUAGE plpgsql AS $$
    BEGIN
        IF NOT EXISTS (
            SELECT FROM pg_index AS i JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey)
            WHERE i.indrelid = asked_for AND i.indisprimary AND a.attname = by)
        THEN
            RAISE EXCEPTION 'the key lacks the distribution column' USING ERRCODE = 'feature_not_supported';
        END IF;
        INSERT INTO asked VALUES (asked_for::text, by);
    END $$
"""


def distributed(tmp_path: Any, **embedder: Any) -> Pipeline:
    return pipeline(
        str(tmp_path / "artifacts"),
        target={"table": "vectors.paintings", "distribution_column": "id"},
        embedder={"kind": "local", "dimensions": 64, **embedder},
    )


def recorded(connection: Connection) -> list[tuple[str, str]]:
    return connection.execute("SELECT name, by FROM asked").fetchall()


def test_a_first_load_distributes_the_table_once(source: Connection, tmp_path: Any) -> None:
    source.execute(STAND_IN)
    assert sync(distributed(tmp_path)).consistent
    assert recorded(source) == [("vectors.paintings", "id")]
    fill(source, 5, start=51)
    source.execute("DELETE FROM paintings WHERE id < 4")
    report = sync(distributed(tmp_path))
    assert (report.new, report.deleted, report.consistent) == (5, 3, True)
    assert len(recorded(source)) == 1


def test_a_table_that_is_not_loaded_straight_is_distributed_empty(source: Connection, tmp_path: Any) -> None:
    source.execute(STAND_IN)
    # The binary encoder does not write this type, so staging cannot become the table.
    source.execute("ALTER TABLE paintings ADD COLUMN place point DEFAULT point(1, 2)")
    wanted = distributed(tmp_path)
    source_part = wanted.source.model_copy(update={"metadata": ["author", "year", "place"]})
    assert sync(wanted.model_copy(update={"source": source_part})).consistent
    assert recorded(source) == [("vectors.paintings", "id")]


def test_the_next_generation_is_distributed_too(source: Connection, tmp_path: Any) -> None:
    source.execute(STAND_IN)
    sync(distributed(tmp_path))
    rebuild(distributed(tmp_path, dimensions=128))
    names = recorded(source)
    assert len(names) == 2
    assert {column for _, column in names} == {"id"}


def test_without_citus_it_is_an_ordinary_table(source: Connection, tmp_path: Any) -> None:
    assert sync(distributed(tmp_path)).consistent


def test_what_citus_refuses_is_a_sentence_and_no_table_is_left(source: Connection, tmp_path: Any) -> None:
    source.execute(STAND_IN.replace("a.attname = by", "a.attname = 'other'"))
    with pytest.raises(TargetError, match=r"distribute vectors\.paintings by id: the key lacks"):
        sync(distributed(tmp_path))
    found = source.execute("SELECT to_regclass('vectors.paintings')").fetchone()
    assert found == (None,)


def test_the_column_must_be_in_the_key(tmp_path: Any) -> None:
    with pytest.raises(ValidationError, match=r"target\.distribution_column, 'author', is no column of source\.key"):
        pipeline(str(tmp_path), target={"table": "vectors.paintings", "distribution_column": "author"})
