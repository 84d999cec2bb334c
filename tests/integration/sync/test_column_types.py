"""Metadata of every type that Postgres and pgvector have travels unchanged, alone or beside others."""

from __future__ import annotations

from pathlib import Path
from typing import LiteralString

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from psycopg import sql

from rowvec.operations import rejects
from rowvec.operations.audit import audit
from rowvec.pipeline import Pipeline
from rowvec.postgres.connection import Connection, connect
from tests.support import paintings as gallery
from tests.support.paintings import sync

_TYPES: dict[str, tuple[tuple[LiteralString, LiteralString], ...]] = {
    # Alone beside int and text, these have a binary form; as text in an artifact, they have another.
    "vectors and bits": (
        ("bit(5)", "'10110'"),
        ("bit(16)", "'1111000011110001'"),
        ("vector(3)", "'[1,2,3]'"),
        ("halfvec(2)", "'[1,-2]'"),
        ("sparsevec(4)", "'{1:1,3:2}/4'"),
    ),
    "other forms": (
        ("bit varying(9)", "'101'"),
        ("bit varying", "'1'"),
        ("vector", "'[1,2]'"),
        ("int[]", "'[0:1]={1,2}'"),
        ("text[]", """'{a,"b\\"c",NULL}'"""),
        ("int4range", "'[1,5)'"),
        ("tstzmultirange", "'{[2024-01-01 00:00+00,infinity)}'"),
        ("money", "'-12.34'"),
        ("public.mood", "'glad ''and'' \"quoted\"'"),
        ("public.spot", "ROW(1, 'a,b')::public.spot"),
        ("public.short", "'abc'"),
        ("interval", "'1 year 2 mons'"),
        ("numeric(20,5)", "'12345.67890'"),
        ("inet", "'::1'"),
        ("tsvector", "'a:1 b:2'"),
        ("jsonpath", "'$.a'"),
        ("point", "'(1,2)'"),
        ('"char"', "'x'"),
        ("pg_lsn", "'16/B374D848'"),
    ),
    "types with a binary form of their own": (
        ("char(4)", "'ab'"),
        ("varchar(3)", "'äöü'"),
        ("name", "'n'"),
        ("json", """'{"a" : 1,  "a" : 2}'"""),
        ("jsonb", """'{"b": 1.50, "a": "ü"}'"""),
        ("date", "'-infinity'"),
        ("timestamp(3)", "'10000-01-01 00:00:00.125'"),
        ("timestamptz", "'0044-03-15 12:00+00 BC'"),
        ("uuid", "'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'"),
        ("bytea", "'\\x00ff'"),
        ("bool", "'f'"),
        ("real", "'1e-45'"),
        ("float8", "'-0'"),
    ),
}
_OWN_TYPES = """
    CREATE TYPE public.mood AS ENUM ('sad', 'glad ''and'' "quoted"');
    CREATE TYPE public.spot AS (x int, y text);
    CREATE DOMAIN public.short AS text CHECK (length(VALUE) < 9);
    CREATE EXTENSION IF NOT EXISTS vector SCHEMA public
"""


@pytest.mark.parametrize("group", _TYPES)
@pytest.mark.parametrize("away", [False, True])
def test_metadata_of_any_type_arrives_as_it_was(
    source: Connection, paintings: Pipeline, another_url: str, direct_url: str, group: str, away: bool
) -> None:
    source.execute(_OWN_TYPES)
    url = direct_url
    if away:
        url = another_url
        with connect(url) as other:
            other.execute(_OWN_TYPES)
    named = [f"c{i}" for i in range(len(_TYPES[group]))]
    with connect(url) as other:
        _make(other, named, _TYPES[group])
    made = gallery.pipeline(
        paintings.artifacts.url,
        source={"table": "public.typed", "content": "{title}", "metadata": named, **({"url": url} if away else {})},
    )
    first = sync(made)
    assert (first.rows, first.rejected, first.consistent) == (3, 0, True)
    assert sync(made).unchanged == 3
    with connect(url) as other:
        assert _texts(source, "vectors.paintings", named) == _texts(other, "public.typed", named)
        other.execute("UPDATE public.typed SET title = 'other' WHERE id = 1")
    assert sync(made).changed == 1
    assert audit(made).consistent
    with connect(url) as other:
        assert _texts(source, "vectors.paintings", named) == _texts(other, "public.typed", named)


def test_nested_dates_that_python_does_not_have_are_one_bad_row_of_a_file(
    source: Connection, paintings: Pipeline, tmp_path: Path
) -> None:
    days = pa.array([[19_000], [2_932_897], None, [-800_000]], pa.list_(pa.date32()))
    plain = pa.array([19_000, 2_932_897, None, -800_000], pa.date32())
    table = pa.table({"id": [1, 2, 3, 4], "title": ["a", "b", "c", "d"], "days": days, "day": plain})
    pq.write_table(table, tmp_path / "dated.parquet")
    made = gallery.pipeline(
        paintings.artifacts.url,
        source={
            "kind": "parquet",
            "path": str(tmp_path / "dated.parquet"),
            "key": ["id"],
            "content": "{title}",
            "metadata": ["days", "day"],
        },
    )
    for _ in range(2):
        report = sync(made)
        assert (report.rows, report.rejected, report.consistent) == (2, 2, True)
    found = rejects.rejects(made).as_json()["rejects"]
    assert {(reject["key"][0], reject["reason"]) for reject in found} == {("2", "unreadable"), ("4", "unreadable")}


def _make(connection: Connection, named: list[str], types: tuple[tuple[LiteralString, LiteralString], ...]) -> None:
    """Three rows: the values, other values or the same ones, and NULL."""
    columns = sql.SQL(", ").join(
        sql.SQL("{} {}").format(sql.Identifier(name), sql.SQL(kind))
        for name, (kind, _) in zip(named, types, strict=True)
    )
    connection.execute(sql.SQL("CREATE TABLE public.typed (id int PRIMARY KEY, title text, {})").format(columns))
    values = sql.SQL(", ").join(sql.SQL(value) for _, value in types)
    connection.execute(sql.SQL("INSERT INTO public.typed VALUES (1, 'one', {0}), (2, 'two', {0})").format(values))
    connection.execute("INSERT INTO public.typed VALUES (3, 'three')")


def _texts(connection: Connection, table: LiteralString, named: list[str]) -> list[tuple[str | None, ...]]:
    columns = sql.SQL(", ").join(sql.SQL("{}::text").format(sql.Identifier(name)) for name in named)
    statement = sql.SQL("SELECT id, {}, pg_typeof({}) FROM {} ORDER BY id")
    first = sql.Identifier(named[0])
    return connection.execute(statement.format(columns, first, sql.SQL(table))).fetchall()
