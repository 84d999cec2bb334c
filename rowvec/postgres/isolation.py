"""Finds the rows that the database refuses for their data, so that it takes all others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import psycopg
import pyarrow as pa
from psycopg import sql

from rowvec.errors import TargetError, UnfitValue
from rowvec.postgres.connection import Connection
from rowvec.postgres.queries import query

# https://www.postgresql.org/docs/current/errcodes-appendix.html: 21 a subquery with several rows, 22 data, 23 an
# integrity constraint, 44 WITH CHECK OPTION, 54 a limit such as an index entry's, P0 RAISE in a trigger. An error of
# any other class is not about a row: a missing table, a full disk, a lost connection.
_OF_DATA = ("21", "22", "23", "44", "54", "P0")

MOST_REFUSED = 10_000
"""Refused rows per batch or step of a merge. Each costs about log2(rows) statements, of a millisecond or less."""

ALL_TRIED = 100
"""If the database takes none of the first rows, and refuses this many, it is not about single rows."""
ALL_OF = 10
"""The same if there are no more rows than these: fewer rows may well be bad by chance."""

_LONGEST_SENTENCE = 500

P = TypeVar("P")


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why the database refused a row."""

    sqlstate: str | None
    """None if the value cannot even be sent."""
    sentence: str
    """The database's own, as ``as_data`` shows it."""

    def __str__(self) -> str:
        return f"{self.sentence} (SQLSTATE {self.sqlstate})" if self.sqlstate else self.sentence


def refusal_of(error: Exception) -> Refusal | None:
    """The refusal that an error stands for; None if the error is not about the data of a row."""
    if isinstance(error, UnfitValue):
        return Refusal(sqlstate=None, sentence=as_data(str(error)))
    if isinstance(error, psycopg.Error) and (error.sqlstate or "").startswith(_OF_DATA):
        return Refusal(sqlstate=error.sqlstate, sentence=as_data(error.diag.message_primary or str(error)))
    return None


def as_data(text: str) -> str:
    """A text that may quote a row, in one line, without control characters, and of a bounded length.

    A terminal obeys escape sequences, so a character that cannot be printed is written as Python writes it.
    """
    line = " ".join(text[: 4 * _LONGEST_SENTENCE].split())
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    return line if len(line) <= _LONGEST_SENTENCE else line[: _LONGEST_SENTENCE - 1] + "…"


class Isolation:
    """Gives the database many rows at once, and halves what it refuses until single rows are left.

    It takes about log2(rows) statements per refused row. Call it in a transaction: each try is a savepoint.
    """

    def __init__(self, connection: Connection, what: str, *, may_refuse_all: bool = False) -> None:
        """``what``: what the rows are given to, for messages. ``may_refuse_all``: that is then no error."""
        self._connection, self._what, self._may_refuse_all = connection, what, may_refuse_all
        self.taken = self.refused = 0

    def isolate(
        self, part: P, attempt: Callable[[P], int], split: Callable[[P], tuple[P, P] | None]
    ) -> list[tuple[P, Refusal]]:
        """The smallest parts that the database refuses, with its reason; it has taken the rest.

        ``attempt`` gives the database a part and returns the number of rows that it took. ``split`` halves a part, or
        returns None for a single row. Raises ``TargetError`` if the database refuses more than ``MOST_REFUSED`` rows,
        or all of many; and what ``attempt`` raises for another reason than the data of a row.
        """
        found: list[tuple[P, Refusal]] = []
        waiting = [part]
        while waiting:
            part = waiting.pop()
            refusal = self._try(part, attempt)
            if refusal is None:
                continue
            halves = split(part)
            if halves is None:
                found.append((part, refusal))
                self.refused += 1
                self._check(refusal, self.refused >= ALL_TRIED)
            else:
                waiting += reversed(halves)
        return found

    def check_all(self, last: Refusal, *, few: int = ALL_OF) -> None:
        """At the end: raise ``TargetError`` if the database has refused all of ``few`` rows or more."""
        self._check(last, self.refused >= few)

    def _try(self, part: P, attempt: Callable[[P], int]) -> Refusal | None:
        try:
            with self._connection.transaction():
                self.taken += attempt(part)
        except (psycopg.Error, UnfitValue) as error:
            refusal = refusal_of(error)
            if refusal is None:
                raise
            return refusal
        return None

    def _check(self, refusal: Refusal, many: bool) -> None:
        if many and not self.taken and not self._may_refuse_all:
            raise TargetError(
                f"the database refuses each of the {self.refused:,} rows that were tried for {self._what}: {refusal}; "
                "nothing was changed, and what was embedded is kept: fix the constraint or trigger, or the rows"
            )
        if self.refused > MOST_REFUSED:
            raise TargetError(
                f"the database refuses more than {MOST_REFUSED:,} rows for {self._what}, the last one with: {refusal}; "
                "nothing was changed, and what was embedded is kept: fix the constraint or trigger, or the rows"
            )


def halves(block: pa.RecordBatch) -> tuple[pa.RecordBatch, pa.RecordBatch] | None:
    """Two parts of a block of rows; None for a single row."""
    half = block.num_rows // 2
    return (block.slice(0, half), block.slice(half)) if half else None


@dataclass(frozen=True, slots=True)
class Stretch:
    """Rows of a table that follow each other on disk."""

    first: str
    """The place of the first row, as Postgres writes a ``tid``."""
    end: str | None
    """The place before which the stretch ends; None: at the end of the table."""
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRows:
    """The rows of one of the run's own tables, which nobody else writes, in stretches that can be halved."""

    connection: Connection
    table: sql.Identifier
    which: sql.Composable
    """A condition on a row ``s``."""

    def all(self) -> Stretch:
        """All of them."""
        parts = {"table": self.table, "which": self.which}
        row = self.connection.execute(query("isolation", "count", **parts)).fetchone()
        return Stretch("(0,0)", None, row[0] if row else 0)

    def within(self, stretch: Stretch) -> sql.Composed:
        """The condition that a row ``s`` is in the stretch."""
        parts = {"first": sql.Literal(stretch.first), "which": self.which}
        if stretch.end is None:
            return query("isolation", "from", **parts)
        return query("isolation", "between", end=sql.Literal(stretch.end), **parts)

    def halves(self, stretch: Stretch) -> tuple[Stretch, Stretch] | None:
        """Two stretches of about as many rows; None for a single row."""
        half = stretch.rows // 2
        if not half:
            return None
        parts = {"table": self.table, "within": self.within(stretch), "half": sql.Literal(half)}
        row = self.connection.execute(query("isolation", "middle", **parts)).fetchone()
        if row is None:
            return None
        return Stretch(stretch.first, row[0], half), Stretch(row[0], stretch.end, stretch.rows - half)
