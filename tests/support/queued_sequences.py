"""Random sequences of writes to a source that has a queue of changes, by sessions that overlap; and syncs of it."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, LiteralString

import psycopg
from psycopg import errors as pg
from psycopg import sql

Client = psycopg.Connection[tuple[Any, ...]]

SOURCE: LiteralString = (
    "CREATE TABLE paintings (id int PRIMARY KEY, title text, description text, author text, year int)"
)
PARTITIONED: LiteralString = (
    SOURCE
    + """ PARTITION BY RANGE (id);
    CREATE TABLE low PARTITION OF paintings FOR VALUES FROM (0) TO (1000);
    CREATE TABLE high PARTITION OF paintings FOR VALUES FROM (1000) TO (2000)"""
)

_ONE_TRIGGER: LiteralString = (
    "DO $$ DECLARE t record; BEGIN FOR t IN SELECT tgrelid::regclass AS of, tgname FROM pg_trigger"
    # Not of a partition that was detached: no run has to look at it.
    " WHERE tgname LIKE 'rowvec%' AND (tgrelid = 'paintings'::regclass"
    " OR tgrelid IN (SELECT inhrelid FROM pg_inherits WHERE inhparent = 'paintings'::regclass))"
    " ORDER BY random() LIMIT 1 LOOP EXECUTE format('{}', t.of, t.tgname); END LOOP; END $$"
)
_EACH_TRIGGER: LiteralString = _ONE_TRIGGER.replace(" ORDER BY random() LIMIT 1", "")
_EACH_QUEUE: LiteralString = (
    "DO $$ DECLARE t name; BEGIN FOR t IN SELECT relname FROM pg_class WHERE relname LIKE 'queue\\_%' LOOP"
    " EXECUTE format('{}', t); END LOOP; END $$"
)

# What a run cannot read from the queue: after each of them the next run must compare everything.
_BYPASSES: dict[str, LiteralString] = {
    "truncate": "TRUNCATE paintings",
    "disable a trigger": _ONE_TRIGGER.replace("{}", "ALTER TABLE %s DISABLE TRIGGER %I"),
    "disable and enable triggers": _EACH_TRIGGER.replace("{}", "ALTER TABLE %s DISABLE TRIGGER %I")
    + ";{write};"
    + _EACH_TRIGGER.replace("{}", "ALTER TABLE %s ENABLE ALWAYS TRIGGER %I"),
    "drop a trigger": _ONE_TRIGGER.replace("{}", "DROP TRIGGER %2$I ON %1$s"),
    "empty the queue": _EACH_QUEUE.replace("{}", "DELETE FROM rowvec_changes.%I"),
    "truncate the queue": _EACH_QUEUE.replace("{}", "TRUNCATE rowvec_changes.%I"),
    "drop the queue": _EACH_QUEUE.replace("{}", "DROP TABLE rowvec_changes.%I"),
    "drop the schema": "DROP SCHEMA IF EXISTS rowvec_changes CASCADE",
    "another name for a while": "ALTER TABLE paintings RENAME id TO number; UPDATE paintings SET year = 7"
    " WHERE number % 3 = 0; ALTER TABLE paintings RENAME number TO id",
    "a column made again": "ALTER TABLE paintings DROP author; ALTER TABLE paintings ADD author text DEFAULT 'new'",
    "detach": "ALTER TABLE paintings DETACH PARTITION high",
    "attach": "ALTER TABLE paintings ATTACH PARTITION high FOR VALUES FROM (1000) TO (2000)",
}
# A partition that is not there now, or is there already; entries that wait for a deferred trigger; other sessions.
_NOT_NOW = (
    pg.LockNotAvailable,
    pg.DeadlockDetected,
    pg.InFailedSqlTransaction,
    pg.UniqueViolation,
    pg.CheckViolation,
    pg.CardinalityViolation,
    pg.UndefinedTable,
    pg.UndefinedObject,
    pg.WrongObjectType,
    pg.InvalidTableDefinition,
    pg.ObjectInUse,
    pg.ObjectNotInPrerequisiteState,
)


@dataclass(slots=True)
class Writer:
    """A session of an application."""

    client: Client
    open: bool = False
    saved: int = 0
    """Savepoints of its transaction."""


@dataclass(slots=True)
class Writers:
    """Several sessions that write, and a superuser who changes the table and its triggers."""

    url: str
    chance: random.Random
    counts: Counter[str]
    partitioned: bool
    story: list[str] = field(default_factory=list[str])
    bypassed: bool = False
    """Whether something happened that the queue does not show, since this was set to False."""
    _writers: list[Writer] = field(default_factory=list[Writer])
    _prepared: list[str] = field(default_factory=list[str])
    _number: int = 0

    def begin(self) -> None:
        """Make the table and its first rows."""
        self._writers = [Writer(self._connect()) for _ in range(3)]
        first = self._writers[0]
        first.client.execute(PARTITIONED if self.partitioned else SOURCE)
        for _ in range(self.chance.randint(1, 8)):
            self._try(first, self._insert)

    def end(self) -> None:
        """Close all sessions."""
        for writer in self._writers:
            writer.client.close()

    def settle(self) -> None:
        """End all transactions, and those that were prepared."""
        for writer in self._writers:
            self._close(writer, self.chance.choice(("COMMIT", "ROLLBACK")))
        while self._prepared:
            self._resolve()

    @property
    def quiet(self) -> bool:
        """Whether no transaction is open or prepared."""
        return not self._prepared and not any(writer.open for writer in self._writers)

    def act(self) -> None:
        """Do one thing; one that would have to wait for a lock is left."""
        writer = self.chance.choice(self._writers)
        kinds: list[Callable[[Writer], None]] = [self._write] * 12 + [self._transact] * 6 + [self._bypass] * 2
        kinds += [self._replicate]
        self._try(writer, self.chance.choice(kinds))

    def _try(self, writer: Writer, kind: Callable[[Writer], None]) -> None:
        try:
            kind(writer)
        except _NOT_NOW as error:
            self.story[-1] += f" (not done: {type(error).__name__})"
            self.counts["not done"] += 1
            self._close(writer, "ROLLBACK")
            writer.client.execute("RESET session_replication_role")

    def _connect(self) -> Client:
        client = psycopg.connect(self.url, autocommit=True, prepare_threshold=None)
        client.execute("SET lock_timeout = '30ms'")
        return client

    def _close(self, writer: Writer, how: LiteralString) -> None:
        if writer.open:
            self._tell(how.lower(), writer)
            with suppress(psycopg.Error):
                writer.client.execute(how)
        writer.open, writer.saved = False, 0

    def _tell(self, what: str, writer: Writer) -> None:
        self.counts[what] += 1
        self.story.append(f"{self._writers.index(writer)}: {what}")

    def _transact(self, writer: Writer) -> None:
        if not writer.open:
            if self._prepared and self.chance.random() < 0.5:
                self._resolve()
                return
            self._tell("begin", writer)
            writer.client.execute("BEGIN")
            writer.open = True
            self._write(writer)
            return
        kind = self.chance.choice(("commit", "commit", "rollback", "savepoint", "rollback to savepoint", "prepare"))
        if kind == "rollback to savepoint" and not writer.saved:
            kind = "savepoint"
        if kind in ("commit", "rollback"):
            self._close(writer, "COMMIT" if kind == "commit" else "ROLLBACK")
            return
        self._tell(kind, writer)
        if kind == "savepoint":
            writer.client.execute("SAVEPOINT s")
            writer.saved += 1
        elif kind == "prepare":
            self._number += 1
            name = f"prepared_{id(self)}_{self._number}"
            writer.client.execute(sql.SQL("PREPARE TRANSACTION {}").format(sql.Literal(name)))
            writer.open, writer.saved = False, 0
            self._prepared.append(name)
        else:
            writer.client.execute("ROLLBACK TO SAVEPOINT s")

    def _resolve(self) -> None:
        writer = next((one for one in self._writers if not one.open), None)
        if writer is None:
            return
        how: LiteralString = self.chance.choice(("COMMIT PREPARED {}", "ROLLBACK PREPARED {}"))
        self._tell(how[:-3].lower(), writer)
        writer.client.execute(sql.SQL(how).format(sql.Literal(self._prepared.pop(0))))

    def _write(self, writer: Writer) -> None:
        kinds = [self._insert, self._update, self._update, self._describe, self._delete, self._key, self._copy]
        self.chance.choice([*kinds, self._upsert, self._merge])(writer)

    def _replicate(self, writer: Writer) -> None:
        self._tell("as a replica", writer)
        writer.client.execute("SET session_replication_role = replica")
        self._write(writer)
        writer.client.execute("RESET session_replication_role")

    def _bypass(self, writer: Writer) -> None:
        names = [name for name in _BYPASSES if self.partitioned or name not in ("attach", "detach")]
        name = self.chance.choice(names)
        self._close(writer, "COMMIT")
        self._tell(name, writer)
        statement = _BYPASSES[name].replace("{write}", "UPDATE paintings SET year = 8 WHERE id % 2 = 0")
        with writer.client.transaction():
            writer.client.execute(statement)
        self.bypassed = True

    def _insert(self, writer: Writer) -> None:
        self._put(writer, "insert", "ON CONFLICT DO NOTHING")

    def _upsert(self, writer: Writer) -> None:
        self._put(writer, "upsert", "ON CONFLICT (id) DO UPDATE SET title = excluded.title, year = excluded.year")

    def _put(self, writer: Writer, what: str, on_conflict: LiteralString) -> None:
        values = sql.SQL("INSERT INTO {} (id, title, description, author, year) VALUES {} ").format(
            self._table(), self._values()
        )
        self._do(writer, what, values + sql.SQL(on_conflict))

    def _merge(self, writer: Writer) -> None:
        statement = sql.SQL(
            "MERGE INTO paintings AS p USING (VALUES {}) AS n (id, title, description, author, year) ON p.id = n.id"
            " WHEN MATCHED AND p.id % 3 = 0 THEN DELETE WHEN MATCHED THEN UPDATE SET title = n.title"
            " WHEN NOT MATCHED THEN INSERT (id, title, description, author, year)"
            " VALUES (n.id, n.title, n.description, n.author, n.year)"
        )
        self._do(writer, "merge", statement.format(self._values()))

    def _copy(self, writer: Writer) -> None:
        self._tell("copy", writer)
        with (
            writer.client.cursor() as cursor,
            cursor.copy("COPY paintings (id, title, description, author, year) FROM STDIN") as copy,
        ):
            for row in self._rows():
                copy.write_row(row)

    def _update(self, writer: Writer) -> None:
        self._number += 1
        statement = sql.SQL("UPDATE {} SET title = {} WHERE id = ANY ({})")
        title = self.chance.choice((None, "", "red", f"Title {self._number}"))
        self._do(writer, "update", statement.format(self._table(), sql.Literal(title), sql.Literal(self._ids())))

    def _describe(self, writer: Writer) -> None:
        self._number += 1
        statement = sql.SQL("UPDATE paintings SET year = {}, author = 'Kahlo' WHERE id = ANY ({})")
        self._do(writer, "update metadata", statement.format(sql.Literal(self._number), sql.Literal(self._ids())))

    def _delete(self, writer: Writer) -> None:
        statement = sql.SQL("DELETE FROM {} WHERE id = ANY ({})")
        self._do(writer, "delete", statement.format(self._table(), sql.Literal(self._ids())))

    def _key(self, writer: Writer) -> None:
        old, new = self._ids()[0], self._ids()[0]
        statement = sql.SQL("UPDATE paintings SET id = {} WHERE id = {}")
        self._do(writer, "change a key", statement.format(sql.Literal(new), sql.Literal(old)))

    def _do(self, writer: Writer, what: str, statement: sql.Composed) -> None:
        self._tell(what, writer)
        self.story[-1] += f": {statement.as_string(None)}"
        writer.client.execute(statement)

    def _ids(self) -> list[int]:
        first = 1000 if self.partitioned and self.chance.random() < 0.4 else 1
        return [self.chance.randint(first, first + 25) for _ in range(self.chance.randint(1, 4))]

    def _rows(self) -> list[tuple[object, ...]]:
        rows: list[tuple[object, ...]] = []
        for id_ in dict.fromkeys(self._ids()):
            self._number += 1
            title = self.chance.choice((None, "", "red", "green", f"Painting {self._number}"))
            rows.append((id_, title, self.chance.choice((None, "of the sea")), "Klee", self._number))
        return rows

    def _values(self) -> sql.Composed:
        rows = [sql.SQL("({}, {}::text, {}::text, {}, {})").format(*map(sql.Literal, row)) for row in self._rows()]
        return sql.SQL(", ").join(rows)

    def _table(self) -> sql.Identifier:
        """The table, or a partition of it, which an application may name too."""
        return sql.Identifier("low" if self.partitioned and self.chance.random() < 0.2 else "paintings")
