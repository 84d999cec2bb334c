"""What rows hold beyond Python's and JSON's types: a search shows it as Postgres writes it, and ``--json`` is JSON."""

from __future__ import annotations

import json
from typing import Any, LiteralString

import pytest
from psycopg import sql

from rowvec.cli import render
from rowvec.cli.output import emit
from rowvec.operations import search
from rowvec.operations.search import SearchMode
from rowvec.pipeline import Pipeline
from rowvec.postgres.connection import Connection
from tests.support import paintings as gallery
from tests.support.paintings import sync

# Column, type, value, and what the JSON has.
_VALUES: tuple[tuple[str, LiteralString, str, Any], ...] = (
    ("d1", "date", "infinity", "infinity"),
    ("d2", "date", "0044-03-15 BC", "0044-03-15 BC"),
    ("d3", "date", "99999-01-01", "99999-01-01"),
    ("d4", "date", "2024-02-29", "2024-02-29"),
    ("t1", "time", "24:00", "24:00:00"),
    ("t2", "timetz", "24:00+02", "24:00:00+02"),
    ("s1", "timestamp", "-infinity", "-infinity"),
    ("s2", "timestamp", "10000-01-01 00:00:00.5", "10000-01-01 00:00:00.5"),
    ("s3", "timestamptz", "infinity", "infinity"),
    ("s4", "timestamptz", "0044-03-15 12:00+00 BC", "0044-03-15 12:00:00+00 BC"),
    ("s5", "timestamptz", "9999-12-31 23:59-12", "10000-01-01 11:59:00+00"),
    ("i1", "interval", "178000000 years", "178000000 years"),
    ("i2", "interval", "1 year 2 mons 3 days", "1 year 2 mons 3 days"),
    ("f1", "float8", "NaN", "NaN"),
    ("f2", "float8", "-Infinity", "-Infinity"),
    ("f3", "real", "Infinity", "Infinity"),
    ("f4", "float8", "1.5", 1.5),
    ("n1", "numeric", "NaN", "NaN"),
    ("n2", "numeric", "Infinity", "Infinity"),
    ("n3", "numeric", "1e100", "1" + "0" * 100),
    ("a1", "date[]", "{infinity,2024-02-29,NULL}", ["infinity", "2024-02-29", None]),
    ("a2", "float8[]", "{NaN,1}", ["NaN", 1.0]),
    ("r1", "daterange", "[2024-01-01,infinity)", "[2024-01-01,infinity)"),
    ("r2", "tstzrange", "(,-infinity]", "(,-infinity]"),
    ("r3", "int4range", "empty", "empty"),
    ("j1", "jsonb", '{"a": 1' + "0" * 5000 + "}", '{"a": 1' + "0" * 5000 + "}"),
    ("j2", "json", '{"a": 1e400, "b": [null]}', {"a": "Infinity", "b": [None]}),
    ("j3", "jsonb", "[" * 900 + "]" * 900, "[" * 900 + "]" * 900),
    ("u1", "inet", "::ffff:1.2.3.4", "::ffff:1.2.3.4"),
    ("b1", "bytea", "\\x00ff", "00ff"),
    ("m1", "money", "-92233720368547758.08", "-$92,233,720,368,547,758.08"),
)


def test_values_without_an_equal_in_python_or_json_are_shown_as_postgres_writes_them(
    source: Connection, paintings: Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    source.execute("CREATE TABLE odd (id int PRIMARY KEY, title text)")
    source.execute("INSERT INTO odd VALUES (1, 'one')")
    for name, kind, value, _ in _VALUES:
        column, of_type = sql.Identifier(name), sql.SQL(kind)
        source.execute(sql.SQL("ALTER TABLE odd ADD {} {}").format(column, of_type))
        source.execute(sql.SQL("UPDATE odd SET {} = {}::text::{}").format(column, sql.Literal(value), of_type))
    named = [name for name, *_ in _VALUES]
    made = gallery.pipeline(
        paintings.artifacts.url,
        source={"table": "public.odd", "content": "{title}", "metadata": named},
        search={"hybrid": True},
    )
    assert sync(made).rows == 1
    again = sync(made)
    assert (again.unchanged, again.consistent) == (1, True)
    modes: tuple[SearchMode, ...] = ("exact", "hybrid")
    for mode in modes:
        found = {"results": [hit.as_json() for hit in search.search(made, "one", 5, mode=mode)]}
        emit(found, True, lambda: None)
        printed = json.loads(capsys.readouterr().out, parse_constant=_refuse)
        (result,) = printed["results"]
        assert {name: result[name] for name in named} == {name: expected for name, _, _, expected in _VALUES}
        render.search("one", found["results"])
        assert "0044-03-15 BC" in capsys.readouterr().out


def test_a_key_that_python_has_no_date_for_is_found_and_named(source: Connection, paintings: Pipeline) -> None:
    source.execute("CREATE TABLE dated (day date PRIMARY KEY, title text)")
    source.execute("INSERT INTO dated VALUES ('infinity', 'one'), ('0001-01-01 BC', 'two'), ('2024-01-01', NULL)")
    made = gallery.pipeline(
        paintings.artifacts.url,
        source={"table": "public.dated", "key": ["day"], "content": "{title}", "metadata": [], "empty": "reject"},
    )
    assert (sync(made).rows, sync(made).unchanged) == (2, 2)
    found = [hit.as_json() for hit in search.search(made, "one", 5, mode="exact")]
    assert [one["day"] for one in found] == ["infinity", "0001-01-01 BC"]


def _refuse(constant: str) -> Any:
    raise AssertionError(f"{constant} is no JSON")
