"""A view next to the vector table that says where each vector comes from: model, run, artifact and cost."""

from __future__ import annotations

import hashlib

from psycopg import errors as pg
from psycopg import sql

from rowvec.errors import TargetError
from rowvec.postgres.columns import PgColumn
from rowvec.postgres.connection import Connection, lost_connections_are_retriable
from rowvec.postgres.fragments import cut_name, definitions
from rowvec.postgres.locks import LockSpace
from rowvec.postgres.queries import query
from rowvec.postgres.vector_table import VectorTable
from rowvec.searches.privileges import give, privileges_of

_COMMENT = "rowvec: where each vector comes from"
_COLUMNS = (
    ("provider", "text"),
    ("model", "text"),
    ("dimensions", "integer"),
    ("fingerprint", "bytea"),
    ("run_id", "bigint"),
    ("embedded_at", "timestamp with time zone"),
    ("artifact", "text"),
    ("artifact_sha256", "text"),
    ("paid_by_run", "bigint"),
    ("paid_at", "timestamp with time zone"),
    ("cost_usd", "real"),
)


def install_provenance(connection: Connection, table: VectorTable) -> str:
    """Create ``<schema>.<table>_provenance``, or replace it if its definition has changed; returns its name, quoted.

    One row per vector: the key columns, then ``provider``, ``model``, ``dimensions``, ``fingerprint``, ``run_id`` and
    ``embedded_at`` (the run that wrote the row, and when), ``artifact`` and ``artifact_sha256``, ``paid_by_run``,
    ``paid_at`` and ``cost_usd`` (the run that had the content embedded, when it began, and the content's share of the
    price). A name that a key column has too gets an underscore.

    The view calls a function, whose text Postgres binds only when it runs: with a view on the table itself, nobody
    could drop the table. A view that is replaced gives its privileges and its user's comment to the next one. Raises
    ``TargetError`` if a view or function of someone else has the name, or something depends on a view that must be
    replaced; and what ``lost_connections_are_retriable`` raises.
    """
    plain = cut_name(table.name, "_provenance")
    name = sql.Identifier(table.schema, plain)
    written = name.as_string(connection)
    results, body = _results(table), _body(table)
    definition = (results + body).as_string(connection)
    comment = f"{_COMMENT} ({hashlib.sha256(definition.encode()).hexdigest()[:16]})"
    with lost_connections_are_retriable(), connection.transaction():
        connection.execute(query("provenance", "lock"), {"space": LockSpace.PROVENANCE_VIEW, "name": written})
        ours = {"comment": sql.Literal(f"{_COMMENT}%"), "schema": sql.Literal(table.schema), "name": sql.Literal(plain)}
        rows = connection.execute(query("provenance", "ours", **ours)).fetchall()
        found = {kind: (text, is_ours) for kind, text, is_ours in rows}
        _, is_ours = found.get("function", (None, False))
        if found and not is_ours:
            raise TargetError(
                f"something else is called {table.schema}.{plain}, the name of the provenance view; rename it"
            )
        if len(found) == 2 and found["function"][0] == comment:
            return written
        call = f"{written}()"
        held = {
            "view": privileges_of(connection, "view", written) if "view" in found else None,
            "function": privileges_of(connection, "function", call) if found else None,
        }
        try:
            connection.execute(query("provenance", "drop_view", name=name))
            connection.execute(query("provenance", "drop_function", name=name))
        except pg.DependentObjectsStillExist as error:
            raise TargetError(
                f"the view {table.schema}.{plain} must be replaced and cannot be ({error.diag.message_primary}); "
                "drop what depends on it, and run again"
            ) from error
        parts = {"results": results, "body": sql.Literal(body.as_string(connection))}
        connection.execute(query("provenance", "function", name=name, **parts))
        connection.execute(query("provenance", "view", name=name))
        text, _ = found.get("view", (None, None))
        own = text if text and not text.startswith(_COMMENT) else comment
        connection.execute(query("provenance", "comment_view", name=name, comment=sql.Literal(own)))
        connection.execute(query("provenance", "comment_function", name=name, comment=sql.Literal(comment)))
        if held["view"] is not None:
            give(connection, "view", written, held["view"])
        if held["function"] is not None:
            give(connection, "function", call, held["function"])
    return written


def _results(table: VectorTable) -> sql.Composed:
    taken = {column.name for column in table.key}
    columns = (PgColumn(f"{name}_" if name in taken else name, pg_type) for name, pg_type in _COLUMNS)
    return definitions((*table.key, *columns))


def _body(table: VectorTable) -> sql.Composed:
    return query(
        "provenance",
        "body",
        key=sql.SQL("").join(sql.SQL("{}, ").format(sql.Identifier("t", c.name)) for c in table.key),
        table=table.identifier,
        schema=sql.Literal(table.schema),
        name=sql.Literal(table.name),
    )
