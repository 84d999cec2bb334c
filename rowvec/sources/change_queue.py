"""The queue of changed keys in the source's database: triggers write it, and a run reads it instead of the whole table.

The triggers fire once per statement and write only keys and the transaction's number. They run with the rights of the
role that installed them, and they can never fail an application's statement: docs/decisions/0024.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, LiteralString

from psycopg import errors as pg
from psycopg import sql
from psycopg.types.json import Jsonb

from rowvec.errors import SourceError
from rowvec.pipeline import Pipeline
from rowvec.pipeline.parts import table_identifier
from rowvec.pipeline.sources import Changes, PostgresSource
from rowvec.postgres.columns import PgColumn
from rowvec.postgres.connection import Connection, without_blocking
from rowvec.postgres.fragments import definitions, key_json, names, same_key
from rowvec.postgres.queries import query
from rowvec.sources.postgres import columns_of_content

SCHEMA = "rowvec_changes"

_EVENTS: dict[LiteralString, LiteralString] = {
    "INSERT": "REFERENCING NEW TABLE AS rowvec_new",
    "UPDATE": "REFERENCING OLD TABLE AS rowvec_old NEW TABLE AS rowvec_new",
    "DELETE": "REFERENCING OLD TABLE AS rowvec_old",
    "TRUNCATE": "",
}


# Statements that change the rows of such a table fire no trigger of it.
_REFUSED = {
    "foreign": "is a view, or has a foreign table among its partitions; these have no triggers of a statement",
    "subscribed": "is written by a subscription; replication fires no trigger of a statement",
    "part": "is a partition or a child of another table; a statement that names that one fires no trigger here",
}
_DOUBTS = {
    "unlogged": "the source's table is not logged, so a crash of the server empties it and fires no trigger",
    "restricted": "policies decide which rows of the source the role is shown, and may do so by other tables",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a run by the queue relies on, as it is now."""

    values: dict[str, Any]
    """By name; a run compares everything if one of them is not what the last run found."""
    complete: bool
    """Whether the queue and its function are there as this version makes them, and each table has its triggers."""
    doubt: str | None
    """Why no run can rely on the queue, as long as it is so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Marks:
    """What the queue says besides its keys, in one snapshot."""

    truncated: bool
    other_life: bool
    """Whether an entry is older than this life of the database."""
    snapshot: str
    """As ``pg_snapshot`` writes it."""
    oldest: int
    """The number of the oldest transaction that is open in the snapshot."""
    present: int
    """The number of this transaction: that of each one that could not queue something before ``facts`` is smaller."""


def untyped(key: Iterable[str]) -> tuple[PgColumn, ...]:
    """The key of a queue that is only looked at: the types of its columns do not matter then."""
    return tuple(PgColumn(name, "") for name in key)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeQueue:
    """The queue of one pipeline over one table."""

    name: str
    """Sixteen hexadecimal digits, in the names of all its parts."""
    table: sql.Identifier
    shown: str
    """The table's name for sentences."""
    key: tuple[PgColumn, ...]
    read: tuple[str, ...]
    """The columns that a row's vector and metadata are made of."""
    changes: Changes

    @staticmethod
    def of(
        pipeline: Pipeline, source: PostgresSource, key: tuple[PgColumn, ...], ledger: str | None = None
    ) -> ChangeQueue:
        """The queue of a pipeline, whether it is installed or not.

        ``ledger``: the id of the ledger, if it is in another database than the source, where others may have a pipeline
        of this name.
        """
        # A query has no queue, but the pipeline may have had one when it read a table: that is dropped by its own name.
        table = source.table or ""
        words = "\0".join((pipeline.name, pipeline.target.table, *([ledger] if ledger else [])))
        return ChangeQueue(
            name=hashlib.sha256(words.encode()).hexdigest()[:16],
            table=sql.Identifier(*(table_identifier(table) if table else ("",))),
            shown=table or "the table that the pipeline read before",
            key=key,
            read=tuple(dict.fromkeys((*source.key, *source.metadata, *columns_of_content(pipeline, source)))),
            changes=source.changes,
        )

    def facts(self, connection: Connection, of_run: dict[str, Any]) -> Facts:
        """What is there now; ``of_run`` is added to the values.

        Raises ``SourceError`` if statements can change the table's rows and fire none of the triggers.
        """
        found = self._found(connection, self._facts(connection, of_run))
        return found or Facts(values={}, complete=False, doubt=None)

    def facts_if_empty(self, connection: Connection, of_run: dict[str, Any]) -> Facts | None:
        """``facts``, if the queue is there and nothing waits in it, as one statement sees both. Raises as ``facts``."""
        statement = query("changes", "facts_if_empty", facts=self._facts(connection, of_run), **self._queue)
        try:
            return self._found(connection, statement)
        except (pg.UndefinedTable, pg.InvalidSchemaName):
            return None

    def _facts(self, connection: Connection, of_run: dict[str, Any]) -> sql.Composed:
        parts = {
            "table": self._literal(self.table, connection),
            "pattern": sql.Literal(f"rowvec_{self.name}_%"),
            "function": sql.Literal(f"{SCHEMA}.note_{self.name}"),
            "queue": sql.Literal(f"{SCHEMA}.queue_{self.name}"),
            "failures": sql.Literal(f"{SCHEMA}.failures_{self.name}"),
            "mark": self._mark,
            "body": sql.Literal(self._body.as_string(connection)),
            "guard_body": sql.Literal(self._guard_body.as_string(connection)),
            "key": sql.Literal([column.name for column in self.key]),
            "read": sql.Literal(list(self.read)),
            "of_run": sql.Literal(Jsonb(of_run)),
        }
        return query("changes", "facts", **parts)

    def _found(self, connection: Connection, statement: sql.Composed) -> Facts | None:
        try:
            found = connection.execute(statement).fetchone()
        except pg.InsufficientPrivilege as error:
            raise self._refused(error) from error
        if found is None:
            return None
        values, complete, refused, doubt = found
        if refused:
            raise SourceError(
                f"source.changes.by is trigger, and {self.shown} {_REFUSED[refused]}: "
                f"{'name that table, or ' if refused == 'part' else ''}set source.changes.by to compare"
            )
        return Facts(values=values, complete=complete, doubt=doubt and _DOUBTS[doubt])

    def install(self, connection: Connection) -> None:
        """Make the queue and its triggers, or what is missing of them; waits for writers of the table.

        Raises ``SourceError`` with what to do if the role may not do this.
        """

        def attempt() -> None:
            with connection.transaction():
                connection.execute(query("changes", "patience"))
                for statement in self.statements(connection):
                    connection.execute(statement)

        try:
            without_blocking(attempt)
        except pg.InsufficientPrivilege as error:
            raise self._refused(error) from error

    def grants(self, connection: Connection) -> list[sql.Composed]:
        """What the session's role needs on the queue if another role installs it."""
        parts = {name: self._names[name] for name in ("queue", "failures", "mark")}
        return [query("changes", "grants", role=sql.Identifier(connection.info.user), **parts)]

    def _refused(self, error: pg.InsufficientPrivilege) -> SourceError:
        return SourceError(
            f"the triggers for source.changes cannot be installed on {self.shown} ({error.diag.message_primary}); let "
            "its owner run what `rowvec changes FILE --sql` prints, or set source.changes.by to compare"
        )

    def remove(self, connection: Connection) -> None:
        """Drop the triggers and the queue; waits for readers and writers of the table.

        Raises ``SourceError`` if the role may not do this.
        """

        def attempt() -> None:
            with connection.transaction():
                connection.execute(query("changes", "patience"))
                connection.execute(query("changes", "drop", **self._names))

        try:
            without_blocking(attempt)
        except pg.InsufficientPrivilege as error:
            raise SourceError(
                f"the queue of changes of {self.shown} cannot be removed ({error.diag.message_primary}); let the owner "
                "of the table run rowvec changes FILE --remove"
            ) from error

    def statements(self, connection: Connection) -> list[sql.Composed]:
        """What ``install`` executes, in order."""
        comment = f"Keys of {self.shown} that changed since the last run of rowvec; filled by triggers."
        made = [
            query("changes", "lock", table=self.table),
            query(
                "changes",
                "queue",
                columns=definitions(self.key),
                comment=sql.Literal(comment),
                **{name: self._names[name] for name in ("queue", "failures", "mark")},
            ),
            query(
                "changes",
                "guard",
                guard=self._names["guard"],
                queue=self._names["queue"],
                body=sql.Literal(self._guard_body.as_string(connection)),
            ),
            query(
                "changes",
                "function",
                function=self._names["function"],
                body=sql.Literal(self._body.as_string(connection)),
            ),
        ]
        has_schema = connection.execute(query("changes", "has_schema")).fetchone()
        if has_schema != (True,):
            made.insert(0, query("changes", "schema"))
        for table in self._tree(connection):
            made.extend(
                query(
                    "changes",
                    "trigger",
                    name=self._trigger(event),
                    table=table,
                    event=sql.SQL(event),
                    referencing=sql.SQL(referencing),
                    function=self._names["function"],
                )
                for event, referencing in _EVENTS.items()
            )
        return made

    def any_entry(self, connection: Connection) -> bool:
        """Whether anything is queued."""
        return connection.execute(query("changes", "any_entry", **self._queue)).fetchone() == (True,)

    def waiting(self, connection: Connection) -> tuple[int, datetime | None, float | None]:
        """The number of entries, when the oldest of them was written, and how many seconds ago."""
        return connection.execute(query("changes", "waiting", **self._queue)).fetchone() or (0, None, None)

    def marks(self, connection: Connection) -> Marks:
        """What the queue says besides its keys; call it after ``facts``."""
        found = connection.execute(query("changes", "marks", whole_key=self._whole_key, **self._queue)).fetchone()
        truncated, other_life, snapshot, oldest, present = found or (True, True, "", "0", "0")
        return Marks(
            truncated=truncated, other_life=other_life, snapshot=snapshot, oldest=int(oldest), present=int(present)
        )

    def make_scope(self, connection: Connection, scope: sql.Identifier, pipeline_id: sql.Literal) -> int:
        """Make the table ``scope`` of the keys that this snapshot sees in the queue; returns their number.

        The keys of rejected rows that each run tries again are among them.
        """
        key = names(self.key)
        connection.execute(query("changes", "scope", scope=scope, key=key, whole_key=self._whole_key, **self._queue))
        connection.execute(query("changes", "index_scope", scope=scope, key=key))
        typed = sql.SQL(", ").join(
            sql.SQL("(r.key ->> {})::{}").format(sql.Literal(number), column.type_sql)
            for number, column in enumerate(self.key)
        )
        connection.execute(query("changes", "add_retried", scope=scope, key=key, typed=typed, pipeline_id=pipeline_id))
        connection.execute(query("changes", "analyze_scope", scope=scope))
        counted = connection.execute(query("changes", "count_scope", scope=scope)).fetchone()
        return counted[0] if counted else 0

    def keys(self, others: list[list[str]]) -> sql.Composed:
        """A SELECT in parentheses: the queued keys that a snapshot sees, and ``others``, as lists of texts."""
        texts = sql.SQL(", ").join(
            sql.SQL("{}::text[]").format(sql.Literal([key[number] for key in others]))
            for number in range(len(self.key))
        )
        typed = sql.SQL(", ").join(sql.SQL("o.{}::{}").format(sql.Identifier(c.name), c.type_sql) for c in self.key)
        parts = {"key": names(self.key), "typed": typed, "texts": texts, "whole_key": self._whole_key}
        return query("changes", "keys", **parts, **self._queue)

    def set_mark(self, connection: Connection, mark: int) -> None:
        """Leave in the source's database which merge has read the queue last."""
        connection.execute(query("changes", "set_mark", mark=self._mark, value=sql.Literal(mark)))

    def missed(self, connection: Connection, scope: sql.Identifier, diff: sql.Identifier) -> list[str]:
        """The keys in ``diff`` that are not in the scope."""
        parts = {"same_key": same_key(self.key, "s", "d"), "key_json": key_json(self.key, "d")}
        statement = query("changes", "missed", scope=scope, diff=diff, **parts)
        return [key for (key,) in connection.execute(statement).fetchall()]

    def remove_seen(self, connection: Connection, snapshot: str, *, whole: bool) -> None:
        """Delete the entries that the snapshot has seen; ``whole``: and those of another life of the database."""
        connection.execute(query("changes", "removes"))
        connection.execute(
            query("changes", "remove", snapshot=sql.Literal(snapshot), whole=sql.Literal(whole), **self._queue)
        )

    @property
    def table_name(self) -> str:
        """The name of the queue's table in the schema ``rowvec_changes``."""
        return f"queue_{self.name}"

    @property
    def _body(self) -> sql.Composed:
        return query("changes", "body", key=names(self.key), failures=self._failures, queue=self._names["queue"])

    @property
    def _guard_body(self) -> sql.Composed:
        return query("changes", "guard_body", failures=self._failures)

    @property
    def _names(self) -> dict[str, sql.Composable]:
        return {
            "queue": sql.Identifier(self.table_name),
            "function": sql.Identifier(f"note_{self.name}"),
            "failures": sql.Identifier(f"failures_{self.name}"),
            "guard": sql.Identifier(f"guard_{self.name}"),
            "mark": sql.Identifier(f"mark_{self.name}"),
        }

    @property
    def _queue(self) -> dict[str, sql.Composable]:
        return {"queue": self._names["queue"]}

    @property
    def _failures(self) -> sql.Literal:
        return sql.Literal(f"{SCHEMA}.failures_{self.name}")

    @property
    def _mark(self) -> sql.Literal:
        return sql.Literal(f"{SCHEMA}.mark_{self.name}")

    @property
    def _whole_key(self) -> sql.Composed:
        return sql.SQL(" AND ").join(
            sql.SQL("q.{} IS NOT NULL").format(sql.Identifier(column.name)) for column in self.key
        )

    def _trigger(self, event: str) -> sql.Identifier:
        return sql.Identifier(f"rowvec_{self.name}_{event.lower()}")

    def _literal(self, identifier: sql.Identifier, connection: Connection) -> sql.Literal:
        return sql.Literal(identifier.as_string(connection))

    def _tree(self, connection: Connection) -> Iterable[sql.Identifier]:
        statement = query("changes", "tree", table=self._literal(self.table, connection))
        return [sql.Identifier(schema, name) for schema, name in connection.execute(statement).fetchall()]
