"""The limits that a row can be held against before it is paid for: an index entry's size, and a text's words."""

from __future__ import annotations

from typing import LiteralString

from psycopg import sql

from rowvec.ledger.plans import plan_rows
from rowvec.ledger.rejects import Rows, add_refused
from rowvec.postgres.connection import Connection
from rowvec.postgres.fragments import is_exact, names, same_key
from rowvec.postgres.isolation import Isolation, Refusal, StoredRows, Stretch
from rowvec.postgres.queries import query
from rowvec.postgres.vector_table import VectorTable
from rowvec.stages.extract.request import Request

# The text of a key that is too long has at least so many bytes: an entry of a B-tree has room for 2,704, and an array
# of integers takes twice the bytes of its text.
_LONG_KEY = 1_000

LONG_CONTENT = 1 << 17
"""Bytes of a content that are looked at: the words of a text have room for a megabyte, with up to 9 bytes for each."""


def refuse_beyond_limits(connection: Connection, request: Request, table: VectorTable) -> None:
    """Reject the plan's rows that the vector table or its index of words has no room for; in the extract's transaction.

    The database itself is asked, because it compresses keys and knows the words of a language. What is rejected stays
    in the plan without a batch, so that the merge deletes its old version.
    """
    _refuse_long_keys(connection, request, table)
    if request.pipeline.search.hybrid:
        _refuse_many_words(connection, request, table)


def many_words(connection: Connection, rows: StoredRows, language: str) -> list[tuple[Stretch, Refusal]]:
    """Those of the rows whose ``content`` has more words than a tsvector has room for, and what the database says."""
    isolation = Isolation(connection, "the index of words", may_refuse_all=True)

    def count(part: Stretch) -> int:
        parts = {"table": rows.table, "within": rows.within(part), "language": sql.Literal(language)}
        found = connection.execute(query("limits", "count_words", **parts)).fetchone()
        return found[0] if found else 0

    return isolation.isolate(rows.all(), count, rows.halves)


def is_long(column: LiteralString) -> sql.Composed:
    """Whether the content of a row ``s`` is so long that its words are looked at."""
    return sql.SQL("octet_length(s.{}) > {}").format(sql.Identifier(column), sql.Literal(LONG_CONTENT))


def _refuse_long_keys(connection: Connection, request: Request, table: VectorTable) -> None:
    varying = [column for column in table.key if not is_exact(column)]
    if not varying:
        return
    length = sql.SQL(" + ").join(
        sql.SQL("octet_length(p.{}::text)").format(sql.Identifier(column.name)) for column in varying
    )
    plan, key = plan_rows(request.run_id), names(table.key)
    parts = {"plan": plan, "key": key, "length": length, "long": sql.Literal(_LONG_KEY)}
    connection.execute(query("limits", "long_keys", **parts))
    rows = StoredRows(connection=connection, table=sql.Identifier("pg_temp", "long_keys"), which=sql.SQL("true"))
    everything = rows.all()
    if everything.rows:
        connection.execute(query("limits", "key_index", key=key))
        isolation = Isolation(connection, "the key", may_refuse_all=True)

        def index(part: Stretch) -> int:
            return connection.execute(query("limits", "index_keys", key=key, within=rows.within(part))).rowcount

        for part, refusal in isolation.isolate(everything, index, rows.halves):
            within = rows.within(part)
            _add(connection, request, table, (rows.table, within), refusal)
            same = same_key(table.key, "p", "s")
            connection.execute(query("limits", "unplan_key", plan=plan, same_key=same, within=within))
        connection.execute(query("limits", "drop_key_index"))
    connection.execute(query("limits", "drop_long_keys"))


def _refuse_many_words(connection: Connection, request: Request, table: VectorTable) -> None:
    plan = plan_rows(request.run_id)
    which = sql.SQL("s.rowvec_batch IS NOT NULL AND {}").format(is_long("content"))
    rows = StoredRows(connection=connection, table=plan, which=which)
    for part, refusal in many_words(connection, rows, request.pipeline.search.language):
        within = rows.within(part)
        _add(connection, request, table, (plan, within), refusal)
        connection.execute(query("limits", "unplan", plan=plan, within=within))


def _add(connection: Connection, request: Request, table: VectorTable, rows: Rows, refusal: Refusal) -> None:
    add_refused(connection, (sql.Literal(request.pipeline_id), request.run_id, table.key), rows, refusal)
