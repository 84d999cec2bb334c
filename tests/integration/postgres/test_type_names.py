"""A type's name that somebody else wrote becomes SQL only if the catalog has the type and trusts its owner."""

from __future__ import annotations

import pytest
from psycopg import sql

from rowvec.errors import TargetError
from rowvec.postgres.columns import PgColumn
from rowvec.postgres.connection import Connection, connect
from rowvec.postgres.fragments import definitions
from rowvec.postgres.type_names import known_columns
from rowvec.postgres.vector_table import stored_columns

_TYPES = [
    "smallint",
    "integer",
    "bigint",
    "real",
    "double precision",
    "boolean",
    "numeric",
    "numeric(10,2)",
    "numeric(3,-2)",
    "text",
    "text[]",
    "bytea",
    "uuid",
    "jsonb",
    '"char"',
    "name",
    "character(5)",
    "character varying",
    "character varying(10)",
    "character varying(10)[]",
    "bit(5)",
    "bit varying(5)",
    "date",
    "time without time zone",
    "time(3) with time zone",
    "timestamp with time zone",
    "timestamp(3) without time zone",
    "interval",
    "interval day to second(3)",
    "interval(2)",
    "int4range",
    "tsvector",
    "oid",
    "vector(3)",
    "halfvec(2)",
    "odd.mood",
    'odd."Mood ""swing"""[]',
    "odd.isbn",
]


@pytest.fixture
def target(connection: Connection) -> Connection:
    """A database with types of its own, whose names need quotes."""
    connection.execute("CREATE SCHEMA odd; CREATE TYPE odd.mood AS ENUM ('a')")
    connection.execute('CREATE TYPE odd."Mood ""swing""" AS ENUM ()')
    connection.execute("CREATE DOMAIN odd.isbn AS text CHECK (value <> '')")
    return connection


def test_each_type_that_the_server_names_is_known_by_that_name(target: Connection) -> None:
    given = tuple(PgColumn(f"c{number}", name) for number, name in enumerate(_TYPES))
    known = known_columns(target, given, "a manifest")
    assert known == given
    target.execute(sql.SQL("CREATE TABLE public.typed ({})").format(definitions(known)))
    stored = stored_columns(target, "public", "typed")
    assert [name for _, name, _ in stored] == _TYPES


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("mood", None),
        ("odd.unknown", "is not in this database"),
        ("anyelement", "is not in this database"),
        ("pg_catalog.pg_class", "is not in this database"),
        ("odd.painting", "whose owner could run functions as this role"),
        ("odd.trap", "whose owner could run functions as this role"),
        ("odd.trap[]", "whose owner could run functions as this role"),
        ("odd._trap", "whose owner could run functions as this role"),
        ("odd.traps", "whose owner could run functions as this role"),
        ("text; DROP TABLE x", "a type that is none"),
        ("text(", "a type that is none"),
        ("x" * 1000, "a type that is none"),
    ],
)
def test_a_type_that_is_none_or_that_another_role_made_is_refused(
    target: Connection, name: str, sentence: str | None
) -> None:
    """Domains check their values with functions, and arrays, ranges and composite types may hold domains."""
    target.execute("CREATE ROLE mallory")
    try:
        target.execute("CREATE DOMAIN odd.trap AS int CHECK (value > 0); CREATE TYPE odd.painting AS (x odd.trap)")
        target.execute("CREATE TYPE odd.traps AS RANGE (subtype = odd.trap)")
        for kind in ("DOMAIN odd.trap", "TYPE odd.painting", "TYPE odd.traps"):
            target.execute(f"ALTER {kind} OWNER TO mallory")
        if sentence is None:
            assert known_columns(target, (PgColumn("c", name),), "a manifest") == (PgColumn("c", f"odd.{name}"),)
            return
        with pytest.raises(TargetError, match=sentence) as refused:
            known_columns(target, (PgColumn("c", name),), "a manifest")
        assert str(refused.value).startswith("a manifest gives the column 'c' ")
    finally:
        target.execute("DROP OWNED BY mallory CASCADE; DROP ROLE mallory")


def test_a_type_of_this_roles_own_is_known(target: Connection, direct_url: str) -> None:
    target.execute("CREATE ROLE rowvec_alone LOGIN; ALTER DOMAIN odd.isbn OWNER TO rowvec_alone")
    try:
        target.execute("GRANT USAGE ON SCHEMA odd TO rowvec_alone")
        with connect(direct_url.replace("user=postgres", "user=rowvec_alone")) as alone:
            assert known_columns(alone, (PgColumn("c", "odd.isbn"),), "a manifest")
    finally:
        target.execute("DROP OWNED BY rowvec_alone CASCADE; DROP ROLE rowvec_alone")
