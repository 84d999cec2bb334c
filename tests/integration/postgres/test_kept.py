"""A run keeps its connections between its stages; nobody gets one that is another process's, lost, or out of date."""

from __future__ import annotations

import os
from typing import Any

import psycopg
import pytest

from rowvec.pipeline import Pipeline
from rowvec.pipeline.model import Target
from rowvec.postgres.connection import Connection, connect, connect_target
from rowvec.postgres.kept import connections_kept, forget
from rowvec.postgres.migrations import install
from tests.support.paintings import sync
from tests.support.waiting import wait_for


def _target(url: str) -> Target:
    return Target(table="vectors.paintings").model_copy(update={"url": url})


def _used(url: str) -> int:
    """The server's process behind the session that the next user of the target gets."""
    with connect_target(_target(url), "test") as connection:
        ((pid,),) = connection.execute("SELECT pg_backend_pid()").fetchall()
    return pid


def test_a_sync_opens_one_connection_and_leaves_none(
    source: Connection, paintings: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So its lease need not be renewed before it ends, which takes a second one.
    monkeypatch.setenv("ROWVEC_LEASE_SECONDS", "600")
    opened: list[Connection] = []
    opening: Any = Connection.connect

    def counted(*args: Any, **kwargs: Any) -> Connection:
        opened.append(opening(*args, **kwargs))
        return opened[-1]

    with monkeypatch.context() as watched:
        watched.setattr(Connection, "connect", counted)
        assert sync(paintings).new == 50
    assert len(opened) == 1
    assert all(connection.closed for connection in opened)


def test_users_at_once_have_a_connection_each_and_users_in_turn_share_one(direct_url: str) -> None:
    with connections_kept():
        with connect_target(_target(direct_url), "test") as one:
            other = _used(direct_url)
            assert other != one.info.backend_pid
        assert {_used(direct_url), _used(direct_url)} == {one.info.backend_pid, other}
        with pytest.raises(ValueError, match="the user's own"), connect_target(_target(direct_url), "test") as failed:
            raise ValueError("the user's own")
        assert failed.closed
    assert one.closed
    assert _used(direct_url) != _used(direct_url)


def test_a_forked_process_neither_uses_nor_closes_the_connections_of_its_parent(direct_url: str) -> None:
    with connections_kept():
        kept = _used(direct_url)
        child = os.fork()
        if not child:
            others = 0
            try:
                with connections_kept():
                    others = _used(direct_url)
            finally:
                os._exit(0 if others not in (0, kept) else 1)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert _used(direct_url) == kept


def test_a_connection_that_was_lost_while_nobody_used_it_opens_again(direct_url: str) -> None:
    with connections_kept(), psycopg.connect(direct_url, autocommit=True) as administrator:
        kept = _used(direct_url)
        administrator.execute("SELECT pg_terminate_backend(%s)", (kept,))
        gone = "SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = %s"
        wait_for(lambda: administrator.execute(gone, (kept,)).fetchone() == (True,))
        again = _used(direct_url)
        assert again != kept
        assert _used(direct_url) == again


def test_a_connection_that_is_used_while_names_change_is_closed_after_it(direct_url: str) -> None:
    with connections_kept():
        idle = _used(direct_url)
        with connect_target(_target(direct_url), "test") as used:
            forget()
        assert used.closed
        assert _used(direct_url) != idle


def test_each_user_knows_where_pgvector_is_once_another_process_has_installed_it(direct_url: str) -> None:
    """Two first runs at once: each has read the names of a database without pgvector."""
    with psycopg.connect(direct_url, autocommit=True) as administrator:
        administrator.execute("DROP SCHEMA rowvec CASCADE; DROP EXTENSION vector CASCADE")
    with connections_kept():
        with connect_target(_target(direct_url), "test") as slower:
            assert slower.names.pgvector is None
            with connect(direct_url) as faster:
                install(faster)
            install(slower)
            assert slower.names.pgvector is not None
        with connect_target(_target(direct_url), "test") as later:
            assert later.names.pgvector is not None
