"""How a search's cursor reads what rows hold: as Python's own types, or as Postgres' text if Python has no equal."""

from __future__ import annotations

from typing import Any

from psycopg import DataError, postgres
from psycopg.abc import AdaptContext, Buffer
from psycopg.adapt import AdaptersMap, Loader
from psycopg.types.datetime import DateLoader, TimeLoader, TimestampLoader, TimestamptzLoader, TimetzLoader
from psycopg.types.json import JsonbLoader, JsonLoader
from psycopg.types.string import TextLoader

# Python's interval has no months, its ranges and addresses are written in another form.
_AS_TEXT = ("interval", "inet", "cidr")
_RANGES = ("int4", "int8", "num", "date", "ts", "tstz")

# Python reads and writes JSON by recursion, and ends at about a thousand levels.
_MOST_LEVELS = 100


class _OrText(Loader):
    """Loads a value by another loader, or as text if that one cannot: infinity, years before Christ, 24:00."""

    own: type[Loader]

    def __init__(self, oid: int, context: AdaptContext | None = None) -> None:
        super().__init__(oid, context)
        self._own = self.own(oid, context)

    def load(self, data: Buffer) -> Any:
        """See ``psycopg.abc.Loader``."""
        try:
            return self._own.load(data)
        except (DataError, ValueError, OverflowError, RecursionError):
            return bytes(data).decode()


class _Json(_OrText):
    """JSON, as text if it is nested so deeply that Python could not write it again, or has a number too long for it."""

    def load(self, data: Buffer) -> Any:
        """See ``psycopg.abc.Loader``."""
        text = bytes(data)
        if text.count(b"[") + text.count(b"{") > _MOST_LEVELS and _levels(text) > _MOST_LEVELS:
            return text.decode()
        return super().load(data)


def _levels(text: bytes) -> int:
    """At most so many levels a JSON text is nested; brackets in its strings count too."""
    level = most = 0
    for byte in text:
        if byte in b"[{":
            level += 1
            most = max(most, level)
        elif byte in b"]}":
            level -= 1
    return most


def read_as_postgres_writes(adapters: AdaptersMap) -> None:
    """Let a cursor with these adapters load every value that a table may hold."""
    for name, own in (
        ("date", DateLoader),
        ("time", TimeLoader),
        ("timetz", TimetzLoader),
        ("timestamp", TimestampLoader),
        ("timestamptz", TimestamptzLoader),
    ):
        adapters.register_loader(name, type("Or" + own.__name__, (_OrText,), {"own": own}))
    for name, own in (("json", JsonLoader), ("jsonb", JsonbLoader)):
        adapters.register_loader(name, type("Or" + own.__name__, (_Json,), {"own": own}))
    ranges = [f"{name}{kind}" for name in _RANGES for kind in ("range", "multirange")]
    for name in (*_AS_TEXT, *ranges):
        info = postgres.types.get(name)
        for oid in (info.oid, info.array_oid) if info and name in ranges else (info.oid,) if info else ():
            adapters.register_loader(oid, TextLoader)
