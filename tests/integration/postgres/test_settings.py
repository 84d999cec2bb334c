"""Settings of a database or a role change neither what a run reads nor what it writes, and nothing of ours stays."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from rowvec.errors import DatabaseUnavailable
from rowvec.operations.audit import audit
from rowvec.pipeline import Pipeline
from rowvec.postgres.connection import Connection, connect
from rowvec.postgres.settings import LEFT_ALONE, PINNED
from rowvec.stages import dry_run
from tests.support import paintings as gallery
from tests.support.databases import database

# A value for each setting that changes what the server reads or prints, or how long it lets a statement run.
CONTRARY = {
    "DateStyle": "German, DMY",
    "IntervalStyle": "iso_8601",
    "TimeZone": "Pacific/Marquesas",
    "array_nulls": "off",
    "backslash_quote": "on",
    "bytea_output": "escape",
    "client_encoding": "LATIN1",
    "client_min_messages": "debug1",
    "exit_on_error": "on",
    "extra_float_digits": "-15",
    "gin_fuzzy_search_limit": "1",
    "idle_in_transaction_session_timeout": "20ms",
    "lc_monetary": "C.UTF-8",
    "lc_numeric": "C.UTF-8",
    "lc_time": "C.UTF-8",
    "lock_timeout": "1ms",
    "quote_all_identifiers": "on",
    "standard_conforming_strings": "off",
    "statement_timeout": "20ms",
    "timezone_abbreviations": "Australia",
    "transaction_timeout": "50ms",
    "transform_null_equals": "on",
    "xmlbinary": "hex",
    "xmloption": "document",
    # Left alone, or not a setting of a transaction.
    "default_transaction_isolation": "serializable",
    "idle_session_timeout": "2s",
    "search_path": "",
    "synchronize_seqscans": "off",
    "enable_hashjoin": "off",
}

SOURCE = """
    CREATE TABLE paintings (
        id text PRIMARY KEY, title text, at timestamptz, took interval, data bytea, price money, part float8,
        tags text[]
    );
    INSERT INTO paintings SELECT
        E'back\\\\slash '' ' || i, E'T\\\\' || i || ' ''x''', now(), interval '1 day 2 hours' * i,
        decode('00ff5c', 'hex'),
        (i * 1.5)::numeric::money, i / 3.0, ARRAY['NULL', NULL, E'\\\\', i::text]
    FROM generate_series(1, 30) AS i
"""


def test_every_setting_is_decided(cluster: str, postgres_16: str) -> None:
    decided = {setting.name for setting in PINNED} | set(LEFT_ALONE)
    for url in (cluster, postgres_16):
        with psycopg.connect(url) as connection:
            found = connection.execute(
                "SELECT name FROM pg_settings WHERE context IN ('user', 'superuser', 'backend', 'superuser-backend')"
                " AND name NOT LIKE 'enable\\_%' AND name NOT LIKE 'debug\\_%' AND name NOT LIKE 'jit\\_%'"
            )
            assert {name for (name,) in found if "." not in name} <= decided
    assert not {setting.name for setting in PINNED} & set(LEFT_ALONE)
    assert {setting.name for setting in PINNED} <= set(CONTRARY)


@pytest.fixture(params=["18", "16"])
def two_databases(request: pytest.FixtureRequest, cluster: str) -> Generator[tuple[str, str]]:
    """The DSNs of a source's database and of an empty target's, on servers of two versions."""
    url: str = cluster if request.param == "18" else request.getfixturevalue("postgres_16")
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute("CREATE ROLE odd SUPERUSER LOGIN")
        with database(url) as source, database(url) as target:
            with psycopg.connect(source, autocommit=True) as connection:
                connection.execute(SOURCE)
            yield make_conninfo(source, user="odd"), make_conninfo(target, user="odd")
        admin.execute("DROP ROLE odd")


def _odd(url: str, of: str) -> None:
    """Give every setting its contrary value, on the database or on the role."""
    with psycopg.connect(url, autocommit=True) as connection:
        known = {name for (name,) in connection.execute("SELECT name FROM pg_settings")}
        subject = sql.SQL("DATABASE {}").format(sql.Identifier(connection.info.dbname))
        if of == "role":
            subject = sql.SQL("ROLE odd")
        # The limits come last: they hold for the sessions after this one.
        for name in sorted(CONTRARY.keys() & known, key=lambda name: name.endswith("timeout")):
            connection.execute(
                sql.SQL("ALTER {} SET {} = {}").format(subject, sql.Identifier(name), sql.Literal(CONTRARY[name]))
            )


def _table(url: str) -> list[tuple[str, ...]]:
    with connect(url) as connection:
        return connection.execute(
            "SELECT id, content, at::text, took::text, data::text, price::text, part::text, tags::text,"
            " embedding::text, encode(fingerprint, 'hex'), encode(metadata_hash, 'hex') FROM vectors.odd ORDER BY id"
        ).fetchall()


@pytest.mark.parametrize(
    ("two_databases", "of"),
    [
        ("18", "role"),
        ("16", "database"),
        pytest.param("18", "database", marks=pytest.mark.soak),
        pytest.param("16", "role", marks=pytest.mark.soak),
    ],
    indirect=["two_databases"],
)
def test_contrary_settings_change_no_table_and_no_plan(
    two_databases: tuple[str, str], of: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = two_databases
    monkeypatch.setenv("ROWVEC_HOME", str(tmp_path / "home"))
    pipeline = _pipeline(source, target, tmp_path)
    gallery.sync(pipeline)
    before = _table(target)
    assert len(before) == 30
    for url in (source, target):
        _odd(url, of)
    planned = dry_run.plan(pipeline)
    assert {name: getattr(planned, name) for name in ("new", "changed", "metadata_only", "deleted", "unchanged")} == {
        "new": 0,
        "changed": 0,
        "metadata_only": 0,
        "deleted": 0,
        "unchanged": 30,
    }
    with connect(source) as connection:
        connection.execute("UPDATE public.paintings SET title = 'edited ' || title WHERE title ~ '1'")
        assert gallery.sync(pipeline).changed == 12
        assert audit(pipeline).consistent
        connection.execute("UPDATE public.paintings SET title = substr(title, 8) WHERE title ~ '^edited'")
    back = gallery.sync(pipeline)
    # What the ledger and the artifacts hold is found again, by the bytes of its fingerprints.
    assert (back.changed, back.embedded, back.reused) == (12, 0, 12)
    with connect(target) as connection:
        connection.execute("DROP SCHEMA vectors CASCADE; DROP SCHEMA rowvec CASCADE")
    report = gallery.sync(pipeline)
    assert report.new == 30
    assert _table(target) == before


def _pipeline(source: str, target: str, folder: Path) -> Pipeline:
    return Pipeline.model_validate(
        {
            "name": "odd",
            "source": {
                "kind": "postgres",
                "table": "public.paintings",
                "key": ["id"],
                "content": "{title} {at} {took} {data} {price} {part} {tags}",
                "metadata": ["at", "took", "data", "price", "part", "tags"],
                "url": source,
            },
            "embedder": {"kind": "local", "dimensions": 64},
            "target": {"table": "vectors.odd", "url": target},
            "artifacts": {"url": str(folder / "artifacts")},
        }
    )


def test_nothing_stays_in_a_session(direct_url: str) -> None:
    with connect(direct_url, limits={"lock_timeout": "7s"}) as connection:
        assert connection.execute("SHOW lock_timeout").fetchone() == ("7s",)
        # psycopg's own cursor begins no transaction of ours: it sees the session as a pooler would hand it on.
        as_it_is = psycopg.Cursor(connection)
        for name in ("lock_timeout", "statement_timeout", "DateStyle", "search_path", "TimeZone"):
            default = "SELECT reset_val = current_setting(name) FROM pg_settings WHERE name = %s"
            assert as_it_is.execute(default, (name,)).fetchone() == (True,), name
        connection.execute("SELECT %s::int", (1,))
        assert as_it_is.execute("SELECT count(*) FROM pg_prepared_statements").fetchone() == (0,)


@pytest.fixture(params=["transaction_timeout", "statement_timeout"])
def hurried(request: pytest.FixtureRequest, direct_url: str) -> Generator[tuple[str, str]]:
    """A limit, and the DSN of a role that has 20 ms of it."""
    with psycopg.connect(direct_url, autocommit=True) as admin:
        if request.param == "transaction_timeout" and admin.info.server_version < 170_000:
            pytest.skip("the server has no transaction_timeout")
        admin.execute("CREATE ROLE hurried SUPERUSER LOGIN")
        admin.execute(sql.SQL("ALTER ROLE hurried SET {} = '20ms'").format(sql.Identifier(request.param)))
        yield request.param, make_conninfo(direct_url, user="hurried")
        admin.execute("DROP ROLE hurried")


def _begin_slowly(patched: pytest.MonkeyPatch, times: int) -> None:
    """Let the next transactions of all connections take 50 ms to begin, as on a busy machine."""
    left = iter(range(times))
    real: Any = psycopg.Cursor.execute

    def execute(self: Any, statement: Any, *others: Any, **named: Any) -> Any:
        if isinstance(statement, bytes) and statement.startswith(b"BEGIN") and next(left, None) is not None:
            statement = statement.replace(b"; ", b"; SELECT pg_sleep(0.05); ", 1)
        return real(self, statement, *others, **named)

    patched.setattr(psycopg.Cursor, "execute", execute)


def test_a_transaction_that_the_role_gives_no_time_to_begin_is_begun_again(
    hurried: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, url = hurried
    with monkeypatch.context() as patched:
        _begin_slowly(patched, 3)
        opened = connect(url)
    with opened, monkeypatch.context() as patched:
        _begin_slowly(patched, 3)
        assert opened.execute("SELECT 1 FROM pg_sleep(0.05)").fetchone() == (1,)
    with monkeypatch.context() as patched:
        patched.setattr("rowvec.postgres.session._PATIENCE_SECONDS", 0.0)
        _begin_slowly(patched, 1_000)
        with pytest.raises(DatabaseUnavailable, match=f"{hurried[0]} of the role or the database is so short"):
            connect(url)


def test_a_session_that_ended_between_two_transactions_is_opened_again(direct_url: str) -> None:
    with connect(direct_url) as connection, psycopg.connect(direct_url, autocommit=True) as killer:
        ((before,),) = connection.execute("SELECT pg_backend_pid()").fetchall()
        killer.execute("SELECT pg_terminate_backend(%s, 5000)", (before,))
        ((after,),) = connection.execute("SELECT pg_backend_pid()").fetchall()
        assert before != after
        with pytest.raises(psycopg.OperationalError):
            _ended_within(connection, killer)


def _ended_within(connection: Connection, killer: psycopg.Connection[tuple[Any, ...]]) -> None:
    with connection.transaction():
        killer.execute("SELECT pg_terminate_backend(%s, 5000)", (connection.info.backend_pid,))
        connection.execute("SELECT 1")
