"""rowvec parses a filter itself, and its values reach the database only as parameters."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import DataError, sql

from rowvec.errors import UsageError
from rowvec.postgres.columns import PgColumn
from rowvec.postgres.connection import Connection
from rowvec.searches.where import parse_where

COLUMNS = (
    PgColumn("id", "bigint"),
    PgColumn("author", "character varying(6)"),
    PgColumn("year", "integer"),
    PgColumn("Sold Out", "boolean"),
    PgColumn("price", "numeric(6,2)"),
    PgColumn("code", "character(4)"),
    PgColumn("flags", "bit(3)"),
    PgColumn("at", "timestamp(0) with time zone"),
    PgColumn("or", "text"),
    PgColumn('a"b', "text"),
)
ROWS: list[tuple[Any, ...]] = [
    (1, "Goya", 1800, True, "1.50", "ab", "101", "2024-01-01 10:00+00", "x", "'"),
    (2, "Manet", 1863, False, "20.00", "cd", "000", "2024-06-01 10:00+00", None, '"'),
    (3, "O'Hara", 1950, None, "3.00", "ef", "111", "2025-01-01 10:00+00", "100%", "\\"),
    (4, None, None, True, "4.25", "gh", "010", None, "é", "--"),
]


@pytest.fixture
def shop(connection: Connection) -> Connection:
    """A connection to a database with ``ROWS`` in the table ``shop``."""
    columns = sql.SQL(", ").join(sql.SQL("{} {}").format(sql.Identifier(c.name), c.type_sql) for c in COLUMNS)
    connection.execute(sql.SQL("CREATE TABLE shop ({})").format(columns))
    for row in ROWS:
        connection.execute("INSERT INTO shop VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)", row)
    return connection


def found(connection: Connection, text: str) -> set[int]:
    where = parse_where(text, COLUMNS)
    statement = sql.SQL("SELECT id FROM shop AS t WHERE {}").format(where.condition)
    return {row[0] for row in connection.execute(statement, where.parameters)}


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("author = 'Goya'", {1}),
        ("AUTHOR='O''Hara'", {3}),
        ("author = 'Goya and more'", set()),  # not cut to varchar(6), nor to anything
        ("author <> 'Goya' and year!=1863", {3}),
        ("year < 1863 OR year >= 1950", {1, 3}),
        ("year <= 1863 AND NOT author = 'Goya'", {2}),
        ("not (year > 1900 or year < 1850)", {2}),
        ("NOT NOT year = 1800", {1}),
        ("author LIKE '%a%' OR author ILIKE 'g%'", {1, 2, 3}),
        ("author NOT LIKE '%a%'", set()),
        ("year IN (1800, 1950, -5)", {1, 3}),
        ("year NOT IN (1800)", {2, 3}),
        ("year BETWEEN 1800 AND 1900 AND id > 1", {2}),
        ("year NOT BETWEEN 1800 AND 1900", {3}),
        ("author IS NULL", {4}),
        ('author is not null AND "Sold Out" IS NULL', {3}),
        ('"Sold Out" = true', {1, 4}),
        ('"Sold Out" = FALSE', {2}),
        ("price = 1.499", set()),  # not rounded to numeric(6,2)
        ("price >= 4.25e0", {2, 4}),
        ("code = 'ab'", {1}),
        ("flags = '101'", {1}),
        ("at > '2024-03-01'", {2, 3}),
        ("\"or\" = '100%'", {3}),
        ("\"or\" LIKE 'é'", {4}),
        ("\"a\"\"b\" = ''''", {1}),
        ('"a""b" = \'\\\'', {3}),
        ('"a""b" = \'--\' /', None),
        (" id = 1 ", {1}),
    ],
)
def test_filters_mean_what_they_say(shop: Connection, text: str, ids: set[int] | None) -> None:
    if ids is None:
        with pytest.raises(UsageError):
            found(shop, text)
    else:
        assert found(shop, text) == ids


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the end at character 1, where a column"),
        ("nobody = 1", "nobody at character 1"),
        ("year = 1 AND nobody = 1", "nobody at character 14"),
        ("year = NULL", "IS NULL"),
        ("year", "the end at character 5, where a comparison"),
        ("year = author", "'author' at character 8, where a value"),
        ("year = 1; DROP TABLE shop", "character 9, '; DROP TAB'"),
        ("year = 1 -- x", "character 10"),
        ("year = 1) OR (1 = 1", "'\\)' at character 9"),
        ("year = 12x", "character 8"),
        ("author = 'open", "character 10"),
        ("author = E'x'", "'E' at character 10"),
        ("author = $$x$$", "character 10"),
        ("pg_sleep(5) = 1", "pg_sleep at character 1"),
        ("year = (SELECT 1)", "'\\(' at character 8"),
        ("year IN ()", "'\\)' at character 10"),
        ("(year = 1", "the end at character 10, where \\)"),
        ("year IS 5", "'5' at character 9, where NULL"),
        ("1 = 1", "'1' at character 1, where a column"),
        ("author = 'a\0b'", "no text in Postgres"),
        ("(" * 70 + "year = 1" + ")" * 70, "nested"),
        ("NOT " * 70 + "year = 1", "nested"),
        ("year = 1 OR " * 2_000 + "year = 1", "at most 20,000"),
    ],
)
def test_anything_else_is_refused_by_position(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_where(text, COLUMNS)


_WORDS = """year "Sold Out" "a""b" author or = <> < ( ) , 1 -2.5e3 'x' ' " ; -- /* */ AND OR NOT IN IS NULL LIKE
    BETWEEN true '' \\ %s %(a)s % {} {0} $1 :: pg_sleep select é \0 \ud800 ';DROP_TABLE_shop;--"""
_PIECES = st.sampled_from(_WORDS.split())
_TEXTS = st.one_of(st.text(max_size=60), st.lists(_PIECES, max_size=12).map(" ".join), st.lists(_PIECES).map("".join))
_SHAPE = re.compile(
    r"""(?:t\."(?:[^"]|"")+"|\$|::(?:bigint|integer|text|bpchar|boolean|numeric|(?:bit|character)\ varying
        |timestamp\ with\ time\ zone)|\b(?:AND|OR|NOT|IN|IS|NULL|LIKE|ILIKE|BETWEEN)\b|[=<>(),\s])*""".replace(
        "\n", ""
    ),
    re.VERBOSE,
)


@given(text=_TEXTS)
def test_only_our_own_words_become_sql(text: str) -> None:
    try:
        where = parse_where(text, COLUMNS)
    except UsageError:
        return
    written = where.condition.as_string()
    placeholders = re.findall(r"%\((where_\d+)\)s", written)
    assert placeholders == list(where.parameters)
    rest = re.sub(r"%\(where_\d+\)s", "$", written).replace('"t".', "t.")
    assert _SHAPE.fullmatch(rest)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(value=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40))
def test_a_string_is_a_string_in_the_database(shop: Connection, value: str) -> None:
    quoted = value.replace("'", "''")
    shop.execute('UPDATE shop SET "or" = %s WHERE id = 1', (value,))
    assert found(shop, f"\"or\" = '{quoted}' AND id = 1") == {1}
    assert found(shop, f"\"or\" <> '{quoted}' AND id = 1") == set()


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(text=_TEXTS)
def test_nothing_typed_is_ever_executed(shop: Connection, text: str) -> None:
    for attempt in (text, f"\"or\" = '{text}'", f'"{text}" = 1', f"year = {text}"):
        try:
            found(shop, attempt)
        except (UsageError, DataError):  # a value that its column's type cannot read
            continue
    assert shop.execute("SELECT count(*) FROM shop").fetchone() == (4,)
