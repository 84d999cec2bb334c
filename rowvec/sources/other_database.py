"""A Postgres source in another database than the target's: that database renders and hashes the rows."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import cast

import numpy as np
import psycopg
import pyarrow as pa
from psycopg import sql

from rowvec.errors import DatabaseUnavailable, RejectReason, RowError, SourceError, TargetError
from rowvec.pipeline import Pipeline
from rowvec.pipeline.sources import PostgresSource
from rowvec.postgres.columns import PgColumn
from rowvec.postgres.connection import Connection, connect
from rowvec.postgres.fragments import as_sent, key_digest, key_json, names
from rowvec.postgres.queries import query
from rowvec.sources.diff import Block, Changes, Words
from rowvec.sources.hash_stream import copied_pairs, unpack_digests
from rowvec.sources.postgres import SourceQuery, describe
from rowvec.sources.protocol import ACTIONS, Action, Reject, SeenImage, row_schema
from rowvec.vectors.fingerprint import Digested

# Digests in one statement, which is 9 MB. Each statement hashes the whole source again, as no index has the digests.
_DIGESTS_AT_ONCE = 250_000
# Rows fetched at once: a few megabytes of text.
_FETCH_ROWS = 2048


class RemoteSource:
    """See ``HashedSource``. Memory: 16 bytes per row that changed, and some thousand rows."""

    def __init__(self, connection: Connection, source: PostgresSource, described: SourceQuery) -> None:
        self._connection, self._source, self._described = connection, source, described
        self._digest = key_digest(described.key)
        self._marked: dict[Action, list[Words]] = {action: [] for action in ACTIONS}
        self._all_new = True

    @property
    def connection(self) -> Connection:
        """To the source's database; in the transaction whose snapshot is read."""
        return self._connection

    @property
    def described(self) -> SourceQuery:
        """What is read."""
        return self._described

    def narrow(self, keys: sql.Composable) -> None:
        """Read only the rows whose keys are in ``keys``, a SELECT in parentheses; call it before anything is read."""
        with source_errors():
            self._connection.execute(query("other_database", "by_index"))
        self._described = self._described.within(keys)

    @property
    def key(self) -> tuple[PgColumn, ...]:
        """See ``HashedSource``."""
        return self._described.key

    @property
    def metadata(self) -> tuple[PgColumn, ...]:
        """See ``HashedSource``."""
        return self._described.metadata

    @property
    def blank(self) -> int:
        """See ``HashedSource``."""
        with source_errors():
            row = self._connection.execute(
                query("other_database", "count_blank", blank=self._described.blank)
            ).fetchone()
        return row[0] if row else 0

    def pairs(self) -> Iterator[Block]:
        """See ``HashedSource``."""
        pairs = query("other_database", "pairs", digest=self._digest, rows=self._described.rows)
        with source_errors():
            yield from copied_pairs(self._connection, pairs)

    def mark(self, changes: Changes) -> None:
        """See ``HashedSource``."""
        for action, rows in zip(ACTIONS, (changes.new, changes.changed, changes.metadata_only), strict=True):
            if len(rows):
                self._marked[action].append(rows.digest)
        self._all_new &= not (len(changes.changed) or len(changes.metadata_only) or changes.unchanged)

    def rows(self) -> Iterator[pa.RecordBatch]:
        """See ``HashedSource``."""
        for action, marked in self._marked.items():
            if not marked:
                continue
            if self._all_new:
                yield from self._fetch(action, None)
                continue
            digests = np.concatenate(marked)
            for start in range(0, len(digests), _DIGESTS_AT_ONCE):
                yield from self._fetch(action, unpack_digests(digests[start : start + _DIGESTS_AT_ONCE]))

    def images(self, *, everything: bool = False) -> Iterator[list[SeenImage]]:
        """See ``HashedSource``: a database has texts."""
        return iter(())

    def rejects(self) -> Iterator[Reject]:
        """See ``HashedSource``."""
        described = self._described
        parts = {"key_json": key_json(described.key), "relation": described.relation, "key": names(described.key)}
        if not described.unique:
            is_null = sql.SQL(" OR ").join(sql.SQL("{} IS NULL").format(sql.Identifier(c.name)) for c in described.key)
            yield from self._listed(query("other_database", "bad_keys", key_is_null=is_null, **parts))
        if described.unreadable is not None:
            yield from self._listed(query("other_database", "unreadable_keys", unreadable=described.unreadable))
        if self._source.empty == "reject":
            blank = query("other_database", "blank_keys", key_json=parts["key_json"], blank=described.blank)
            yield from self._listed(blank)

    def _listed(self, statement: sql.Composed) -> Iterator[Reject]:
        for key, reason, detail in self._read(statement):
            yield cast("str", key), RowError(cast("RejectReason", reason), cast("str", detail))

    def _fetch(self, action: Action, digests: list[bytes] | None) -> Iterator[pa.RecordBatch]:
        schema = row_schema(self.key, self.metadata)
        parts = {"columns": as_sent((*self.key, *self.metadata)), "rows": self._described.rows}
        statement = query("other_database", "rows", **parts)
        if digests is not None:
            listed = sql.SQL("{}::bytea[]").format(sql.Literal(digests))
            statement = query("other_database", "rows_of", digest=self._digest, digests=listed, **parts)
        for rows in self._blocks(statement):
            values = [[action] * len(rows), *zip(*rows, strict=True)]
            yield pa.record_batch([pa.array(v, f.type) for v, f in zip(values, schema, strict=True)], schema)

    def _read(self, statement: sql.Composed) -> Iterator[tuple[object, ...]]:
        for rows in self._blocks(statement):
            yield from rows

    def _blocks(self, statement: sql.Composed) -> Iterator[list[tuple[object, ...]]]:
        with source_errors(), self._connection.cursor(name="source", binary=True) as cursor:
            cursor.itersize = _FETCH_ROWS
            cursor.execute(statement)
            while rows := cursor.fetchmany(_FETCH_ROWS):
                yield rows


@contextmanager
def open_remote(
    pipeline: Pipeline, source: PostgresSource, identity: Digested, target: Connection
) -> Generator[RemoteSource]:
    """The source in one snapshot, which ends with the context.

    Raises ``SourceError`` if its database or its table cannot be read, ``TargetError`` if the target's database does
    not have the type of one of its columns.
    """
    with connected(source.url or "") as connection, connection.transaction():
        with source_errors():
            connection.execute(query("other_database", "begin_source"))
            described = describe(connection, pipeline, source, identity.digest())
        _check_types(target, (*described.key, *described.metadata))
        yield RemoteSource(connection, source, described)


def connected(url: str) -> Connection:
    """A connection to the source's database. Raises ``SourceError`` if it refuses."""
    try:
        return connect(url, application="rowvec source")
    except TargetError as error:
        raise SourceError(f"source.url: {error}") from None


def _check_types(target: Connection, columns: tuple[PgColumn, ...]) -> None:
    for column in columns:
        written = column.type_sql.as_string(target)
        row = target.execute(query("other_database", "type_exists", pg_type=sql.Literal(written))).fetchone()
        if not (row and row[0]):
            raise TargetError(
                f"the source's column {column.name} is {column.pg_type}, and the target's database has no such type; "
                "create the type there, or cast the column to text in a source.query"
            )


@contextmanager
def source_errors() -> Generator[None]:
    """Turn an error of the source's database into ours, so that it is not taken for one of the target's."""
    try:
        yield
    except (psycopg.OperationalError, psycopg.InterfaceError) as error:
        raise DatabaseUnavailable(f"the connection to the source's database was lost: {_sentence(error)}") from error
    except psycopg.Error as error:
        raise SourceError(f"the source's database refused: {_sentence(error)} (SQLSTATE {error.sqlstate})") from error


def _sentence(error: psycopg.Error) -> str:
    return error.diag.message_primary or type(error).__name__
