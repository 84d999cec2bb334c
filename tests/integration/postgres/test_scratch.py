"""Scratch tables keep data between transactions; a connection notices that a crash of the server has emptied them."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from rowvec.errors import DatabaseUnavailable
from rowvec.operations import prune as prune_module
from rowvec.pipeline import Pipeline
from rowvec.postgres.connection import Connection, connect
from tests.support.paintings import sync
from tests.support.vector_tables import empty_unlogged_tables


def test_rows_that_are_kept_come_whole_or_not_at_all(connection: Connection, direct_url: str) -> None:
    with connect(direct_url) as working:
        working.keep_rows("numbers", sql.SQL("SELECT i FROM generate_series(1, 5) AS i"))
        pages = working.kept_rows("numbers", 2)
        assert next(pages) == [(1,), (2,)]
        empty_unlogged_tables(connection)
        with pytest.raises(psycopg.OperationalError, match="crashed or a standby has taken over"):
            list(pages)
    assert connection.execute("SELECT relname FROM pg_class WHERE relname ~ '^scratch_'").fetchall() == []


def test_a_prune_deletes_nothing_if_the_server_has_forgotten_what_is_needed(
    source: Connection, paintings: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sync(paintings).consistent
    source.execute("UPDATE rowvec.artifacts SET created_at = '2000-01-01'")
    objects = sorted((tmp_path / "artifacts").rglob("*.parquet"))
    replay = prune_module.replay

    def replay_then_crash(*arguments: Any) -> None:
        replay(*arguments)
        empty_unlogged_tables(source)

    monkeypatch.setattr(prune_module, "replay", replay_then_crash)
    with pytest.raises(DatabaseUnavailable, match="crashed or a standby has taken over"):
        prune_module.prune(paintings, timedelta(days=1), apply=True)
    assert objects
    assert sorted((tmp_path / "artifacts").rglob("*.parquet")) == objects
