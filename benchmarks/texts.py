"""The source table of the benchmarks of syncers: its texts, its edits, and which rows are wrong after a sync.

A row is wrong if it has no vector, the vector of another text, or more than one vector; or if it has a vector but is no
longer in the source. The vectors of all texts are known, so each vector is compared with the one that it should be.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import LiteralString

import pyarrow.parquet as pq
from psycopg import sql

from benchmarks.provider import MODEL
from rowvec.postgres.connection import Connection
from tests.support.servers.openai_server import vector

REVISIONS = 3
"""How many times 1 % of the rows can be changed, and 1 % deleted, with different rows each time."""

TEMPLATE = "contest_texts"
POISON = "that no model can read"

# As in the collection of the Tate: 15 % of its 69,202 texts are repeats.
_REPEATED_EVERY = 7
_SUBJECTS = ("the sea in winter", "a harbour at dawn", "a woman reading", "hills after rain", "a table with fruit")
_WAYS = ("oil on canvas", "graphite on paper", "etching", "watercolour on paper", "screenprint", "bronze")

_TABLES: LiteralString = """
    CREATE EXTENSION IF NOT EXISTS vector;
    CREATE TABLE public.texts (id bigint PRIMARY KEY, content text NOT NULL);
    CREATE SCHEMA contest;
    CREATE TABLE contest.vectors (content text NOT NULL, embedding vector NOT NULL)
"""

_CHANGE: LiteralString = "UPDATE public.texts SET content = content || %(revision)s WHERE id %% 100 = %(part)s"
_DELETE: LiteralString = "DELETE FROM public.texts WHERE id %% 100 = %(part)s"

# Two vectors this near to each other are the same: a float32 changes a little when it is written as text.
_WRONG: LiteralString = """
    WITH wanted AS (
        SELECT t.id, v.embedding FROM public.texts AS t JOIN contest.vectors AS v USING (content)
    ), held AS (
        SELECT {id} AS id, embedding FROM {table}
    ), rows AS (
        SELECT id, w.id AS wanted, count(h.id) AS vectors,
            bool_or(h.id IS NOT NULL AND ((w.embedding <=> h.embedding) <= 1e-5) IS NOT TRUE) AS other
        FROM wanted AS w FULL JOIN held AS h USING (id)
        GROUP BY id, w.id
    )
    SELECT
        count(*) FILTER (WHERE vectors = 0),
        count(*) FILTER (WHERE wanted IS NOT NULL AND vectors > 0 AND other),
        count(*) FILTER (WHERE wanted IS NULL),
        count(*) FILTER (WHERE wanted IS NOT NULL AND vectors > 1 AND NOT other)
    FROM rows
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """Where a syncer keeps its vectors: a table, its column ``embedding``, and where it has the source's key."""

    table: LiteralString
    id: LiteralString


@dataclass(frozen=True, slots=True, kw_only=True)
class Wrong:
    """Rows that are not as they should be."""

    missing: int
    stale: int
    orphaned: int
    doubled: int
    """Rows with more than one vector, all of them right."""

    @property
    def rows(self) -> int:
        """The number of all wrong rows."""
        return self.missing + self.stale + self.orphaned + self.doubled

    def __str__(self) -> str:
        counts = (
            ("missing", self.missing),
            ("stale", self.stale),
            ("orphaned", self.orphaned),
            ("twice", self.doubled),
        )
        return ", ".join(f"{count} {name}" for name, count in counts if count) or "none"


def read_texts(data: Path | None, column: str, rows: int) -> list[str]:
    """At most ``rows`` texts: the non-empty ones of a Parquet file, or made-up ones, some of them repeated."""
    if data is None:
        return [_made_up(number) for number in range(rows)]
    found: list[str | None] = pq.read_table(data, columns=[column]).column(0).to_pylist()
    # A splitter would strip the ends of a text; that must not count as an error.
    texts = [" ".join((text or "").split()) for text in found]
    return [text for text in texts if text][:rows]


def fill(connection: Connection, texts: list[str], dimensions: int, later: Sequence[str] = ()) -> None:
    """Fill the source table, and store the vector of every text that it will ever hold, with the texts of ``later``."""
    for statement in _TABLES.split(";"):
        connection.execute(statement)
    with connection.cursor().copy("COPY public.texts FROM STDIN") as copy:
        for number, text in enumerate(texts):
            copy.write_row((number, text))
    with connection.cursor().copy("COPY contest.vectors FROM STDIN") as copy:
        for text in dict.fromkeys([*_ever(texts), *later]):
            values = vector(MODEL, text, dimensions).tolist()
            copy.write_row((text, "[" + ",".join(map(repr, values)) + "]"))
    connection.execute("ANALYZE public.texts")
    connection.execute("ANALYZE contest.vectors")


def change(connection: Connection, number: int) -> int:
    """Give 1 % of the rows another text; returns how many."""
    return connection.execute(_CHANGE, {"revision": _revision(number), "part": _changed_part(number)}).rowcount


def delete(connection: Connection, number: int) -> int:
    """Delete 1 % of the rows; returns how many."""
    return connection.execute(_DELETE, {"part": 50 + number}).rowcount


def wrong_rows(connection: Connection, held: Held) -> Wrong:
    """What is wrong with a syncer's table now; a row that cannot be embedded needs no vector."""
    parts = {"table": sql.SQL(held.table), "id": sql.SQL(held.id)}
    found = connection.execute("SELECT to_regclass(%s)", (held.table,)).fetchone()
    if found is None or found[0] is None:
        # The syncer ended before it had created its table.
        nothing = sql.SQL("(SELECT NULL::bigint AS id, NULL::vector AS embedding WHERE false) AS nothing")
        parts = {"table": nothing, "id": sql.SQL("id")}
    counts = connection.execute(sql.SQL(_WRONG).format(**parts)).fetchone()
    assert counts is not None
    missing, stale, orphaned, doubled = counts
    return Wrong(missing=missing, stale=stale, orphaned=orphaned, doubled=doubled)


def _made_up(number: int) -> str:
    if number % _REPEATED_EVERY == 0:
        number //= _REPEATED_EVERY
        number += number % _REPEATED_EVERY == 0
    way, subject = _WAYS[number % len(_WAYS)], _SUBJECTS[number % len(_SUBJECTS)]
    return f"Study no. {number}: {subject}, {way}, seen from the {number * 7919 % 10007}th step of the stair"


def _ever(texts: list[str]) -> Iterator[str]:
    yield from texts
    for number in range(REVISIONS):
        yield from (text + _revision(number) for text in _part(texts, _changed_part(number)))


def _part(texts: list[str], part: int) -> list[str]:
    return texts[part::100]


def _changed_part(number: int) -> int:
    return 10 + number


def _revision(number: int) -> str:
    return f", revised in {2030 + number}"
