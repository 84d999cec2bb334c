"""A session on a Postgres server that leaves nothing of its own behind: all it sets ends with its transaction."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cache
from typing import Any, LiteralString, Self, TypeVar, cast

import psycopg
from psycopg import errors as pg
from psycopg import sql
from psycopg.abc import Params, PQGen, QueryNoTemplate
from psycopg.pq import TransactionStatus
from psycopg.rows import Row

from rowvec.errors import TargetError
from rowvec.postgres.names import Names, ScratchTable
from rowvec.postgres.queries import query
from rowvec.postgres.settings import statements

# A process that is stopped, or cut off from the server, in a transaction must not keep what it has locked. Only a
# transaction in which the client computes for long may be idle for longer.
_SHORT_PAUSE = {"idle_in_transaction_session_timeout": "20s"}

# A role may have a statement_timeout or a transaction_timeout of a millisecond, the least there is. On a busy machine
# it is over before our own limits hold, and at the next try it is not.
_PATIENCE_SECONDS = 30.0

# As psycopg's own: how often a wait looks for signals, and how long it waits for a statement that it has cancelled.
_WAIT_INTERVAL = 0.1
_CANCEL_SECONDS = 5.0

RV = TypeVar("RV")


class _Cursor(psycopg.Cursor[Row]):
    """A cursor whose statements outside a transaction get one of their own, with our settings."""

    def execute(self, *args: Any, **kwargs: Any) -> Self:
        """As psycopg's."""
        with _settled(self.connection):
            return super().execute(*args, **kwargs)

    def executemany(self, *args: Any, **kwargs: Any) -> None:
        """As psycopg's."""
        with _settled(self.connection):
            super().executemany(*args, **kwargs)

    @contextmanager
    def copy(self, *args: Any, **kwargs: Any) -> Generator[psycopg.Copy]:
        """As psycopg's."""
        with _settled(self.connection), super().copy(*args, **kwargs) as copy:
            yield copy


class Connection(psycopg.Connection[tuple[Any, ...]]):
    """A connection in autocommit mode whose every statement is in a transaction that makes our settings first.

    A pooler in transaction mode gives the server's session to other clients between two transactions, so nothing
    stays in it: no setting, no lock, no temporary table, no prepared statement. If the session ended between two
    transactions, because it was idle for too long or because the server was restarted, the next one opens another.
    """

    names = Names()
    names_scratch = False
    _has_scratch = False
    _in_transaction = False
    _own_path: Sequence[str] = ()
    _pooled: bool | None = None
    before_commit: Callable[[Connection], None] | None = None
    """What each transaction that is not a savepoint calls just before it commits; what it raises rolls back."""
    open_direct: Callable[[], Connection] | None = None
    """Opens a session on the same server without the pooler, if the pipeline says how; for ``directly``."""

    def wait(self, gen: PQGen[RV], interval: float = _WAIT_INTERVAL, timeout: float | None = None) -> RV:
        """As psycopg, which cancels a statement that Ctrl-C interrupts; here every signal that is raised cancels it.

        Otherwise the statement would go on in the server, and hold its locks, after an orchestrator has ended a run.
        """
        try:
            return super().wait(gen, interval, timeout)
        except (Exception, KeyboardInterrupt, SystemExit):
            raise
        except BaseException:
            if self.pgconn.transaction_status == TransactionStatus.ACTIVE:
                with suppress(psycopg.Error):
                    self.cancel_safe(timeout=_CANCEL_SECONDS)
                    super().wait(gen, interval, _CANCEL_SECONDS)
            raise

    def settle(self, application: str, limits: Mapping[str, str]) -> None:
        """Read the names of the database, and settle how transactions begin; for ``connect``."""
        self._application, self._limits = application, dict(limits)
        self.cursor_factory = _Cursor
        self._begin_with(Names())
        with self.transaction():
            self._own_path, now = self._first(query("session", "own_path"))
            self.names = Names(scratch=f"{now}_{secrets.token_hex(4)}")
            self.read_names()

    def settle_again(self, application: str, limits: Mapping[str, str]) -> None:
        """As ``settle``, for a connection that was kept: the names are those that it has read."""
        self._application, self._limits = application, dict(limits)
        self._begin_with(self.names)

    @property
    def is_at_rest(self) -> bool:
        """Whether the session could serve another user: it is there, and in no transaction."""
        return self.info.transaction_status == TransactionStatus.IDLE and not self._in_transaction

    def read_names(self) -> None:
        """Read what names stand for, as the role has just connected, or after an extension was installed."""
        own = self._own_path
        ((found, pgvector, types),) = self.execute(query("session", "names"), {"path": own}).fetchall()
        # Unnamed, pg_catalog is searched before all of them, and temporary tables, which are our own, before it.
        path = ", ".join(found) or "pg_catalog"
        self._begin_with(
            replace(self.names, pgvector=pgvector, types=types, path=path, creation=own[0] if own else None)
        )

    @property
    def is_pooled(self) -> bool:
        """Whether a pooler stands between us and the server: the server's process is not the one that we were told."""
        pooled = self._pooled
        if pooled is None:
            (pid,) = self.execute(sql.SQL("SELECT pg_catalog.pg_backend_pid()")).fetchone() or (None,)
            pooled = self._pooled = bool(pid != self.info.backend_pid)
        return pooled

    @contextmanager
    def directly(self) -> Generator[Connection]:
        """A session for what a pooler does not allow: this one if there is no pooler, or no other way to the server.

        Raises ``TargetError`` if the other way leads to another database.
        """
        if self.open_direct is None or not self.is_pooled:
            yield self
            return
        with self.open_direct() as direct:
            here, there = (each.execute(query("session", "place")).fetchone() for each in (self, direct))
            if here != there:
                raise TargetError(
                    "target.direct_url leads to another database than target.url: name the same database, without "
                    "the pooler"
                )
            direct.before_commit = self.before_commit
            yield direct

    def cursor(self, *args: Any, **kwargs: Any) -> Any:
        """As psycopg's; a session that ended between two transactions is opened again."""
        if self.closed and not self._closed:
            if self._in_transaction:
                raise psycopg.OperationalError("the connection was lost in the middle of a transaction")
            self._reopen()
        return super().cursor(*args, **kwargs)

    @contextmanager
    def transaction(
        self, savepoint_name: str | None = None, force_rollback: bool = False, *, alone: bool = False
    ) -> Generator[psycopg.Transaction]:
        """A transaction with our settings; inside another one, a savepoint. ``alone``: for one statement."""
        if _is_open(self):
            with super().transaction(savepoint_name, force_rollback) as inner:
                yield inner
            return
        if self._in_transaction:
            # What it has done so far is rolled back, so nothing more of it may be done in another session.
            raise psycopg.OperationalError("the connection was lost in the middle of a transaction")
        # psycopg counts a savepoint that could not begin, because the connection was lost, as open for ever.
        self._num_transactions = 0
        self._begin(self._beginning_alone if alone else self._beginning)
        self._in_transaction = True
        try:
            yield psycopg.Transaction(self)
            marks_scratch = self.names_scratch and not force_rollback
            if marks_scratch:
                self._guard_scratch()
            if self.before_commit and not force_rollback:
                self.before_commit(self)
        except (psycopg.InternalError, ValueError) as error:
            # psycopg may get two results where it expects one: that the server ends the session, and that it is gone.
            if not self.closed:
                with suppress(psycopg.Error):
                    self._plain("ROLLBACK")
                raise
            raise psycopg.OperationalError("the server has ended the session in the middle of a transaction") from error
        except BaseException:
            # The server rolls back by itself if the connection is lost.
            with suppress(psycopg.Error):
                self._plain("ROLLBACK")
            raise
        finally:
            self._in_transaction = self.names_scratch = False
        ended = self._plain("ROLLBACK" if force_rollback else "COMMIT")
        if not force_rollback and ended.statusmessage != "COMMIT":
            raise pg.InFailedSqlTransaction("the transaction was rolled back: a statement in it had failed")
        self._has_scratch |= marks_scratch

    @contextmanager
    def types_with_schemas(self) -> Generator[None]:
        """Within this context the server writes each type with its schema, unless it is one of its own."""
        path = sql.SQL("SET LOCAL search_path = ")
        with self.transaction():
            self._plain(path + sql.SQL("pg_catalog"))
            yield
            self._plain(path + sql.SQL(cast("LiteralString", self.names.path)))

    def keep_rows(self, name: str, select: sql.Composable) -> None:
        """Keep the rows of a SELECT in the scratch table ``name``, for ``kept_rows``."""
        table = ScratchTable(name)
        self.execute(query("session", "drop_scratch", table=table))
        self.execute(query("session", "keep_rows", table=table, select=select))

    def kept_rows(self, name: str, rows: int) -> Generator[list[tuple[Any, ...]]]:
        """The rows that ``keep_rows`` has kept, ``rows`` at a time and in binary; then the scratch table is dropped.

        Between two pages no transaction is open, and no cursor, which would belong to a session.
        """
        table, last = ScratchTable(name), "(0,0)"
        while True:
            page = query("session", "kept_rows", table=table, last=sql.Literal(last), rows=sql.Literal(rows))
            with self.transaction():
                self.execute(query("session", "in_order"))
                found = self.execute(page, binary=True).fetchall()
            if not found:
                break
            last = found[-1][0]
            yield [row[1:] for row in found]
        self.execute(query("session", "drop_scratch", table=table))

    def end_session(self) -> None:
        """Drop the connection's scratch tables, and those that killed processes left a week ago."""
        self.before_commit = self.open_direct = None
        if self._has_scratch and not self.closed:
            self._has_scratch = False
            # What cannot be dropped now is dropped a week later.
            with suppress(psycopg.Error), self.transaction():
                found = query("session", "scratch_tables", scratch=sql.Literal(self.names.scratch))
                for (name,) in self.execute(found).fetchall():
                    self.execute(query("session", "drop_scratch", table=sql.Identifier("rowvec", name)))

    def close(self) -> None:
        """End the session and close the connection."""
        self.end_session()
        super().close()

    def _guard_scratch(self) -> None:
        """At the end of a transaction that names scratch tables: see that no row of an earlier one is lost.

        The marker is a scratch table with one row. What empties the others empties it too, and nothing but that.
        """
        marker = ScratchTable("marker")
        if not self._has_scratch:
            self._plain(query("session", "mark_scratch", marker=marker))
            return
        try:
            there = self._first(query("session", "scratch_is_there", marker=marker))
        except pg.UndefinedTable:
            there = ()
        if not there:
            raise psycopg.OperationalError(
                "the server has crashed or a standby has taken over, and the tables that this command works with are "
                "empty"
            )

    def execute_alone(self, statement: QueryNoTemplate, settings: Mapping[str, str]) -> None:
        """Execute a statement that the server allows in no transaction, and make these settings for it.

        Through a pooler no settings can be made for it, because they would stay in a session that others get: the
        role's own hold, its path too. So the statement's names, those of functions and types as well, must have their
        schemas.
        """
        if self.before_commit:
            with self.transaction():
                # With a number of its own the transaction counts as one that writes.
                self._plain("SELECT pg_catalog.pg_current_xact_id()")
        if self.is_pooled:
            self._plain(statement)
            return
        named = {"application_name": self._application}
        made = {**dict(statements(self.info.server_version, self._limits)), **named, **settings}
        change = sql.SQL("SELECT set_config(name, value, false) FROM unnest(%s::text[], %s::text[]) AS s (name, value)")
        with self.transaction():
            self._plain(change, (list(made), list(made.values())))
            self._plain(sql.SQL("SET search_path = pg_catalog"))
        try:
            self._plain(statement)
        finally:
            if not self.closed:
                self._plain("RESET ALL")

    def pause_for_long(self) -> None:
        """Let the client compute for as long as it takes between two statements of this transaction."""
        self._plain("SET LOCAL idle_in_transaction_session_timeout = 0")

    def _begin(self, beginning: bytes) -> None:
        end, reopened = time.monotonic() + _PATIENCE_SECONDS, False
        while True:
            try:
                self._plain(beginning)
            except (pg.QueryCanceled, pg.TransactionTimeout) as error:
                if time.monotonic() > end:
                    limit = "transaction_timeout" if isinstance(error, pg.TransactionTimeout) else "statement_timeout"
                    raise psycopg.OperationalError(
                        f"{limit} of the role or the database is so short that no transaction begins; raise it"
                    ) from error
                # With both limits over, the server cancels the statement, and then ends the session.
                with suppress(psycopg.OperationalError):
                    self._plain("ROLLBACK")
                if self.closed:
                    self._reopen()
            except psycopg.OperationalError:
                # Nothing was done in the transaction that did not begin, so it may begin in another session.
                if reopened or not self.closed:
                    raise
                reopened = True
                self._reopen()
            else:
                return

    def _reopen(self) -> None:
        self.pgconn.reset()
        if self.closed:
            raise psycopg.OperationalError(self.pgconn.get_error_message())
        self.pgconn.nonblocking = 1

    def _begin_with(self, names: Names) -> None:
        self.names = names
        self._beginning, self._beginning_alone = (
            _beginning(self.info.server_version, names.path, self._application, tuple(limits.items()))
            for limits in (self._limits, {**_SHORT_PAUSE, **self._limits})
        )

    def _plain(self, statement: QueryNoTemplate, params: Params | None = None) -> psycopg.Cursor[tuple[Any, ...]]:
        """Execute without a transaction of ours around it."""
        return psycopg.Cursor(self).execute(statement, params)

    def _first(self, statement: QueryNoTemplate, params: Params | None = None) -> tuple[Any, ...]:
        return self._plain(statement, params).fetchone() or ()


@cache
def _beginning(version: int, path: str | None, application: str, limits: tuple[tuple[str, str], ...]) -> bytes:
    """The message that begins a transaction with our settings."""
    parts: list[sql.Composable] = [sql.SQL("BEGIN ISOLATION LEVEL READ COMMITTED")]
    for name, value in [*statements(version, dict(limits)), ("application_name", application)]:
        parts.append(sql.SQL("SET LOCAL {} = {}").format(sql.Identifier(name), sql.Literal(value)))
    if path is not None:
        # The server itself has quoted the schemas.
        parts.append(sql.SQL("SET LOCAL search_path = " + cast("LiteralString", path)))
    return sql.SQL("; ").join(parts).as_bytes()


def _is_open(connection: psycopg.Connection[Any]) -> bool:
    """Whether the server has a transaction open for this connection."""
    return connection.info.transaction_status in (TransactionStatus.INTRANS, TransactionStatus.INERROR)


@contextmanager
def _settled(connection: psycopg.Connection[Any]) -> Generator[None]:
    if isinstance(connection, Connection) and not _is_open(connection):
        with connection.transaction(alone=True):
            yield
    else:
        yield
