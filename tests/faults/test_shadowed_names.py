"""A role that may create in ``public`` and in the source's schema shadows what our SQL names, and gains nothing by it.

On PostgreSQL up to 14 everybody may create in ``public``, and upgraded databases keep that.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from rowvec.operations.audit import audit
from rowvec.operations.search import search
from rowvec.pipeline import Pipeline
from rowvec.postgres.connection import connect
from rowvec.postgres.queries import blocks
from rowvec.stages import dry_run
from tests.support import paintings as gallery
from tests.support.databases import database

_SQL = Path(__file__).parents[2] / "rowvec" / "sql"

# What a planted function or operator does as soon as anybody calls it.
_TRAP = """
    CREATE FUNCTION public.spring() RETURNS void LANGUAGE plpgsql AS $$
    BEGIN
        ALTER ROLE mallory SUPERUSER;
        RAISE EXCEPTION 'the trap of mallory was sprung by %', current_user;
    END $$
"""
_OPERATORS = (
    "=",
    "<>",
    "<",
    ">",
    "<=",
    ">=",
    "||",
    "+",
    "-",
    "*",
    "/",
    "~",
    "->>",
    "?",
    "@@",
    "<=>",
    "<~>",
    "<#>",
    "<->",
)
_TYPES = ("text", "varchar", "bytea", "int4", "int8", "float8", "name", "oid", "jsonb", "bool", "timestamptz")
_SEVERAL = 400


def _functions() -> list[str]:
    """The names of all functions that rowvec's SQL may call."""
    text = " ".join(block for file in _SQL.glob("*.sql") for block in blocks(file.stem).values())
    return sorted(set(re.findall(r"\b([a-z_][a-z0-9_]*) ?\(", text)))


def _plant(connection: psycopg.Connection[tuple[object, ...]], schema: str) -> int:
    """Create functions, operators, types and tables that fit calls better than the server's; returns how many."""
    planted = 0
    named = connection.execute(
        "SELECT DISTINCT proname FROM pg_proc WHERE pronamespace = 'pg_catalog'::regnamespace AND proname = ANY (%s)",
        (_functions(),),
    ).fetchall()
    wanted: list[sql.Composed] = []
    place = sql.Identifier(schema)
    for (name,) in named:
        for arguments in (
            "text",
            "text, text",
            "anyelement",
            "text, anyelement",
            "anyarray",
            "bytea",
            "VARIADIC text[]",
        ):
            wanted.append(
                sql.SQL(
                    "CREATE FUNCTION {}.{} ({}) RETURNS text LANGUAGE plpgsql AS 'BEGIN PERFORM public.spring(); END'"
                ).format(place, sql.Identifier(str(name)), sql.SQL(arguments))
            )
    for name in ("text", "bytea", "jsonb", "int4", "bool", "vector", "halfvec"):
        wanted.append(sql.SQL("CREATE DOMAIN {}.{} AS pg_catalog.int2").format(place, sql.Identifier(name)))
    for name in ("pg_class", "pg_namespace", "pg_attribute", "pg_index", "pg_extension", "live", "diff"):
        wanted.append(sql.SQL("CREATE TABLE {}.{} (nonsense int)").format(place, sql.Identifier(name)))
    for left in _TYPES:
        for right in _TYPES:
            one, two = (sql.SQL("pg_catalog." + each) for each in (left, right))
            body = sql.SQL(
                "CREATE FUNCTION {}.trap ({}, {}) RETURNS pg_catalog.bool LANGUAGE plpgsql"
                " AS 'BEGIN PERFORM public.spring(); END'"
            ).format(place, one, two)
            wanted.append(body)
            wanted += [
                sql.SQL("CREATE OPERATOR {}.{} (FUNCTION = {}.trap, LEFTARG = {}, RIGHTARG = {})").format(
                    place, sql.SQL(operator), place, one, two
                )
                for operator in _OPERATORS
            ]
    for statement in wanted:
        try:
            with connection.transaction():
                connection.execute(statement)
            planted += 1
        except psycopg.Error:
            # An argument that the function cannot have, or a type that pgvector has in this schema.
            continue
    return planted


@pytest.fixture(params=["18", pytest.param("16", marks=pytest.mark.soak)])
def shadowed(
    request: pytest.FixtureRequest, cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Generator[str]:
    """The DSN of a superuser in a database with pgvector in ``public``, where mallory has planted her traps."""
    url: str = cluster if request.param == "18" else request.getfixturevalue("postgres_16")
    with psycopg.connect(url, autocommit=True) as maintenance:
        maintenance.execute("CREATE ROLE mallory LOGIN")
        with database(url) as its_own:
            _plant_traps(its_own)
            monkeypatch.setenv("ROWVEC_DATABASE_URL", its_own)
            monkeypatch.setenv("ROWVEC_HOME", str(tmp_path / "home"))
            yield its_own
        maintenance.execute("DROP ROLE mallory")


def _plant_traps(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute("CREATE EXTENSION vector SCHEMA public")
        admin.execute("CREATE SCHEMA shop")
        admin.execute(
            "CREATE TABLE shop.paintings AS SELECT i AS id, 'n' || i AS name, 'Painting ' || i AS title,"
            " 'Author ' || i % 3 AS author FROM generate_series(1, 40) AS i"
        )
        admin.execute("ALTER TABLE shop.paintings ADD PRIMARY KEY (id, name)")
        admin.execute("GRANT CREATE, USAGE ON SCHEMA public, shop TO mallory")
        path = sql.SQL("ALTER ROLE postgres IN DATABASE {} SET search_path = shop, public")
        admin.execute(path.format(sql.Identifier(admin.info.dbname)))
    with psycopg.connect(make_conninfo(url, user="mallory"), autocommit=True) as mallory:
        mallory.execute(_TRAP)
        assert _plant(mallory, "public") > _SEVERAL
        assert _plant(mallory, "shop") > _SEVERAL


def _pipeline(folder: Path, **changes: object) -> Pipeline:
    written = {
        "name": "paintings",
        "source": {
            "kind": "postgres",
            "table": "shop.paintings",
            "key": ["id", "name"],
            "content": "{title}",
            "metadata": ["author"],
        },
        "embedder": {"kind": "local", "dimensions": 64},
        "target": {"table": "vectors.paintings"},
        "artifacts": {"url": str(folder / "artifacts")},
        "index": {"kind": "hnsw"},
        "search": {"hybrid": True},
    }
    return Pipeline.model_validate({**written, **changes})


def test_the_traps_are_sprung_by_sql_that_names_things_carelessly(shadowed: str) -> None:
    with psycopg.connect(shadowed, autocommit=True) as careless:
        with pytest.raises(psycopg.Error, match="the trap of mallory"):
            careless.execute("SELECT convert_to(title, 'UTF8') FROM shop.paintings")
        with pytest.raises(psycopg.Error, match="the trap of mallory"):
            careless.execute("SELECT 1 FROM shop.paintings WHERE author::varchar = 'x'::varchar")


def test_no_command_springs_a_trap(shadowed: str, tmp_path: Path) -> None:
    pipeline = _pipeline(tmp_path)
    assert dry_run.plan(pipeline).new == 40
    assert gallery.sync(pipeline).new == 40
    with connect(shadowed) as connection:
        connection.execute("UPDATE shop.paintings SET title = 'other' WHERE id <= 3")
        connection.execute("DELETE FROM shop.paintings WHERE id = 9")
        assert (changed := gallery.sync(pipeline)).changed == 3
        assert changed.deleted == 1
        assert audit(pipeline).consistent
        assert search(pipeline, "other", 3, where="author = 'Author 1' AND id BETWEEN 1 AND 3")
        assert search(pipeline, "other", 3, mode="hybrid", words="painting")
        assert gallery.rebuild(_pipeline(tmp_path, embedder={"kind": "local", "dimensions": 128})).switched
        ((vector,),) = connection.execute("SELECT embedding::text FROM vectors.paintings LIMIT 1").fetchall()
    # An application calls the functions that rowvec installed, with its own path.
    with psycopg.connect(shadowed, autocommit=True) as application:
        found = application.execute(
            "SELECT * FROM vectors.paintings_search((%s::pg_catalog.text)::public.vector, 3::pg_catalog.int4)",
            (vector,),
        )
        assert len(found.fetchall()) == 3
        assert application.execute("SELECT * FROM vectors.paintings_provenance").fetchall()
    # A path of the server's own schema alone: the question itself must not spring a trap.
    with psycopg.connect(shadowed, options="-c search_path=pg_catalog") as judge:
        rights = judge.execute("SELECT rolsuper FROM pg_roles WHERE rolname = 'mallory'")
        assert rights.fetchone() == (False,)
